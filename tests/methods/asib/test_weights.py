"""Certainty and disagreement weights, and the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kdbench.methods.asib.weights import (
    certainty_in_a,
    certainty_in_b,
    disagreement,
    disagreement_rate,
    disagreement_weights,
)

LN2 = math.log(2)
LABELS = torch.tensor([0, 0, 0, 0])
# Predictions of two teachers: both right, one wrong, both wrong alike, both wrong and different.
TEACHERS = (
    torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 9, 0]]),
    torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]]),
)


def test_in_the_a_step_certainty_is_capped_at_one_and_gives_no_gradient() -> None:
    """Row 11: otherwise the bridge would lower its loss by raising its variance."""
    logvar = torch.tensor([[LN2, LN2], [2 * LN2, 6 * LN2], [-LN2, 0.0], [9.0, 9.0]], requires_grad=True)
    found = certainty_in_a(logvar, least=0.1)
    assert found.tolist() == pytest.approx([0.5, (1 / 4 + 1 / 64) / 2, 1.0, 0.1])
    assert not found.requires_grad


def test_in_the_b_step_certainty_is_relative_to_the_batch() -> None:
    logvar = torch.tensor([[0.0], [-LN2], [-2 * LN2], [LN2]], requires_grad=True)  # 1, 2, 4, 1/2
    mean = 7.5 / 4
    assert certainty_in_b(logvar, 0.3, 1.5).tolist() == pytest.approx([1 / mean, 2 / mean, 1.5, 0.3])
    assert not certainty_in_b(logvar, 0.3, 1.5).requires_grad


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("pred", [0, 1, 0, 1]), ("both_wrong", [0, 0, 1, 1]), ("any_wrong", [0, 1, 1, 1]), ("none", [0, 0, 0, 0])],
)
def test_modes_of_disagreement(mode: str, expected: list[int]) -> None:
    where = disagreement(TEACHERS, LABELS, mode)
    assert where.int().tolist() == expected
    weights = disagreement_weights(where, 1.6, 0.7, torch.ones(4))
    assert weights.tolist() == pytest.approx([1.6 if one else 0.7 for one in expected])


def test_of_three_teachers_one_dissenter_is_enough() -> None:
    third = TEACHERS[0].roll(1, 1)
    assert disagreement((TEACHERS[0], TEACHERS[0], third), LABELS, "pred").all()
    assert not disagreement(TEACHERS[:1], LABELS, "pred").any()


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="disagree_mode - 'some'"):
        disagreement(TEACHERS, LABELS, "some")


class Batches:
    """Batches that count how many were asked for."""

    asked = 0

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        while True:
            self.asked += 1
            yield TEACHERS, LABELS


@pytest.mark.parametrize(
    ("samples", "batches", "n", "percent", "asked"),
    [
        (2000, 3, 12, 50.0, 3),
        (6, 10, 6, 100 / 3, 2),
        (4, 10, 4, 50.0, 1),
        (7, 10, 7, 100 * 3 / 7, 2),
        (5, 1, 4, 50.0, 1),
    ],
)
def test_the_rate_stops_at_whichever_limit_comes_first(
    samples: int, batches: int, n: int, percent: float, asked: int
) -> None:
    """Of 6 and of 7 samples the last ones are the first of the second batch: right, one wrong, both wrong."""
    source = Batches()
    found = disagreement_rate(source, "both_wrong", samples, batches)
    assert (found.samples, found.percent, source.asked) == (n, pytest.approx(percent), asked)


def test_of_nothing_there_is_no_rate() -> None:
    found = disagreement_rate([], "pred", 10, 10)
    assert math.isnan(found.percent)
    assert found.samples == 0
