"""What every statistic asks of its numbers: finite, one per seed, differences rounded before anything is ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Accuracies come from integer counts, but 73.1 - 72.8 is not 0.3 in binary: so many decimals of a difference are kept.
DIFFERENCE_DIGITS = 6

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]
Scores = Mapping[str, Mapping[int, float]]  # of each method, its value by seed


def finite(values: ArrayLike, where: str) -> Vector:
    """Return values as an array of float64.

    Args:
        values: Numbers of any shape; None counts as NaN.
        where: What they are, for the message.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    if not known.all():
        place = tuple(int(index) for index in np.argwhere(~known)[0])
        raise ValueError(
            f"{where} - value {float(array[place])} in position {', '.join(map(str, place)) or 0} - every value must "
            "be a finite number - score diverged runs at chance and leave missing runs out"
        )
    return array


def by_seed(runs: Iterable[tuple[int, float]], where: str = "runs") -> dict[int, float]:
    """Return the value of each seed.

    Raises:
        ValueError: If a seed occurs twice, or a value is not finite.

    Source:
        Section 5, rule 5: a seed that occurs twice is refused, never averaged.
    """
    found: dict[int, float] = {}
    for seed, value in runs:
        if seed in found:
            raise ValueError(f"{where} - seed {seed} occurs twice - each seed may occur once - remove one of its runs")
        found[seed] = float(value)
    finite(list(found.values()), where)
    return found


def rounded(values: ArrayLike, digits: int = DIFFERENCE_DIGITS) -> Vector:
    """Return finite differences without their float noise, so that equal ones are equal.

    Source:
        Section 2: noise in 73.1 - 72.8 breaks ties and moves p-values.
    """
    return np.round(finite(values, "differences"), digits) + 0.0  # no negative zeros


@dataclass(frozen=True)
class DifferencesByPair:
    """Paired differences of two methods on the pairs on which both have runs.

    Args:
        pairs: Names of the pairs, in the order of the first method.
        values: Differences of each pair by ascending seed.
        left_out: Pairs without a common seed, or that only one of the methods has.
    """

    pairs: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    left_out: tuple[str, ...]


def differences_by_pair(first: Scores, second: Scores) -> DifferencesByPair:
    """Return first minus second per pair and common seed, rounded to 6 decimals.

    Args:
        first: Value by seed, of each pair.
        second: The same of the other method.

    Source:
        Section 1.4: pairing by intersection of seeds, never run k with run k.
    """
    found: dict[str, tuple[float, ...]] = {}
    left_out = []
    for pair in dict.fromkeys((*first, *second)):
        ours, theirs = first.get(pair, {}), second.get(pair, {})
        seeds = sorted(ours.keys() & theirs.keys())
        if seeds:
            found[pair] = tuple(rounded([ours[seed] - theirs[seed] for seed in seeds]).tolist())
        else:
            left_out.append(pair)
    return DifferencesByPair(tuple(found), tuple(found.values()), tuple(left_out))


def strata(by_pair: Sequence[ArrayLike]) -> tuple[Vector, ...]:
    """Return the differences of each pair as finite arrays, sorted: so no bit depends on the order of the seeds.

    Raises:
        ValueError: Without a pair, or for a pair without a difference.
    """
    known = [np.asarray(values, dtype=np.float64).ravel() for values in by_pair]
    # All of them at once: a board asks for thousands of pairs of a few seeds.
    whole = np.concatenate(known) if known else np.zeros(0)
    if not np.isfinite(whole).all():
        for index, values in enumerate(by_pair):
            finite(values, f"pair {index}")
    empty = [index for index, values in enumerate(known) if not len(values)]
    if not known or empty:
        which = f"pair {empty[0]}" if empty else "pairs"
        raise ValueError(f"{which} - no difference - at least one is needed in each pair - leave empty pairs out")
    sizes = [len(values) for values in known]
    ordered = whole[np.lexsort((whole, np.repeat(np.arange(len(known)), sizes)))]
    return tuple(ordered[start:end] for start, end in pairwise(accumulate(sizes, initial=0)))


def of_each(parts: Sequence[Vector], statistic: Callable[[Vector], ArrayLike]) -> Vector:
    """Return a statistic of each part; those of as many values are computed at once.

    Args:
        parts: At least one.
        statistic: Of each row of (parts, values).
    """
    sizes = np.array([len(part) for part in parts])
    found = np.empty(len(parts))
    for size in np.unique(sizes):
        which = np.flatnonzero(sizes == size)
        found[which] = statistic(np.stack([parts[index] for index in which.tolist()]))
    return found
