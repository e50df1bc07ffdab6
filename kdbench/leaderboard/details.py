"""What lies behind a number: what each seed contributed, in plain text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kdbench.leaderboard.model import Gain, Outcome, Row
from kdbench.leaderboard.text import number, parameters, plain, probability, ranges, seconds, short
from kdbench.records import Cost


@dataclass(frozen=True)
class Details:
    """What is shown over a number.

    Args:
        seeds: Each seed with its value, or with its status where it has none.
        also: Further lines.
    """

    seeds: tuple[tuple[int, str], ...] = ()
    also: tuple[str, ...] = ()


def configuration(row: Row) -> Details:
    """Return what the row's runs were asked to do, and by which code."""
    version = f"version {row.method_version}, {', '.join(map(plain, row.plugins))}"
    options = (plain(f"{key} = {value}") for key, value in sorted(row.options.items()))
    safe = (f"safe mode: seeds {ranges(row.safe_seeds)}",) if row.safe_seeds else ()
    return Details(also=(version, *options, *safe))


def statuses(row: Row) -> Details:
    """Return each seed's status and, unless ok, why; where all are ok, that once."""
    if row.count("ok") == row.planned:
        return Details(also=(f"ok: seeds {ranges(o.seed for o in row.outcomes)}",))
    return Details(tuple((o.seed, plain(f"{o.status} {o.reason and f'({o.reason})'}")) for o in row.outcomes))


def accuracies(row: Row) -> Details:
    """Return each seed's accuracy, or its status and what it counts as."""
    return _by_seed(row, lambda outcome: None if outcome.accuracy is None else number(outcome.accuracy))


def times(row: Row) -> Details:
    """Return each seed's seconds in training steps, and the means of their parts where these were metered."""
    each = _by_seed(row, lambda outcome: None if outcome.train_seconds is None else seconds(outcome.train_seconds))
    # Two digits: a large page has thousands of these.
    shown = {part: f"{spent:.0f}" if spent >= 10 else f"{spent:.2g}" for part, spent in row.parts.items()}
    parts = ", ".join(f"{part} {spent}" for part, spent in shown.items())
    return replace(each, also=(f"mean: {parts}",) if parts else ())


def sizes(row: Row) -> Details:
    """Return each seed's deployed parameters; where all have the same, that once."""
    if len(row.deployed_parameters) == 1 and row.count("ok") == row.planned:
        return Details(also=(f"same in seeds {ranges(o.seed for o in row.outcomes)}",))
    return _by_seed(row, lambda o: None if o.deployed_parameters is None else parameters((o.deployed_parameters,)))


def agreements(row: Row) -> Details:
    """Return each seed's agreement with the teacher; nothing for a row without one."""
    if row.agreement is None:
        return Details()
    return _by_seed(row, lambda outcome: None if outcome.agreement is None else number(outcome.agreement))


def differences(row: Row, gain: Gain) -> Details:
    """Return the difference of each seed that both arms have, how many and how different they are; name the others."""
    difference = gain.difference
    if difference is None:
        return Details()
    known = dict(zip(difference.seeds, difference.values, strict=True))
    seeds = ((o.seed, number(known[o.seed], signed=True) if o.seed in known else "not in both") for o in row.outcomes)
    return Details(tuple(seeds), (f"n = {difference.n}, sd {number(difference.std)}",))


def test(gain: Gain) -> Details:
    """Return the p behind a corrected one, and why nothing may be claimed of it."""
    difference = gain.difference
    if difference is None:
        return Details()
    p = difference.p
    found = f"uncorrected {probability(p)}" if p is not None else f"no test: {difference.reason}"
    return Details(also=(found, *((f"not to be claimed: {gain.unclaimed}",) if gain.unclaimed else ())))


def costs(row: Row, value: Callable[[Cost], str]) -> Details:
    """Return one part of the costs of each seed; nothing where all have the same, which the cell says."""
    shown = {value(outcome.cost) for outcome in row.outcomes if outcome.cost}
    if len(shown) == 1 and row.count("ok") == row.planned:
        return Details()
    return _by_seed(row, lambda outcome: None if outcome.cost is None else value(outcome.cost))


def forwards(row: Row) -> Details:
    """Return how many images each seed sent through the trained network and through teachers."""
    return costs(row, lambda cost: f"{short(cost.student_forwards)} + {short(cost.teacher_forwards)}")


def reasons(row: Row) -> Details:
    """Return why the row deviates from its anchor."""
    return Details(also=tuple(plain(f"{d.key} = {d.value}: {d.reason}") for d in row.deviations))


def _by_seed(row: Row, value: Callable[[Outcome], str | None]) -> Details:
    return Details(tuple((outcome.seed, value(outcome) or _other(outcome)) for outcome in row.outcomes))


def _other(outcome: Outcome) -> str:
    if outcome.status == "ok":
        return "n/a"
    return f"{outcome.status}, counts as {number(outcome.score)}" if outcome.score is not None else outcome.status
