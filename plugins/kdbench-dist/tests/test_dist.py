"""Hand-computed values of DIST, and the conformance kit."""

import math

import kdbench_dist
import pytest
import torch
from kdbench_dist import DIST, correlation, dist_parts

from kdbench import registry
from kdbench.testing import METHOD_CHECKS


@pytest.mark.parametrize("name", METHOD_CHECKS)
def test_conformance(name: str) -> None:
    METHOD_CHECKS[name](DIST)


def test_correlation_by_hand() -> None:
    # Deviations (-1, 0, 1) and (-1, 1, 0): 1 / (sqrt 2 * sqrt 2); a line; its reverse; a constant.
    one = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    two = torch.tensor([[1.0, 3.0, 2.0], [5.0, 7.0, 9.0], [3.0, 2.0, 1.0], [4.0, 4.0, 4.0]])
    torch.testing.assert_close(correlation(one, two), torch.tensor([0.5, 1.0, -1.0, 0.0]))


def test_parts_by_hand() -> None:
    # softmax(ln p) = p at tau 1, and tau * ln p gives the same p at any tau.
    student = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.7, 0.2]], dtype=torch.float64)
    teacher = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.3, 0.6], [0.2, 0.4, 0.4]], dtype=torch.float64)

    def pearson(x: torch.Tensor, y: torch.Tensor) -> float:
        n = len(x)
        covariance = float(n * (x * y).sum() - x.sum() * y.sum())
        variances = float((n * (x * x).sum() - x.sum() ** 2) * (n * (y * y).sum() - y.sum() ** 2))
        return covariance / math.sqrt(variances)

    rows = sum(pearson(student[i], teacher[i]) for i in range(3)) / 3
    columns = sum(pearson(student[:, i], teacher[:, i]) for i in range(3)) / 3
    for tau in (1.0, 4.0):
        inter, intra = dist_parts(tau * student.log(), tau * teacher.log(), tau)
        assert inter.item() == pytest.approx(tau**2 * (1 - rows), abs=1e-12)
        assert intra.item() == pytest.approx(tau**2 * (1 - columns), abs=1e-12)
    # First row by hand: deviations (.5, -.1, -.4)/3 and (.8, -.4, -.4)/3, so .6 / sqrt(.42 * .96).
    assert pearson(student[0], teacher[0]) == pytest.approx(0.6 / math.sqrt(0.42 * 0.96))


def test_equal_predictions_cost_nothing_and_shifts_do_not_count() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for part in dist_parts(logits, logits + 3, 4.0):
        assert part.item() == pytest.approx(0, abs=1e-12)


def test_an_untrained_head_that_is_all_zero_has_a_zero_gradient() -> None:
    student = torch.zeros(4, 3, requires_grad=True)
    inter, intra = dist_parts(student, torch.randn(4, 3), 4.0)
    (gradient,) = torch.autograd.grad(inter + intra, student)
    assert (inter.item(), intra.item()) == (16, 16)
    assert gradient.abs().max() == 0


def test_it_registers() -> None:
    installed = "dist" in {plugin.name for plugin in registry.load().plugins}
    loaded = registry.load(extra=() if installed else [kdbench_dist])
    assert loaded.methods["dist"] is DIST
    assert (DIST.published.ce, DIST.published.kd) == (1.0, 2.0)
