"""SE_test from stored answers: one bit per run and image, counted in whole numbers, never turned into floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdbench.stats.images import CrossedError
from kdbench.stats.values import Integers

Bits = NDArray[np.uint8]


def crossed_error_of_bits(first: Sequence[Bits], second: Sequence[Bits], images: int) -> CrossedError:
    """Return what ``crossed_error`` returns for the differences of two arms, from packed correctness bits.

    The sums of squares come from whole numbers, so that they are exact; a table of a hundred methods takes no longer
    than its files take to read.

    Args:
        first: One array per seed, as ``numpy.packbits`` makes it of "is correct"; bits beyond the images are zero.
        second: The same of the other arm, the same seeds in the same order.
        images: Number of images, >= 2.

    Raises:
        ValueError: For fewer than two seeds or images, arms of unequal length, or bits of other sizes.

    Source:
        Section 6, SE_test.
    """
    seeds, size = len(first), -(-images // 8)
    if seeds != len(second) or seeds < 2 or images < 2 or any(len(bits) != size for bits in (*first, *second)):
        raise ValueError(
            f"crossed error - {seeds} and {len(second)} seeds, {images} images - two of each and {size} bytes a seed - "
            "store the answers of every run"
        )
    pairs = list(zip(first, second, strict=True))
    of_seeds = np.array([right(a) - right(b) for a, b in pairs])
    of_images = _right_of_images(first, images) - _right_of_images(second, images)
    unequal = sum(right(a ^ b) for a, b in pairs)
    total = int(of_seeds.sum())
    cells = seeds * images
    # Sums of squares times the number of cells, as integers.
    all_squares = cells * unequal - total * total
    seed_squares = seeds * int((of_seeds * of_seeds).sum()) - total * total
    image_squares = images * int((of_images * of_images).sum()) - total * total
    ms_seed = seed_squares / cells / (seeds - 1)
    ms_image = image_squares / cells / (images - 1)
    ms_rest = (all_squares - seed_squares - image_squares) / cells / ((seeds - 1) * (images - 1))
    both = max(ms_seed + ms_image - ms_rest, ms_seed, ms_image)
    errors = (math.sqrt(square / cells) for square in (ms_seed, ms_image, both))
    return CrossedError(total / cells, ms_seed, ms_image, ms_rest, *errors)


def right(bits: Bits) -> int:
    """Return how many bits are set."""
    return int.from_bytes(bits.tobytes()).bit_count()


def _right_of_images(arm: Sequence[Bits], images: int) -> Integers:
    """Return by how many seeds each image was answered right."""
    small = np.uint8 if len(arm) < 256 else np.int64  # sums of bytes are many times as fast
    counts: Integers = np.unpackbits(np.stack(arm), axis=1, count=images).sum(axis=0, dtype=small).astype(np.int64)
    return counts
