"""Which runs one worker trains together."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from kdbench.spec import RunSpec
from kdbench.training.cohort import cohort_key

Cohort = tuple[RunSpec, ...]


def groups_of(specs: Sequence[RunSpec]) -> list[Cohort]:
    """Return the runs that could be trained together: they share seed, data, teachers and protocol."""
    groups: dict[tuple[object, ...], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(cohort_key(spec), []).append(spec)
    return [tuple(members) for members in groups.values()]


def cohorts_of(specs: Sequence[RunSpec], jobs: int, most: Callable[[Cohort], int]) -> list[Cohort]:
    """Return the runs of each worker, the largest cohorts first, so that workers end at about the same time.

    Args:
        specs: Runs still to do, in plan order.
        jobs: Workers at a time, >= 1.
        most: Returns how many runs of a group one worker may train at a time, >= 1.
    """
    groups = groups_of(specs)
    counts = pieces([len(group) for group in groups], [most(group) for group in groups], jobs)
    cut = [part for group, count in zip(groups, counts, strict=True) for part in _equal(group, count)]
    return sorted(cut, key=len, reverse=True)


def pieces(sizes: Sequence[int], most: Sequence[int], jobs: int) -> list[int]:
    """Return into how many pieces groups are cut: as few as the limits allow, but no worker is left without one.

    Every cut costs one more pass of the teachers, so groups are whole where they can be. In the last round, workers
    that would have nothing to do get a part of the largest pieces.

    Args:
        sizes: Runs of each group.
        most: Most runs of a piece, for each group.
        jobs: Workers at a time.
    """
    counts = [-(-size // limit) for size, limit in zip(sizes, most, strict=True)]
    longest = [(size // -count, index) for index, (size, count) in enumerate(zip(sizes, counts, strict=True))]
    heapq.heapify(longest)  # of lengths with the sign changed: the first of the longest groups is on top
    for _ in range(-sum(counts) % jobs):
        length, index = longest[0]
        if length == -1:
            break
        counts[index] += 1
        heapq.heapreplace(longest, (sizes[index] // -counts[index], index))
    return counts


def _equal(group: Cohort, count: int) -> list[Cohort]:
    size = len(group)
    return [group[size * part // count : size * (part + 1) // count] for part in range(count)]
