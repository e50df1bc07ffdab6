"""Which runs are measured within a time budget, and how the times of the others are calculated from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from kdbench.training.runtime import RunTime, calculated
from kdbench.training.work import Work

K = TypeVar("K")


def times_of(
    works: Mapping[K, Work],
    measuring: Callable[[Work], RunTime],
    budget: float,
    device: torch.device,
    clock: Callable[[], float] = time.monotonic,
) -> dict[K, RunTime]:
    """Return the time of each run, measured as long as there is time.

    The cheapest come first, and one is always measured. One that is expected to end beyond the budget, or cannot be
    measured, is calculated from its operations and those per second of the measured run most like it.

    Args:
        works: The runs.
        measuring: Returns the time of a run; see :func:`kdbench.training.trial.time_run`.
        budget: Seconds for all of it.
        device: Where they are measured.
        clock: Seconds that pass.

    Returns:
        Times; empty if nothing could be measured.
    """
    started, measured, left = clock(), dict[K, RunTime](), list[K]()
    pace = 0.0  # seconds per operation of the last measurement
    for key in sorted(works, key=lambda key: works[key].flops):
        before, size = clock(), works[key].flops * works[key].step_images(device)
        if measured and before - started + pace * size > budget:
            left.append(key)
            continue
        try:
            measured[key] = measuring(works[key])
        except RuntimeError:  # the memory is out, or the method declines what is no real data
            left.append(key)
        pace = (clock() - before) / size
    return measured | {key: _like(works[key], measured, works) for key in left} if measured else {}


def _like(work: Work, measured: Mapping[K, RunTime], works: Mapping[K, Work]) -> RunTime:
    """Return the time of a run from that of another one: of the same pair if there is one, and of about its size."""

    def distance(key: K) -> tuple[bool, float]:
        other = works[key]
        return other.spec.pair != work.spec.pair, max(work.flops / other.flops, other.flops / work.flops)

    nearest = min(measured, key=distance)
    known, seconds = measured[nearest], measured[nearest].alone * work.run_flops / works[nearest].run_flops
    return calculated(seconds, work.passes.phases, known.shared / max(known.alone, 1e-9))


def nominal(works: Mapping[K, Work], flops_per_second: float) -> dict[K, RunTime]:
    """Return times that are right in proportion only, for where nothing was measured."""
    return {key: calculated(work.run_flops / flops_per_second, work.passes.phases) for key, work in works.items()}
