"""The columns of a table, said once: Markdown, LaTeX, CSV and the page are made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdbench.leaderboard import details
from kdbench.leaderboard.details import Details
from kdbench.leaderboard.model import STATUSES, Gain, Row, Table
from kdbench.leaderboard.text import accuracy, finished, gain, number, parameters, seconds
from kdbench.stats import Summary

Value = str | int | float | None
Quote = Callable[[object], str]  # how an output makes foreign text fit for itself


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        title: Its head, in plain text.
        text: What a row shows, in plain text.
        sort: By what rows are sorted; None comes last.
        details: What lies behind it: each seed with its value, or its status.
        foreign: Whether ``text`` is somebody else's, so that an output must quote what is special in it.
        right: Whether it is aligned to the right, as numbers are.
    """

    title: str
    text: Callable[[Row], str]
    sort: Callable[[Row], str | float | None]
    details: Callable[[Row], Details]
    foreign: bool = False
    right: bool = True


@dataclass(frozen=True)
class Group:
    """Columns that are explained, and written to CSV, together.

    Args:
        columns: Columns of the tables, from left to right.
        notes: What the footer says about them; it is given how to quote foreign text.
        fields: What a row contributes to the CSV, with full precision; None is an empty field.
        varies: Whether the names of the fields depend on the board; such fields end the line.
    """

    columns: tuple[Column, ...]
    notes: Callable[[Quote], tuple[str, ...]]
    fields: Callable[[Row], Mapping[str, Value]]
    varies: bool = False


def groups(table: Table) -> tuple[Group, ...]:
    """Return all groups of a table's columns in their order; a new column is added here, and nowhere else."""
    return (_who(), _accuracy(table), _gains(table), _cost(), _deviations(table))


def columns(table: Table) -> tuple[Column, ...]:
    """Return the columns of a table from left to right."""
    return tuple(column for group in groups(table) for column in group.columns)


def _nothing(_: Quote) -> tuple[str, ...]:
    return ()


def _who() -> Group:
    return Group(
        columns=(
            Column("method", lambda r: r.method, lambda r: r.method, details.configuration, foreign=True, right=False),
            Column("ok", finished, lambda r: r.count("ok"), details.statuses, right=False),
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
        columns=(Column("accuracy %", accuracy, lambda r: r.scored.mean if r.scored else None, details.accuracies),),
        notes=lambda _: (note,),
        fields=lambda row: {**_summary("accuracy", row.scored), **_summary("ok_only", row.ok_only)},
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
        absent = (f"No gain over {quote(name)}: it has no {division}runs here." for name in table.absent_baselines)
        return (*((reading,) if table.baselines else ()), *absent)

    return Group(
        columns=tuple(_gain(index, name) for index, name in enumerate(table.baselines)),
        notes=notes,
        fields=lambda row: {key: value for each in row.gains for key, value in _gain_fields(each).items()},
        varies=True,
    )


def _gain(index: int, baseline: str) -> Column:
    def mean(row: Row) -> float | None:
        difference = row.gains[index].difference
        return difference.mean if difference else None

    return Column(
        title=f"vs {baseline}",
        text=lambda row: gain(row.gains[index]),
        sort=mean,
        details=lambda row: details.differences(row, row.gains[index]),
    )


def _cost() -> Group:
    note = (
        "train s: mean seconds in training steps; params: deployed parameters; agreement: test images on which the "
        "network and its teacher predict the same class, in percent; all over the ok runs."
    )
    return Group(
        columns=(
            Column("train s", lambda r: seconds(r.train_seconds), lambda r: r.train_seconds, details.times),
            Column(
                "params",
                lambda row: parameters(row.deployed_parameters),
                lambda row: row.deployed_parameters[0] if row.deployed_parameters else None,
                details.sizes,
            ),
            Column("agreement %", lambda r: number(r.agreement, 1), lambda r: r.agreement, details.agreements),
        ),
        notes=lambda _: (note,),
        fields=lambda row: {
            "train_seconds": row.train_seconds,
            "deployed_parameters": "-".join(map(str, row.deployed_parameters)),
            "agreement_with_teacher": row.agreement,
        },
    )


def _deviations(table: Table) -> Group:
    def changed(row: Row) -> str:
        return ", ".join(f"{deviation.key}={deviation.value}" for deviation in row.deviations)

    column = Column("deviations", changed, changed, details.reasons, foreign=True, right=False)
    return Group(
        columns=(column,) if table.division == "open" else (),
        notes=_nothing,
        fields=lambda row: {"deviations": "; ".join(f"{d.key}={d.value}" for d in row.deviations)},
    )


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
    }
