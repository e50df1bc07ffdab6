"""The columns of a table, said once: Markdown, LaTeX, CSV and the page are made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdbench.leaderboard import details, judged_text
from kdbench.leaderboard.details import Details
from kdbench.leaderboard.heads import Head, against
from kdbench.leaderboard.model import SPENT, STATUSES, Gain, Part, Row, Table
from kdbench.leaderboard.text import (
    accuracy,
    corrected,
    finished,
    forwards,
    gain,
    mebibytes,
    number,
    parameters,
    seconds,
    short,
)
from kdbench.stats import Summary

Value = str | int | float | None
Behind = Callable[[Gain], Details]
Quote = Callable[[object], str]  # how an output makes foreign text fit for itself


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        head: What stands over it.
        text: What a row shows, in plain text.
        sort: By what rows are sorted; None comes last.
        details: What lies behind it: each seed with its value, or its status.
        foreign: Whether ``text`` is somebody else's, so that an output must quote what is special in it.
        right: Whether it is aligned to the right, as numbers are.
        strong: Whether a row's text stands in bold.
    """

    head: Head
    text: Callable[[Row], str]
    sort: Callable[[Row], str | float | None]
    details: Callable[[Row], Details]
    foreign: bool = False
    right: bool = True
    strong: Callable[[Row], bool] = lambda _: False

    @property
    def title(self) -> str:
        """Its head in one line."""
        return self.head.title


@dataclass(frozen=True)
class Group:
    """Columns that are explained, and written to CSV, together.

    Args:
        columns: Columns of the tables, from left to right.
        notes: What the footer says about them; it is given how to quote foreign text.
        fields: What a row contributes to the CSV; None is an empty field.
        varies: Whether the names of the fields depend on the board; such fields end the line.
        aside: Whether an output that is short of width shows the columns in a table of their own.
    """

    columns: tuple[Column, ...]
    notes: Callable[[Quote], tuple[str, ...]]
    fields: Callable[[Row], Mapping[str, Value]]
    varies: bool = False
    aside: bool = False


def groups(table: Table) -> tuple[Group, ...]:
    """Return all groups of a table's columns in their order; a new column is added here, and nowhere else."""
    return (_who(), _accuracy(table), _ties(table), _gains(table), _cost(), _deviations(table))


def columns(table: Table) -> tuple[Column, ...]:
    """Return the columns of a table from left to right."""
    return tuple(column for group in groups(table) for column in group.columns)


def _nothing(_: Quote) -> tuple[str, ...]:
    return ()


def _who() -> Group:
    return Group(
        columns=(
            Column(
                Head("method"), lambda r: r.method, lambda r: r.method, details.configuration, foreign=True, right=False
            ),
            Column(Head("ok"), finished, lambda r: r.count("ok"), details.statuses, right=False),
        ),
        notes=_nothing,
        fields=lambda row: {
            "method": row.method,
            "method_version": row.method_version,
            "planned": row.planned,
            **{status: row.count(status) for status in STATUSES},
        },
    )


def _accuracy(table: Table) -> Group:
    note = (
        f"Accuracy: top-1 on the test split after the last epoch ({table.epochs}), in percent: mean ± standard "
        "deviation over seeds (ddof = 1)."
    )
    return Group(
        columns=(
            Column(
                Head("accuracy %"),
                accuracy,
                lambda row: row.scored.mean if row.scored else None,
                details.accuracies,
                strong=lambda row: row.bold,
            ),
        ),
        notes=lambda _: (note, *judged_text.bold(table)),
        fields=lambda row: {**_summary("accuracy", row.scored), **_summary("ok_only", row.ok_only)},
    )


def _ties(table: Table) -> Group:
    """Return the tie groups, which stand for the ranks that a table of noisy means does not have."""
    column = Column(
        Head("tie group"), lambda row: row.ties or "-", lambda row: row.ties or None, lambda _: Details(), right=False
    )
    shown = any(row.ties for row in table.rows)
    return Group(
        columns=(column,) if shown else (),
        notes=lambda _: ("tie group: two methods are shown to differ if and only if they share no letter.",) * shown,
        fields=lambda row: {"bold": _yes(row.bold), "tie_group": row.ties},
    )


def _gains(table: Table) -> Group:
    """Return the gains; a baseline without runs has no column, and a note that says so."""

    def notes(quote: Quote) -> tuple[str, ...]:
        division = "closed " if table.division == "open" else ""
        reading = (
            "vs: gain in percentage points: mean of the paired differences over the seeds both methods completed, with "
            "its 95 % t interval, each for one comparison, not corrected for their number; (n=) where these seeds are "
            "fewer than planned."
        )
        tests = judged_text.tests(table, quote) if table.baselines else ()
        absent = (f"No gain over {quote(name)}: it has no {division}runs here." for name in table.absent_baselines)
        return (*((reading,) if table.baselines else ()), *tests, *absent)

    return Group(
        columns=tuple(column for index, name in enumerate(table.baselines) for column in _versus(table, index, name)),
        notes=notes,
        fields=lambda row: {key: value for each in row.gains for key, value in _gain_fields(each).items()},
        varies=True,
    )


