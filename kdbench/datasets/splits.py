"""Subsets, validation splits and statistics: the same images for every method and every seed of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kdbench.datasets.base import Split
from kdbench.errors import ConfigError
from kdbench.seeds import numpy_generator

_CHUNK = 2048
_STD_FLOOR = 1e-3


def permutation(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Return a permutation of 0..count-1.

    It sorts raw draws: NumPy keeps those stable over its releases, but not its ``Generator.permutation``, and a
    split that changed with a library would change every number of a leaderboard.
    """
    raw = np.asarray(generator.bit_generator.random_raw(count), dtype=np.uint64)
    return np.argsort(raw, kind="stable").astype(np.int64)


def ordering(split: Split, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return a permutation of 0..N-1, N the images of a split.

    It comes from a permutation of the whole store that the split is a part of. So two parts of one dataset order the
    images they share alike, and a teacher and a student on parts of it cut the same images off.
    """
    rank = np.argsort(permutation(generator, len(split.store)), kind="stable")
    return np.argsort(rank[split.places(torch.arange(len(split))).numpy()], kind="stable").astype(np.int64)


def first_of_each(labels: NDArray[np.int64], order: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the sorted indices of the first ``counts[c]`` images of each class c in the order given.

    Args:
        labels: (N,), in [0, len(counts)).
        order: Permutation of 0..N-1.
        counts: Images wanted of each class, at most as many as it has.
    """
    ordered = labels[order]
    chosen = [order[np.flatnonzero(ordered == index)[:count]] for index, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen))


def take(split: Split, indices: NDArray[np.int64]) -> Split:
    """Return the split of the images at ``indices`` (K,); it shares the images of the one it is taken from."""
    return split.select(torch.from_numpy(indices))


def per_class_subset(split: Split, per_class: int, classes: Sequence[str]) -> Split:
    """Return ``per_class`` images of each class that has any, in their original order.

    The images are the first of each class in an :func:`ordering` keyed by ``numpy_generator(0, "subset")``, so they are
    the same for every method and seed, and a smaller subset is contained in a larger one.

    Args:
        split: Training images.
        per_class: Images of each class, at least 1.
        classes: Class names in label order, for the message.

    Raises:
        ConfigError: If a class has fewer.
    """
    available = class_counts(split, len(classes))
    fewest = min((label for label, count in enumerate(available) if count), key=available.__getitem__)
    if not 1 <= per_class <= available[fewest]:
        raise ConfigError(
            f"a subset of {per_class} images per class: class '{classes[fewest]}' has {available[fewest]} training "
            f"images. Allowed: 1..{available[fewest]}; choose a number in this range, or use all images."
        )
    order = ordering(split, numpy_generator(0, "subset"))
    counts = [per_class if count else 0 for count in available]
    return take(split, first_of_each(split.labels.numpy(), order, counts))


def cut_of(count: int, fraction: float) -> int:
    """Return how many of the ``count`` images of a class a validation split takes: at least 1, if there are any."""
    return max(1, round(fraction * count)) if count and fraction else 0


def cut_validation(split: Split, fraction: float, classes: Sequence[str]) -> tuple[Split, Split | None]:
    """Cut a class-balanced validation split off the training images; both keep the original order.

    Of a class with n > 0 images, :func:`cut_of` are cut: the first in an :func:`ordering` keyed by
    ``numpy_generator(0, "split", "validation")``, so they are the same for every method and seed, and for parts of one
    dataset.

    Args:
        split: Training images.
        fraction: In [0, 1); 0 cuts nothing.
        classes: Class names in label order, for the message.

    Returns:
        (training images left, validation images or None).

    Raises:
        ConfigError: If the fraction is out of range or would leave a class without training images.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"a validation split of {fraction:g}: allowed are fractions in [0, 1); 0.1 cuts 10 %.")
    if fraction == 0:
        return split, None
    available = class_counts(split, len(classes))
    counts = [cut_of(count, fraction) for count in available]
    for name, count, wanted in zip(classes, available, counts, strict=True):
        if 0 < count <= wanted:
            raise ConfigError(
                f"a validation split of {fraction:g}: it takes {wanted} of the {count} training images of class "
                f"'{name}' and leaves none. Choose a smaller fraction, or 0, or add images."
            )
    order = ordering(split, numpy_generator(0, "split", "validation"))
    chosen = first_of_each(split.labels.numpy(), order, counts)
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    return take(split, rest), take(split, chosen)


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return per-channel mean and population standard deviation of the pixels, in [0, 1] units.

    Both come from integer sums, hence they do not depend on device, threads or order; rounded to 6 decimals. The
    deviation is at least 0.001, so that a constant channel can be divided by it.

    Args:
        split: Images uint8 (N, C, H, W), N >= 1.

    Raises:
        ConfigError: If there are no images.
    """
    if not len(split):
        raise ConfigError("channel statistics: the split has no images. At least one is needed.")
    channels = split.image.channels
    total, squares = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    for chunk in split.chunks(_CHUNK):
        # uint8 squared does not fit in uint8; in chunks, the wider copy stays small.
        values = chunk.to(torch.int64)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    count = len(split) * split.image.height * split.image.width
    mean = tuple(round(s / (255 * count), 6) for s in total.tolist())
    # Python integers: count * sum of squares exceeds 64 bits for large datasets.
    spread = [count * q - s * s for s, q in zip(total.tolist(), squares.tolist(), strict=True)]
    return mean, tuple(max(_STD_FLOOR, round(math.sqrt(v) / (255 * count), 6)) for v in spread)


def class_counts(split: Split, classes: int) -> list[int]:
    """Return the number of images of each class, in label order."""
    return torch.bincount(split.labels, minlength=classes).tolist()
