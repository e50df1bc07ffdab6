"""Named random streams: every random draw of a run comes from a key, never from a place in a sequence.

A key is the sha256 of its parts, so a stream needs no state: data order is a function of (seed, epoch), and a run
that was interrupted draws the same numbers as one that was not. ``init``, ``order``, ``augment`` and ``mix`` do not
depend on the method, so runs of one seed are paired.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch

StreamName = Literal["init", "order", "augment", "mix", "method", "dropout", "split", "subset"]


def stream(seed: int, name: StreamName, *parts: int | str) -> int:
    """Return the 63-bit key of a named stream.

    Args:
        seed: Seed of the run, >= 0.
        name: What the numbers are for.
        parts: Further coordinates, such as the epoch or the name of a phase.
    """
    text = "/".join(str(part) for part in ("kdbench", seed, name, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, name: StreamName, *parts: int | str) -> torch.Generator:
    """Return a CPU generator at the start of the stream (equal on every device type)."""
    return torch.Generator().manual_seed(stream(seed, name, *parts))


def numpy_generator(seed: int, name: StreamName, *parts: int | str) -> np.random.Generator:
    """Return a NumPy generator at the start of the stream, for distributions torch cannot draw from a generator."""
    return np.random.Generator(np.random.Philox(key=stream(seed, name, *parts)))
