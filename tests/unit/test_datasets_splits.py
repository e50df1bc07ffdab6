"""Subsets, validation splits and statistics, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from kdbench.datasets.base import Split
from kdbench.datasets.splits import (
    channel_statistics,
    cut_validation,
    first_of_each,
    per_class_subset,
    permutation,
)
from kdbench.errors import ConfigError
from kdbench.seeds import numpy_generator

NAMES = ("cat", "dog")
FROZEN = {"subset": [1, 3, 0, 2, 7, 5, 6, 4], "validation": [5, 2, 1, 7, 4, 0, 6, 3]}


def numbered(labels: list[int]) -> Split:
    """Return a split whose image i has the value i in its only pixel."""
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Split(images, torch.tensor(labels))


def indices(split: Split) -> list[int]:
    return split.images.flatten().tolist()


def test_permutation_sorts_the_raw_draws_of_the_stream() -> None:
    raw = [numpy_generator(0, "subset").bit_generator.random_raw(5)[i] for i in range(5)]
    expected = sorted(range(5), key=lambda i: raw[i])
    assert permutation(numpy_generator(0, "subset"), 5).tolist() == expected
    assert sorted(permutation(numpy_generator(0, "subset"), 100).tolist()) == list(range(100))


def test_the_streams_are_frozen() -> None:
    # A change here changes every split, hence every published number.
    assert permutation(numpy_generator(0, "subset"), 8).tolist() == FROZEN["subset"]
    assert permutation(numpy_generator(0, "split", "validation"), 8).tolist() == FROZEN["validation"]


def test_first_of_each_follows_the_order_and_returns_sorted_indices() -> None:
    labels, order = np.array([0, 1, 0, 1, 0]), np.array([4, 3, 2, 1, 0])
    assert first_of_each(labels, order, [2, 1]).tolist() == [2, 3, 4]
    assert first_of_each(labels, order, [1, 0]).tolist() == [4]


def test_subset_takes_n_of_each_class_in_original_order_and_grows_by_adding() -> None:
    split = numbered([0, 1] * 20)
    small, large = per_class_subset(split, 3, NAMES), per_class_subset(split, 7, NAMES)
    assert torch.bincount(small.labels).tolist() == [3, 3]
    assert indices(small) == sorted(indices(small))
    assert set(indices(small)) < set(indices(large))
    assert indices(small) != [0, 1, 2, 3, 4, 5]
    assert [index % 2 for index in indices(large)] == large.labels.tolist()
    assert indices(per_class_subset(split, 20, NAMES)) == list(range(40))


@pytest.mark.parametrize("per_class", [0, 3, -1])
def test_subset_refuses_more_than_a_class_has(per_class: int) -> None:
    with pytest.raises(ConfigError) as caught:
        per_class_subset(numbered([0, 0, 0, 1, 1]), per_class, NAMES)
    assert str(caught.value) == (
        f"a subset of {per_class} images per class: class 'dog' has 2 training images. "
        "Allowed: 1..2; choose a number in this range, or use all images."
    )


def test_validation_is_class_balanced_and_disjoint() -> None:
    split = numbered([0] * 20 + [1] * 10 + [0] * 4 + [1] * 2)
    train, validation = cut_validation(split, 0.25, NAMES)
    assert validation is not None
    assert torch.bincount(validation.labels).tolist() == [6, 3]  # 0.25 * 24, 0.25 * 12
    assert torch.bincount(train.labels).tolist() == [18, 9]
    assert sorted(indices(train) + indices(validation)) == list(range(36))
    assert indices(train) == sorted(indices(train))
    assert indices(validation) == sorted(indices(validation))
    again = cut_validation(split, 0.25, NAMES)[1]
    assert again is not None
    assert indices(again) == indices(validation)


def test_validation_takes_at_least_one_of_each_class() -> None:
    _, validation = cut_validation(numbered([0] * 4 + [1] * 40), 0.1, NAMES)
    assert validation is not None
    assert torch.bincount(validation.labels).tolist() == [1, 4]


def test_no_validation_at_fraction_zero() -> None:
    split = numbered([0, 1])
    assert cut_validation(split, 0.0, NAMES) == (split, None)


@pytest.mark.parametrize(
    ("fraction", "labels", "message"),
    [
        (1.0, [0, 0, 1, 1], r"a validation split of 1: allowed are fractions in \[0, 1\)"),
        (-0.1, [0, 0, 1, 1], r"a validation split of -0\.1: allowed"),
        (math.nan, [0, 0, 1, 1], "a validation split of nan: allowed"),
        (0.1, [0, 0, 1], "it takes 1 of the 1 training images of class 'dog' and leaves none"),
        (0.8, [0, 0, 1, 1], "it takes 2 of the 2 training images of class 'cat'"),
    ],
)
def test_validation_refuses(fraction: float, labels: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cut_validation(numbered(labels), fraction, NAMES)


def test_statistics_by_hand() -> None:
    # Channel 0: 0, 255 -> mean 1/2, deviation 1/2. Channel 1: constant 51 -> mean 0.2, deviation at its floor.
    images = torch.tensor([[[[0]], [[51]]], [[[255]], [[51]]]], dtype=torch.uint8)
    assert channel_statistics(Split(images, torch.tensor([0, 1]))) == ((0.5, 0.2), (0.5, 0.001))


def test_statistics_are_the_population_ones_over_all_chunks() -> None:
    images = torch.randint(0, 256, (5000, 3, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = channel_statistics(Split(images, torch.zeros(5000, dtype=torch.int64)))
    exact = images.double() / 255
    assert mean == pytest.approx(exact.mean((0, 2, 3)).tolist(), abs=6e-7)
    assert std == pytest.approx(exact.std((0, 2, 3), correction=0).tolist(), abs=6e-7)


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="the split has no images"):
        channel_statistics(Split(torch.empty((0, 3, 2, 2), dtype=torch.uint8), torch.empty(0, dtype=torch.int64)))