def _versus(table: Table, index: int, baseline: str) -> tuple[Column, ...]:
    """Return the gain over one baseline and what belongs to it; what no row has is left out."""

    def column(title: str, text: Callable[[Gain], str], sort: Callable[[Gain], float | None], more: Behind) -> Column:
        return Column(
            against(title, baseline),
            lambda row: text(row.gains[index]),
            lambda row: sort(row.gains[index]),
            lambda row: more(row.gains[index]),
        )

    shown = [_gain(index, baseline)]
    if table.division == "closed":
        shown.append(column("p", corrected, lambda gain: gain.p_holm, details.test))
    if any(row.gains[index].se_test is not None for row in table.rows):
        shown.append(column("SE_test", _se_test, lambda gain: gain.se_test, lambda _: Details()))
    return tuple(shown)


def _se_test(gain: Gain) -> str:
    return "-" if gain.difference is None else number(gain.se_test)


def _gain(index: int, baseline: str) -> Column:
    def mean(row: Row) -> float | None:
        difference = row.gains[index].difference
        return difference.mean if difference else None

    return Column(
        head=against("gain", baseline, title=f"vs {baseline}"),
        text=lambda row: gain(row.gains[index]),
        sort=mean,
        details=lambda row: details.differences(row, row.gains[index]),
    )


def _cost() -> Group:
    note = (
        "train s: mean seconds in training steps; params: deployed parameters; agreement: test images on which the "
        "network and its teacher predict the same class, in percent; forwards: images through the trained network + "
        "through teachers in training; peak MiB: of the device, or of the process on a CPU; FLOPs: of the "
        "deployed network for one image; all means over the ok runs."
    )
    return Group(
        columns=(
            Column(Head("train s"), lambda r: seconds(r.train_seconds), lambda r: r.train_seconds, details.times),
            Column(
                Head("params"),
                lambda row: parameters(row.deployed_parameters),
                lambda row: row.deployed_parameters[0] if row.deployed_parameters else None,
                details.sizes,
            ),
            Column(Head("agreement %"), lambda r: number(r.agreement, 1), lambda r: r.agreement, details.agreements),
            Column(Head("forwards"), forwards, lambda r: r.mean_cost(SPENT["student_forwards"]), details.forwards),
            _spent("peak MiB", SPENT["peak_memory_bytes"], mebibytes),
            _spent("FLOPs", SPENT["deployed_flops"], short),
        ),
        notes=lambda _: (note,),
        fields=lambda row: {
            "train_seconds": row.train_seconds,
            "deployed_parameters": "-".join(map(str, row.deployed_parameters)),
            "agreement_with_teacher": row.agreement,
            **{key: row.mean_cost(part) for key, part in SPENT.items()},
        },
        aside=True,
    )


def _spent(title: str, part: Part, text: Callable[[float | None], str]) -> Column:
    return Column(
        Head(title),
        lambda row: text(row.mean_cost(part)),
        lambda row: row.mean_cost(part),
        lambda row: details.costs(row, lambda cost: text(part(cost))),
    )


def _deviations(table: Table) -> Group:
    def changed(row: Row) -> str:
        return ", ".join(f"{deviation.key}={deviation.value}" for deviation in row.deviations)

    column = Column(Head("deviations"), changed, changed, details.reasons, foreign=True, right=False)
    return Group(
        columns=(column,) if table.division == "open" else (),
        notes=_nothing,
        fields=lambda row: {"deviations": "; ".join(f"{d.key}={d.value}" for d in row.deviations)},
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _summary(name: str, summary: Summary | None) -> dict[str, Value]:
    return {
        f"{name}_n": summary.n if summary else 0,
        f"{name}_mean": summary.mean if summary else None,
        f"{name}_std": summary.std if summary else None,
    }


def _gain_fields(gain: Gain) -> dict[str, Value]:
    name, difference = gain.baseline, gain.difference
    interval = difference.interval if difference else None
    return {
        f"vs_{name}_n": difference.n if difference else None,
        f"vs_{name}": difference.mean if difference else None,
        f"vs_{name}_low": interval.low if interval else None,
        f"vs_{name}_high": interval.high if interval else None,
        f"vs_{name}_no_interval": difference.reason if difference else "",
        f"vs_{name}_p_holm": gain.p_holm,
        f"vs_{name}_p_pooled": gain.p_pooled,
        f"vs_{name}_star": _yes(gain.star) if difference else "",
        f"vs_{name}_dagger": _yes(gain.dagger) if difference else "",
        f"vs_{name}_equal": _yes(gain.equal) if difference else "",
        f"vs_{name}_se_test": gain.se_test,
        f"vs_{name}_no_star": gain.unclaimed,
    }
