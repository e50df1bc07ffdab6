"""What the steps of a ladder gained and cost, from the records of their runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from kdbench.ablation.differences import Difference
from kdbench.ablation.expanding import Ablation
from kdbench.leaderboard.model import Cell, Gain, Row
from kdbench.leaderboard.rows import make_row, with_gains
from kdbench.records import Cost, EpochReport, Record
from kdbench.store import EPOCHS, RunFolder, RunStore


@dataclass(frozen=True)
class Spent:
    """Means over the ok runs; None without one.

    Args:
        train_seconds: Time in training steps.
        forwards: Images run through student and teachers in training.
    """

    train_seconds: float | None
    forwards: float | None


@dataclass(frozen=True)
class Rung:
    """One step of a ladder, finished or not.

    Args:
        difference: The step, and what it changes.
        row: Its runs, and their summaries.
        gain: Its paired difference to the step it is compared with; None for a step that is compared with none.
        spent: What its runs cost.
        extra: How much more than those of the other step, as a share of that; None where one is not known.
        metrics: Of each metric the ladder shows, the mean over ok runs of its last value; absent where none has it.
    """

    difference: Difference
    row: Row
    gain: Gain | None
    spent: Spent
    extra: Spent
    metrics: dict[str, float]


def rungs(ablation: Ablation, store: RunStore) -> list[Rung]:
    """Return the steps of a ladder with what became of their runs."""
    rows: dict[str, Row] = {}
    costs: dict[str, Spent] = {}
    made = []
    for difference in ablation.found:
        step = difference.step
        folders = [store.folder(spec.run_id) for spec in ablation.specs(step.name)]
        cells = [
            Cell(spec, folder.peek(), str(folder.path))
            for spec, folder in zip(ablation.specs(step.name), folders, strict=True)
        ]
        row = rows[step.name] = make_row(cells)
        finished = [folder for folder, cell in zip(folders, cells, strict=True) if cell.status == "ok"]
        spent = costs[step.name] = _spent([cell.record for cell in cells if cell.record and cell.status == "ok"])
        gain, extra = None, Spent(None, None)
        if step.against is not None:
            gain = with_gains(row, [rows[step.against]]).gains[0]
            extra = _extra(spent, costs[step.against])
        made.append(Rung(difference, row, gain, spent, extra, _metrics(finished, ablation.ladder.show_metrics)))
    return made


def _spent(records: Sequence[Record]) -> Spent:
    return Spent(
        _mean(records, lambda cost: cost.train_seconds),
        _mean(records, lambda cost: cost.student_forwards + cost.teacher_forwards),
    )


def _mean(records: Sequence[Record], value: Callable[[Cost], float]) -> float | None:
    known = [value(record.cost) for record in records if record.cost]
    return fmean(known) if known else None


def _extra(spent: Spent, other: Spent) -> Spent:
    return Spent(_share(spent.train_seconds, other.train_seconds), _share(spent.forwards, other.forwards))


def _share(now: float | None, before: float | None) -> float | None:
    return None if now is None or not before else now / before - 1


def _metrics(folders: Sequence[RunFolder], names: Sequence[str]) -> dict[str, float]:
    last = [_last_values(folder, names) for folder in folders]
    known = {name: [values[name] for values in last if name in values] for name in names}
    return {name: fmean(values) for name, values in known.items() if values}


def _last_values(folder: RunFolder, names: Sequence[str]) -> dict[str, float]:
    """Return the last number of each metric over the epochs of a run."""
    found: dict[str, float] = {}
    path = folder.path / EPOCHS
    for line in path.read_text(encoding="utf-8").splitlines() if folder.has(EPOCHS) else ():
        metrics = EpochReport.model_validate_json(line).metrics
        found |= {name: float(value) for name in names if isinstance(value := metrics.get(name), int | float)}
    return found
