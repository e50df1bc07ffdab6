"""One method against another: the same tests as in a board, for one question, and what it would take to decide it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.errors import ConfigError, nearest
from kdbench.leaderboard.answers import Reader
from kdbench.leaderboard.build import build
from kdbench.leaderboard.judgement import OverallGain
from kdbench.leaderboard.model import Cell, Gain, Table
from kdbench.stats import (
    ALPHA,
    ROPE,
    Equivalence,
    SignFlip,
    minimum_detectable,
    seeds_needed,
    sign_flip,
    tost,
)


@dataclass(frozen=True)
class Duel:
    """On one pair.

    Args:
        title: What tells the table from the others.
        gain: First minus second with its t interval, p (one comparison: not corrected), SE_test and what holds it back.
        flip: Sign-flip test; None without a difference.
        equivalence: Two one-sided tests against the ROPE; None without a difference.
        mde: Smallest difference that these seeds could have shown with a power of .8, in points; None without spread.
        needed: Differences in points, each with the seeds that would show it: the one seen, and the ROPE.
    """

    title: str
    gain: Gain
    flip: SignFlip | None
    equivalence: Equivalence | None
    mde: float | None
    needed: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Duels:
    """On all pairs that have both.

    Args:
        first: The method in question.
        second: What it is compared with.
        duels: One per table that has both.
        overall: Over the pairs of each protocol with more than one: its label, and the gain on exactly these pairs.
        alone: Titles of tables that have only one of the two.
    """

    first: str
    second: str
    duels: tuple[Duel, ...]
    overall: tuple[tuple[str, OverallGain], ...]
    alone: tuple[str, ...]
    alpha: float = ALPHA
    rope: float = ROPE


def compare(
    cells: Sequence[Cell], first: str, second: str, pair: str | None = None, answers: Reader | None = None
) -> Duels:
    """Compare two methods, or variants of one, by the runs of both.

    Args:
        cells: Planned runs, of whatever methods.
        first: ``METHOD`` or ``METHOD@VARIANT``.
        second: What it is compared with; rows of the open division are compared with its closed runs.
        pair: The only pair to look at; None = all.
        answers: Where to find which test images a run had right.

    Raises:
        ConfigError: If a name has no runs, both are the same, no table has both, or runs cannot be compared.

    Source:
        Statistics specification, sections 1, 2, 6 and 8.
    """
    if first == second:
        raise ConfigError(f"compare: '{first}' with itself; name two methods, or two variants of one")
    _check("pair", pair, {cell.spec.pair for cell in cells})
    here = [cell for cell in cells if pair in {None, cell.spec.pair}]
    for name in (first, second):
        _check("method", name, {cell.spec.row for cell in here})
    board = build([cell for cell in here if cell.spec.row in {first, second}], [second], claims=(), answers=answers)
    duels = tuple(duel for table in board.tables if (duel := _duel(table, first)))
    shown = {duel.title for duel in duels}
    if not duels:
        raise ConfigError(
            f"compare: '{first}' and '{second}' have no pair in common; there are "
            f"{'; '.join(table.title for table in board.tables)}; run what is missing"
        )
    overall = tuple(
        (view.anchor, gain)
        for view in board.overviews
        for row in view.rows
        for gain in row.gains
        if row.method == first and gain is not None
    )
    alone = tuple(table.title for table in board.tables if table.title not in shown)
    return Duels(first, second, duels, overall, alone)


def _check(kind: str, name: str | None, known: set[str]) -> None:
    if name is not None and name not in known:
        have = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"compare: no runs of the {kind} '{name}'.{nearest(name, known)} There are: {have}")


def _duel(table: Table, first: str) -> Duel | None:
    row = next((row for row in table.rows if row.method == first), None)
    if row is None or not row.gains:
        return None
    (gain,) = row.gains
    difference = gain.difference
    if difference is None or difference.mean is None or gain.unclaimed == "unstable":
        return Duel(table.title, gain, None, None, None, ())
    flip, equivalence = sign_flip(difference.values), tost(difference.values)
    if not difference.std or difference.interval is None:
        return Duel(table.title, gain, flip, equivalence, None, ())
    sizes = dict.fromkeys(round(size, 2) for size in (abs(difference.mean), ROPE) if round(size, 2))
    needed = tuple((size, seeds_needed(size, difference.std, ALPHA)) for size in sizes)
    return Duel(table.title, gain, flip, equivalence, minimum_detectable(difference.n, difference.std, ALPHA), needed)
