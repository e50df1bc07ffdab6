"""The self-check at every start: a few random entries are computed anew, and must be the same to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdbench.training.teacher_cache.entries import Entries, Numbers, Values

CHECKED = 16  # entries, each of another image


def sample(entries: Entries, draws: np.random.Generator, count: int) -> Numbers:
    """Return up to so many entries that are there, of random images."""
    teaching = entries.key.teaching
    chosen = draws.choice(teaching.images, size=min(count, teaching.images), replace=False)
    found = []
    for image in chosen.tolist():
        # All crops of an image lie together: one look finds those that are there, however few.
        there = entries.filled(image * teaching.crops + np.arange(teaching.crops))
        if len(there):
            found.append(int(draws.choice(there)))
    numbers = np.array(found, np.int64)
    return numbers[entries.read(numbers)[1]] if found else numbers


def agrees(entries: Entries, live: Callable[[Numbers], Values], draws: np.random.Generator) -> bool:
    """Return whether random entries are what the teacher says now.

    Args:
        entries: The file.
        live: Computes entries, at most a whole batch of them, as they are kept.
        draws: Which ones; another choice at every start finds more.
    """
    numbers = sample(entries, draws, min(CHECKED, entries.key.arithmetic.batch))
    if not len(numbers):
        return True
    # Bits, not values: a NaN that was kept is the NaN that is computed.
    kept, computed = entries.read(numbers)[0], live(numbers)
    return kept.tobytes() == computed.astype(np.float32).tobytes()
