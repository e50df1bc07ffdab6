"""The table of an ablation as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue
from tabulate import tabulate

from kdbench.ablation.differences import described
from kdbench.ablation.expanding import Ablation
from kdbench.ablation.results import Rung
from kdbench.files import write_atomic
from kdbench.leaderboard.as_json import of_run
from kdbench.leaderboard.json_text import json_text
from kdbench.leaderboard.text import NOT_AVAILABLE, accuracy, escape, finished, gain, number, ranges, seconds

FOLDER = "ablations"


def to_markdown(ablation: Ablation, steps: Sequence[Rung]) -> str:
    """Return the table with what each step changes, in GitHub's Markdown, ending in a newline."""
    ladder, spec = ablation.ladder, ablation.plan.runs[0]
    title = f"# Ladder {escape(ladder.label)}: {escape(spec.dataset.label)}, {escape(spec.pair)}, {spec.anchor.label}"
    metrics = [name for name in ladder.show_metrics if any(name in step.metrics for step in steps)]
    headers = ["step", "against", "factor", "ok", "accuracy %", "gain", "p", "train s", "forwards", *metrics]
    align = [*["left"] * 4, *["right"] * (len(headers) - 4)]
    table = tabulate(
        [_cells(step, metrics) for step in steps], headers, tablefmt="pipe", colalign=align, disable_numparse=True
    )
    notes = [f"- {escape(note)}" for note in (*_reading(ablation, steps), *ladder.notes)]
    changes = "\n".join(["```", *described(ladder, ablation.found), "```"])
    return "\n\n".join([title, table, "\n".join(notes), "What the steps change:", changes]) + "\n"


def _cells(step: Rung, metrics: Sequence[str]) -> list[str]:
    difference = step.gain.difference if step.gain else None
    return [
        escape(step.difference.step.name),
        escape(step.difference.step.against or "-"),
        escape(step.difference.step.factor or "-"),
        finished(step.row),
        accuracy(step.row),
        gain(step.gain) if step.gain else "-",
        "-" if step.gain is None else number(difference.p if difference else None, 3),
        _with_extra(seconds(step.spent.train_seconds), step.extra.train_seconds),
        _with_extra(number(step.spent.forwards, 0), step.extra.forwards),
        *(number(step.metrics.get(name)) for name in metrics),
    ]


def _with_extra(text: str, share: float | None) -> str:
    return text if share is None or text == NOT_AVAILABLE else f"{text} ({number(100 * share, 0, signed=True)} %)"


def _reading(ablation: Ablation, steps: Sequence[Rung]) -> list[str]:
    seeds = ranges(outcome.seed for step in steps for outcome in step.row.outcomes)
    several = ["The ladder is verbatim: a step may change several factors, so its gain is that of no single one."]
    return [
        "Accuracy: top-1 on the test split after the last epoch, in percent: mean ± standard deviation over seeds "
        f"{seeds} (ddof = 1); a diverged run counts as chance.",
        "gain: mean paired difference to the step named under against, in percentage points, with its 95 % t interval; "
        "p: of the paired t test, two-sided. Both are for one comparison, not corrected for their number.",
        "train s: mean seconds in training steps; forwards: mean images run through student and teachers; in brackets "
        "how much more than the step it is held against.",
        f"Anchor sha256 {ablation.plan.runs[0].anchor.sha256[:12]}.",
        *(several if ablation.ladder.verbatim else []),
    ]


def to_json(ablation: Ablation, steps: Sequence[Rung]) -> str:
    """Return the table with every number behind it as ASCII JSON."""
    ladder, spec = ablation.ladder, ablation.plan.runs[0]
    tree: dict[str, JsonValue] = {
        "schema_version": 1,
        "ladder": ladder.name,
        "method": ladder.method,
        "verbatim": ladder.verbatim,
        "anchor": {"label": spec.anchor.label, "sha256": spec.anchor.sha256, "epochs": spec.anchor.schedule.epochs},
        "dataset": spec.dataset.label,
        "pair": spec.pair,
        "steps": [_tree(step) for step in steps],
    }
    return json_text(tree) + "\n"


def _tree(step: Rung) -> JsonValue:
    difference = step.gain.difference if step.gain else None
    return {
        "step": step.difference.step.name,
        "against": step.difference.step.against,
        "factor": step.difference.step.factor,
        "changes": [asdict(change) for change in step.difference.changes],
        "row": step.row.method,
        "planned": step.row.planned,
        "ok": step.row.count("ok"),
        "accuracy": asdict(step.row.scored) if step.row.scored else None,
        "gain": asdict(difference) if difference else None,
        "spent": asdict(step.spent),
        "extra": asdict(step.extra),
        "metrics": dict(step.metrics),
        "runs": [of_run(outcome) for outcome in step.row.outcomes],
    }


def write(ablation: Ablation, steps: Sequence[Rung], out: Path) -> tuple[Path, Path]:
    """Write both forms beside the runs and return the paths; each ladder, protocol, dataset and pair has its own."""
    spec = ablation.plan.runs[0]
    name = "-".join((ablation.ladder.label, spec.anchor.label, spec.dataset.label, spec.pair))
    markdown, tree = out / FOLDER / f"{name}.md", out / FOLDER / f"{name}.json"
    write_atomic(markdown, to_markdown(ablation, steps))
    write_atomic(tree, to_json(ablation, steps))
    return markdown, tree
