"""SE_test from stored answers: one bit per run and image, counted in whole numbers, never turned into floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kdbench.stats.images import CrossedError
from kdbench.stats.values import Integers

Bits = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Arm:
    """The answers of one method, kept by whoever compares it with several others: each is counted once.

    Args:
        bits: One array per seed, as ``numpy.packbits`` makes it of "is correct"; bits beyond the images are zero.
        images: Number of images.
    """

    bits: tuple[Bits, ...]
    images: int

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The bits of each seed as one whole number."""
        return tuple(_number(bits) for bits in self.bits)

    @cached_property
    def of_seeds(self) -> Integers:
        """How many images each seed has right, [S]."""
        return np.array([number.bit_count() for number in self.numbers])

    @cached_property
    def of_images(self) -> Integers:
        """By how many seeds each image was answered right, [N]."""
        small = np.uint8 if len(self.bits) < 256 else np.int64  # sums of bytes are many times as fast
        answers = np.unpackbits(np.stack(self.bits), axis=1, count=self.images)
        counts: Integers = answers.sum(axis=0, dtype=small).astype(np.int64)
        return counts


def crossed_error_of_bits(first: Sequence[Bits], second: Sequence[Bits], images: int) -> CrossedError:
    """Return what ``crossed_error`` returns for the differences of two arms, from packed correctness bits.

    Args:
        first: One array per seed, as in :class:`Arm`.
        second: The same of the other arm, the same seeds in the same order.
        images: Number of images, >= 2.

    Raises:
        ValueError: For fewer than two seeds or images, arms of unequal length, or bits of other sizes.
    """
    return crossed_error_of_arms(Arm(tuple(first), images), Arm(tuple(second), images))


def crossed_error_of_arms(first: Arm, second: Arm) -> CrossedError:
    """Return what ``crossed_error`` returns for the differences of two arms of the same seeds and images.

    The sums of squares come from whole numbers, so that they are exact; a table of a hundred methods takes no longer
    than its files take to read.

    Raises:
        ValueError: For fewer than two seeds or images, arms of unequal length, or bits of other sizes.

    Source:
        Section 6, SE_test.
    """
    seeds, images = len(first.bits), first.images
    size = -(-images // 8)
    fit = all(len(bits) == size for bits in (*first.bits, *second.bits)) and images == second.images
    if seeds != len(second.bits) or seeds < 2 or images < 2 or not fit:
        raise ValueError(
            f"crossed error - {seeds} and {len(second.bits)} seeds, {images} and {second.images} images - two of each, "
            f"as many on both sides, and {size} bytes a seed - store the answers of every run"
        )
    of_seeds = first.of_seeds - second.of_seeds
    of_images = first.of_images - second.of_images
    unequal = sum((a ^ b).bit_count() for a, b in zip(first.numbers, second.numbers, strict=True))
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
    return _number(bits).bit_count()


def _number(bits: Bits) -> int:
    return int.from_bytes(bits.tobytes())
