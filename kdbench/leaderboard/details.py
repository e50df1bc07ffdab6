"""The lines behind a number: what each seed contributed, in plain text."""

from __future__ import annotations

from collections.abc import Callable

from kdbench.leaderboard.model import STATUSES, Gain, Outcome, Row
from kdbench.leaderboard.text import number, parameters, plain, ranges, seconds


def configuration(row: Row) -> tuple[str, ...]:
    """Return what the row's runs were asked to do, and by which code."""
    options = (f"{key} = {value}" for key, value in sorted(row.options.items()))
    return (
        f"version {row.method_version}, {', '.join(map(plain, row.plugins))}",
        *map(plain, options),
        *((f"safe mode: seeds {ranges(row.safe_seeds)}",) if row.safe_seeds else ()),
    )


def statuses(row: Row) -> tuple[str, ...]:
    """Return the seeds of each status, and why those are not ok."""
    by_status = {status: [o.seed for o in row.outcomes if o.status == status] for status in STATUSES}
    counted = (f"{status}: seeds {ranges(seeds)}" for status, seeds in by_status.items() if seeds)
    return (*counted, *(f"seed {o.seed}: {plain(o.reason)}" for o in row.outcomes if o.reason))


def accuracies(row: Row) -> tuple[str, ...]:
    """Return each seed's accuracy, or its status and what it counts as."""
    return _by_seed(row, lambda outcome: None if outcome.accuracy is None else number(outcome.accuracy))


def times(row: Row) -> tuple[str, ...]:
    """Return each seed's seconds in training steps."""
    return _by_seed(row, lambda outcome: None if outcome.train_seconds is None else seconds(outcome.train_seconds))


def sizes(row: Row) -> tuple[str, ...]:
    """Return each seed's deployed parameters, or their number once where all seeds have the same."""
    if len(row.deployed_parameters) == 1 and row.count("ok") == row.planned:
        return (f"seeds {ranges(o.seed for o in row.outcomes)}: {parameters(row.deployed_parameters)}",)
    return _by_seed(row, lambda o: None if o.deployed_parameters is None else parameters((o.deployed_parameters,)))


def agreements(row: Row) -> tuple[str, ...]:
    """Return each seed's agreement with the teacher; nothing for a row without one."""
    if row.agreement is None:
        return ()
    return _by_seed(row, lambda outcome: None if outcome.agreement is None else number(outcome.agreement))


def differences(row: Row, gain: Gain) -> tuple[str, ...]:
    """Return the difference of each seed that both arms have, how many and how different they are; name the others."""
    difference = gain.difference
    if difference is None:
        return ()
    known = dict(zip(difference.seeds, difference.values, strict=True))
    lines = (
        f"seed {o.seed}: {number(known[o.seed], signed=True)}" if o.seed in known else f"seed {o.seed}: not in both"
        for o in row.outcomes
    )
    return (*lines, f"n = {difference.n}, sd {number(difference.std)}")


def reasons(row: Row) -> tuple[str, ...]:
    """Return why the row deviates from its anchor."""
    return tuple(plain(f"{deviation.key} = {deviation.value}: {deviation.reason}") for deviation in row.deviations)


def _by_seed(row: Row, value: Callable[[Outcome], str | None]) -> tuple[str, ...]:
    return tuple(f"seed {outcome.seed}: {value(outcome) or _other(outcome)}" for outcome in row.outcomes)


def _other(outcome: Outcome) -> str:
    if outcome.status == "ok":
        return "n/a"
    return f"{outcome.status}, counts as {number(outcome.score)}" if outcome.score is not None else outcome.status
