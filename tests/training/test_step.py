"""One optimizer step: optimizer, precision, clipping, accumulation and the average of the weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.config.schema import Optimizer
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.networks import new_network
from kdbench.training.optimizer import make_optimizer
from kdbench.training.trainer import Interrupted
from kdbench.types import StageShape

DIGIT = StageShape((1, 8, 8))

PLAIN: dict[str, Any] = {
    "schedule__name": "constant",
    "schedule__warmup_epochs": 0,
    "optimizer__momentum": 0.0,
    "optimizer__nesterov": False,
    "optimizer__weight_decay": 0.0,
    "step__grad_clip_norm": 0.0,
}
TOY = ("toy_plain", ("resnet14_w8",))


def state_after(lab: Any, spec: Any, steps: int, where: str = "") -> dict[str, Any]:
    where = where or f"{spec.anchor.name}-{steps}"
    with pytest.raises(Interrupted):
        lab.train([spec], where, should_stop=lab.stop_after(steps))
    state = CheckpointFolder(lab.folders([spec], where)[0].checkpoints).newest()
    assert state is not None
    return state


# --- optimizer ----------------------------------------------------------------------------------------------------


def _steps(config: Optimizer, gradients: list[float], start: float = 1.0) -> list[float]:
    parameter = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make_optimizer(config, [parameter], config.lr)
    found = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        found.append(parameter.item())
    return found


def test_sgd_with_momentum_and_weight_decay_by_hand() -> None:
    # d1 = 2 + .1*1 = 2.1, w1 = 1 - .1*2.1 = .79; d2 = 1 + .079 = 1.079, v2 = .9*2.1 + 1.079 = 2.969, w2 = .4931
    found = _steps(Optimizer(lr=0.1, momentum=0.9, weight_decay=0.1), [2.0, 1.0])
    assert found == pytest.approx([0.79, 0.4931], rel=1e-9)


def test_sgd_with_nesterov_by_hand() -> None:
    # v1 = 2, w1 = 1 - .1*(2 + .5*2) = .7; v2 = .5*2 + 1 = 2, w2 = .7 - .1*(1 + .5*2) = .5
    found = _steps(Optimizer(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.0), [2.0, 1.0])
    assert found == pytest.approx([0.7, 0.5], rel=1e-9)


def test_adamw_by_hand() -> None:
    # The first step of Adam has length lr whatever the gradient; the decay is lr * wd * w and no part of the gradient.
    found = _steps(Optimizer(name="adamw", lr=0.1, weight_decay=0.5), [3.0])
    assert found == pytest.approx([1 - 0.1 * 0.5 * 1 - 0.1], rel=1e-7)


def test_helpers_are_trained_with_the_student_and_phases_choose_their_own(lab: Any) -> None:
    spec = lab.spec("toy_bank", anchor=lab.anchor(**PLAIN))
    state = state_after(lab, spec, 7)
    fresh = new_network(lab.place.registry.backbones["resnet8_w4"], 10, DIGIT, seed=0).state_dict()
    learned = [key for key in fresh if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(state["student"][key], fresh[key]) for key in learned), "the student in the helper's phase"
    early = state_after(lab, spec, 1)
    assert not torch.equal(early["method"]["helper.0.weight"], state["method"]["helper.0.weight"])
    late = state_after(lab, spec, 10)
    assert not any(torch.equal(late["student"][key], fresh[key]) for key in learned)
    assert not torch.equal(late["method"]["helper.0.weight"], state["method"]["helper.0.weight"])


def test_a_phase_without_epochs_is_left_out_even_if_it_is_the_first(lab: Any) -> None:
    lane = lab.train([lab.spec("toy_bank", "init_epochs=0")], "runs")[0].lane
    assert [report.phase for report in lane.history] == ["main"] * 3


# --- clipping and accumulation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_bounds_the_norm_of_the_whole_gradient(lab: Any, precision: str) -> None:
    """With a rate of 1 and no momentum a step is the gradient itself."""
    anchor = lab.anchor(**{**PLAIN, "step__grad_clip_norm": 0.01}, optimizer__lr=1.0, step__precision=precision)
    spec = lab.spec("vanilla_kd", anchor=anchor)
    fresh = dict(new_network(lab.place.registry.backbones["resnet8_w4"], 10, DIGIT, seed=0).named_parameters())
    state = state_after(lab, spec, 1)["student"]
    norm = math.sqrt(sum(float((state[key] - value.detach()).double().pow(2).sum()) for key, value in fresh.items()))
    assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("mix", [{}, {"data__cutmix_alpha": 1.0}])
@pytest.mark.parametrize("chunks", [2, 5])
def test_accumulated_steps_are_those_of_the_whole_batch(lab: Any, chunks: int, mix: dict[str, Any]) -> None:
    """Without BatchNorm every image counts by itself, so how a batch is cut must not matter."""
    anchors = [lab.anchor(f"a{count}", **PLAIN, **mix, step__accumulate=count) for count in (1, chunks)]
    whole, cut = (lab.train([lab.spec("vanilla_kd", anchor=a, networks=TOY)], a.name)[0].lane for a in anchors)
    fresh = dict(new_network(lab.place.registry.backbones["toy_plain"], 10, DIGIT, seed=0).named_parameters())
    for key, value in whole.student.named_parameters():
        assert not torch.allclose(value, fresh[key], atol=1e-3), "the run did too little to tell"
        torch.testing.assert_close(dict(cut.student.named_parameters())[key], value, rtol=1e-4, atol=1e-6)
    for one, other in zip(whole.history, cut.history, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.train_accuracy == (None if mix else pytest.approx(other.train_accuracy, abs=1.0))


def test_a_bank_sees_every_image_of_an_accumulated_batch(lab: Any) -> None:
    anchors = [lab.anchor(f"a{count}", step__accumulate=count) for count in (1, 4)]
    banks = [lab.train([lab.spec("toy_bank", anchor=a)], a.name)[0].lane.method.bank for a in anchors]
    assert torch.equal(*banks), "it follows the teacher alone"


# --- precision ----------------------------------------------------------------------------------------------------


def test_low_precision_trains(lab: Any, toys: Any) -> None:
    ends = {}
    for precision in ("fp32", "bf16", "fp16"):
        anchor = lab.anchor(precision, step__precision=precision, schedule__epochs=5)
        toys.Watch.batches.clear()
        lane = lab.train([lab.spec("toy_watch", anchor=anchor)], precision)[0].lane
        first, last = lane.history[0].losses["total"], lane.history[-1].losses["total"]
        assert last < first - 0.1, precision
        assert not lane.diverged
        batch = toys.Watch.batches[-1]
        assert {batch.student.logits.dtype, batch.teacher.logits.dtype, batch.teacher.stages[0].dtype} == {
            torch.float32
        }
        assert {p.dtype for p in lane.student.parameters()} == {torch.float32}
        assert (lane.scaler.state_dict() != {}) == (precision == "fp16")
        ends[precision] = lab.digest_of(lane.student.state_dict())
        reached = lane.history[-1].test_accuracy
        assert reached > 25, precision
    assert len(set(ends.values())) == 3, "a precision was not used"


def test_the_scale_of_the_loss_does_not_reach_the_weights(lab: Any) -> None:
    """One step with scaling (fp16) is one without (bf16), but for rounding: not 1024 times as large."""
    moved = []
    fresh = dict(new_network(lab.place.registry.backbones["toy_plain"], 10, DIGIT, seed=0).named_parameters())
    for precision in ("fp16", "bf16"):
        anchor = lab.anchor(precision, **PLAIN, step__precision=precision)
        student = state_after(lab, lab.spec("vanilla_kd", anchor=anchor, networks=TOY), 1)["student"]
        moved.append(torch.cat([(student[key] - value.detach()).flatten() for key, value in fresh.items()]))
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 0.05


# --- the average of the weights -----------------------------------------------------------------------------------


def test_the_average_by_hand_over_three_steps(lab: Any) -> None:
    """The first step's weights, then 3/4 of the old average and 1/4 of the new weights, buffers included."""
    spec = lab.spec("toy_head", anchor=lab.anchor(step__ema_decay=0.75))
    states = [state_after(lab, spec, steps) for steps in (1, 2, 3)]
    floating = [key for key, value in states[0]["student"].items() if value.is_floating_point()]
    assert any("running_mean" in key for key in floating)
    for part, place in (("student", "0."), ("method", "1.")):
        for key in floating if part == "student" else states[0]["method"]:
            one, two, three = (state[part][key].double() for state in states)
            expected = 0.75 * (0.75 * one + 0.25 * two) + 0.25 * three
            torch.testing.assert_close(
                states[2]["average"]["model"][place + key].double(), expected, rtol=1e-5, atol=1e-7
            )


