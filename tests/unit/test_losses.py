"""The two shared losses and the combination of teachers, by hand."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.losses import combine_teachers, cross_entropy, kd_loss


def logits(*probabilities: list[float], tau: float = 1.0) -> Tensor:
    """Return float64 logits whose softmax at ``tau`` are the given rows."""
    return tau * torch.tensor(probabilities, dtype=torch.float64).log()


def test_cross_entropy_is_the_mean_negative_log_probability() -> None:
    value = cross_entropy(logits([0.5, 0.25, 0.25], [0.1, 0.1, 0.8]), torch.tensor([0, 2]))
    assert value.item() == pytest.approx((-log(0.5) - log(0.8)) / 2)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    value = cross_entropy(logits([0.5, 0.3, 0.2]), torch.tensor([0]), label_smoothing=0.3)
    assert value.item() == pytest.approx(-0.7 * log(0.5) - 0.1 * (log(0.5) + log(0.3) + log(0.2)))


def test_kd_loss_by_hand() -> None:
    student, teacher = logits([0.5, 0.5], [0.9, 0.1]), logits([0.8, 0.2], [0.9, 0.1])
    first = 0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5)
    assert kd_loss(student, teacher, 1.0).item() == pytest.approx(first / 2)


def test_kd_loss_softens_both_and_scales_with_tau_squared() -> None:
    student, teacher = logits([0.5, 0.5], tau=4.0), logits([0.8, 0.2], tau=4.0)
    value = 0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5)
    assert kd_loss(student, teacher, 4.0).item() == pytest.approx(16 * value)


def test_kd_gradient_is_tau_over_n_times_the_difference_and_none_reaches_the_teacher() -> None:
    student = logits([0.5, 0.5], [0.9, 0.1], tau=2.0).requires_grad_()
    teacher = logits([0.8, 0.2], [0.9, 0.1], tau=2.0).requires_grad_()
    kd_loss(student, teacher, 2.0).backward()
    expected = torch.tensor([[-0.3, 0.3], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


def test_constants_added_to_logits_change_nothing() -> None:
    student, teacher = logits([0.5, 0.3, 0.2]), logits([0.2, 0.3, 0.5])
    assert kd_loss(student + 7, teacher - 3, 4.0).item() == pytest.approx(kd_loss(student, teacher, 4.0).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = torch.tensor([[500.0, -500.0]], dtype=dtype), torch.tensor([[-500.0, 500.0]], dtype=dtype)
    value = kd_loss(student, teacher, 4.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(16 * 250)
    assert cross_entropy(student, torch.tensor([1])).item() == pytest.approx(1000)
    assert cross_entropy(student, torch.tensor([1])).dtype == torch.float32


def test_float64_stays_float64() -> None:
    assert kd_loss(logits([0.5, 0.5]), logits([0.8, 0.2]), 1.0).dtype == torch.float64
    assert cross_entropy(logits([0.5, 0.5]), torch.tensor([0])).dtype == torch.float64


def test_a_float32_student_and_a_float64_teacher_agree_on_float32() -> None:
    value = kd_loss(logits([0.5, 0.5]).float(), logits([0.8, 0.2]), 1.0)
    assert value.dtype == torch.float32


A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -2.0]])


def combined(how: str, teachers: tuple[Tensor, ...] = (A, B), **settings: object) -> Tensor:
    defaults: dict[str, object] = {"index": 0, "weights": None, "tau": 1.0}
    return combine_teachers(teachers, how, **(defaults | settings))  # type: ignore[arg-type]


def test_teacher_picks_one_and_clamps_the_index() -> None:
    assert combined("teacher", index=1) is B
    assert combined("teacher", index=9) is B
    assert combined("teacher", index=0) is A


@pytest.mark.parametrize("how", ["teacher", "avg", "weighted_conf"])
def test_one_teacher_is_its_own_target(how: str) -> None:
    assert combined(how, (A,), index=3, weights=(2.0,)) is A


def test_avg_is_the_mean_of_the_logits() -> None:
    assert combined("avg").tolist() == [[3.0, 0.0]]


def test_avg_normalises_its_weights() -> None:
    assert combined("avg", weights=(3.0, 1.0)).tolist() == [[2.0, 1.0]]


def test_weighted_conf_weighs_each_sample_by_the_largest_probability_at_tau() -> None:
    # Confidences at tau 2: softmax of (0, ln 3) is (1/4, 3/4); of (0, 0) it is (1/2, 1/2). Rows swap the two.
    sure, unsure = [0.0, 2 * log(3)], [4.0, 4.0]
    first, second = torch.tensor([sure, unsure]), torch.tensor([unsure, sure])
    shares = 0.75 / 1.25, 0.5 / 1.25
    row = [shares[0] * a + shares[1] * b for a, b in zip(sure, unsure, strict=True)]
    torch.testing.assert_close(combined("weighted_conf", (first, second), tau=2.0), torch.tensor([row, row]))


def test_weighted_conf_follows_tau() -> None:
    at_one = [exp(1) / (1 + exp(1)), exp(7) / (1 + exp(7))]  # largest probabilities of A and B
    share = at_one[0] / sum(at_one)
    expected = share * A + (1 - share) * B
    torch.testing.assert_close(combined("weighted_conf", tau=1.0), expected)
    assert not torch.allclose(combined("weighted_conf", tau=8.0), expected)


@pytest.mark.parametrize("case", [11, 12])
def test_targets_of_two_and_three_teachers_as_in_the_reference(shared: Path, case: int) -> None:
    with np.load(shared / "goldens" / "asib" / f"kd_targets_{case}.npz") as archive:
        golden = {key: archive[key] for key in archive.files if key != "meta"}
    settings = json.loads(str(golden["hp"]))
    teachers = tuple(torch.from_numpy(one) for one in golden["in.t_logits"])
    assert len(teachers) == case - 9
    weights = tuple(settings["teacher_weights"])
    assert sum(weights) != pytest.approx(1)  # so they have to be normalised

    def check(name: str, found: Tensor) -> None:
        expected = torch.from_numpy(golden[f"out.{name}"])
        bound = 1e-10 + 1e-9 * float(expected.abs().max())
        assert float((found - expected).abs().max()) <= bound, name
        single = combined_as(name, tuple(one.float() for one in teachers))
        assert float((single - expected).abs().max()) <= 1e-5 + 1e-4 * float(expected.abs().max()), name

    def combined_as(name: str, logits: tuple[Tensor, ...]) -> Tensor:
        if name.startswith("teacher"):
            return combined("teacher", logits, index=int(name[-1]))
        if name.startswith("avg"):
            return combined("avg", logits, weights=weights if name == "avg_weighted" else None)
        return combined("weighted_conf", logits, tau=1.0 if name.endswith("gate1") else settings["tau"])

    names = [f"teacher{k}" for k in range(len(teachers))]
    for name in (*names, "avg_uniform", "avg_weighted", "weighted_conf", "weighted_conf_gate1"):
        check(name, combined_as(name, teachers))