def test_the_average_starts_with_the_main_phase(lab: Any) -> None:
    """Nine steps in, one of them in the main phase: initial weights are no part of what is scored."""
    spec = lab.spec("toy_bank", anchor=lab.anchor(step__ema_decay=0.9))
    state = state_after(lab, spec, 9)
    for key, value in state["student"].items():
        assert torch.equal(state["average"]["model"]["0." + key], value), key


def test_the_average_is_what_is_deployed(lab: Any) -> None:
    spec = lab.spec("toy_head", anchor=lab.anchor(step__ema_decay=0.9))
    lane = lab.train([spec], "runs")[0].lane
    deployed, average = lane.deployed().state_dict(), lane.state()["average"]["model"]
    assert torch.equal(deployed["head.weight"], average["1.head.weight"])
    assert torch.equal(deployed["student.conv1.weight"], average["0.conv1.weight"])
    assert not torch.equal(deployed["head.weight"], lane.method.head.weight)
    assert not torch.equal(deployed["student.conv1.weight"], lane.student.conv1.weight)


def test_averaging_does_not_change_the_training(lab: Any) -> None:
    plain, averaged = (lab.anchor(f"e{index}", step__ema_decay=decay) for index, decay in enumerate((0.0, 0.9)))
    lanes = [lab.train([lab.spec("toy_bank", anchor=anchor)], anchor.name)[0].lane for anchor in (plain, averaged)]
    assert lanes[0].deployed() is lanes[0].student
    for part in ("student", "method", "optimizers"):
        assert lab.digest_of(lanes[0].state()[part]) == lab.digest_of(lanes[1].state()[part])
