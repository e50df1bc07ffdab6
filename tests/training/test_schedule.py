"""What changes from epoch to epoch, against values computed by hand and against the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.config.schema import Loss, Schedule
from kdbench.method import Supervised
from kdbench.schedule import learning_rate, loss_protocol, ordered_weights, temperature
from kdbench.types import LossWeights

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "asib"


def rates(base: float, **schedule: Any) -> list[float]:
    made = Schedule(**schedule)
    return [learning_rate(made, base, epoch) for epoch in range(made.epochs)]


def test_cosine_with_warm_up() -> None:
    # Four epochs after the warm-up: cosines of 0, 45, 90 and 135 degrees.
    found = rates(0.8, name="cosine", epochs=6, warmup_epochs=2, min_lr=0.2)
    assert found == pytest.approx([0.4, 0.8, 0.8, 0.2 + 0.3 * 1.7071067811865475, 0.5, 0.2 + 0.3 * 0.2928932188134524])


def test_step_multiplies_at_its_milestones() -> None:
    found = rates(1.0, name="step", epochs=7, milestones=(2, 5), gamma=0.1)
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_constant_and_its_warm_up() -> None:
    assert rates(0.3, name="constant", epochs=3) == [0.3] * 3
    assert rates(0.4, name="constant", epochs=4, warmup_epochs=2) == pytest.approx([0.2, 0.4, 0.4, 0.4])


def test_a_warm_up_is_shorter_than_its_phase() -> None:
    """A phase of two epochs under an anchor with five of warm-up reaches its full rate in the second."""
    schedule = Schedule(name="cosine", epochs=240, warmup_epochs=5)
    assert [learning_rate(schedule, 0.1, epoch, 2) for epoch in range(2)] == pytest.approx([0.1, 0.1])
    assert [learning_rate(schedule, 0.1, epoch, 3) for epoch in range(3)] == pytest.approx([0.05, 0.1, 0.1])
    assert learning_rate(schedule, 0.1, 0, 1) == 0.1


def test_a_phase_has_its_own_length() -> None:
    schedule = Schedule(name="cosine", epochs=100)
    assert [learning_rate(schedule, 1.0, epoch, 2) for epoch in range(2)] == pytest.approx([1.0, 0.5])


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="needs the shared reference files")
@pytest.mark.parametrize("file", ["schedules_11.npz", "schedules_12.npz"])
def test_rates_and_temperatures_against_the_reference(file: str) -> None:
    with np.load(GOLDENS / file) as archive:
        cases = json.loads(str(archive["cases"]))
    checked = 0
    for case in cases:
        if case["fn"] == "lr":
            found = rates(case["cfg"]["lr"], **_as_ours(case["cfg"], case["E_total"]))
        elif case["fn"] == "tau_B" and "tau_start" not in case["cfg"]:
            loss = Loss(ce_alpha=1, kd_alpha=0, **case["cfg"])
            found = [temperature(loss, epoch % case["E_stage"], case["E_stage"]) for epoch in case["epochs"]]
        else:
            continue
        assert found == pytest.approx(case["out"], rel=1e-12), case
        checked += 1
    assert checked == 6


def _as_ours(config: dict[str, Any], epochs: int) -> dict[str, Any]:
    if config["type"] == "none":  # the reference does not warm up a rate that stays
        return {"name": "constant", "epochs": epochs}
    warmup = config["lr_warmup_epochs"]
    common = {"name": config["type"], "epochs": epochs, "warmup_epochs": warmup}
    if config["type"] == "step":
        milestones = tuple(range(warmup + config["step_size"], epochs, config["step_size"]))
        return {**common, "milestones": milestones, "gamma": config["gamma"]}
    return {**common, "min_lr": config["min_lr"]}


def test_temperature() -> None:
    assert temperature(Loss(ce_alpha=1, kd_alpha=0, tau=3.0), 7, 10) == 3.0
    ramp = Loss(ce_alpha=1, kd_alpha=0, tau=3.0, tau_schedule=(2.0, 5.0))
    assert [temperature(ramp, epoch, 4) for epoch in range(4)] == pytest.approx([2, 3, 4, 5])
    assert temperature(ramp, 0, 1) == 2.0


class Weighty(Supervised):
    published = LossWeights(ce=0.1, kd=25.0)


class Taught(Weighty):
    uses_teacher = True


def test_the_loss_protocol_takes_weights_from_the_anchor_or_the_method(lab: Any) -> None:
    changes = {"loss__ce_label_smoothing": 0.2, "loss__tau_schedule": (2.0, 6.0), "loss__kd_teacher_index": 1}
    own = lab.anchor(**changes, loss__kd_target="weighted_conf", loss__teacher_weights=(1.0, 3.0))
    protocol = loss_protocol(own, Taught, 1, 5)
    assert (protocol.ce_weight, protocol.kd_weight) == (0.65, 0.35)
    assert (protocol.tau, protocol.label_smoothing, protocol.kd_target) == (3.0, 0.2, "weighted_conf")
    assert (protocol.teacher_index, protocol.teacher_weights) == (1, (1.0, 3.0))
    published = loss_protocol(lab.anchor(loss__weights="published"), Weighty, 0, 5)
    assert (published.ce_weight, published.kd_weight, published.tau) == (0.1, 25.0, 4.0)


def test_weights_bound_to_names_take_the_order_of_the_pair() -> None:
    def bound(weights: Any) -> Loss:
        return Loss(ce_alpha=1, kd_alpha=0, teacher_weights=weights)

    named = bound({"wide": 0.4, "deep": 0.6})
    assert ordered_weights(named, ("deep", "wide")) == (0.6, 0.4)
    assert ordered_weights(named, ("wide", "deep")) == (0.4, 0.6)
    assert ordered_weights(bound([3, 1]), ("deep", "wide")) == (3.0, 1.0)
    assert ordered_weights(bound(None), ("deep", "wide")) is None
    for teachers in (("deep",), ("deep", "wide", "old"), ("deep", "tall"), ()):
        with pytest.raises(ValueError, match="name exactly its teachers"):
            ordered_weights(named, teachers)
    with pytest.raises(ValueError, match="more than once; give a list"):
        ordered_weights(named, ("deep", "deep"))


def test_a_method_without_a_teacher_has_no_weights_for_any(lab: Any) -> None:
    anchor = lab.anchor(loss__teacher_weights={"wide": 0.4, "deep": 0.6})
    assert loss_protocol(anchor, Weighty, 0, 5).teacher_weights is None
    assert loss_protocol(anchor, Taught, 0, 5, ("deep", "wide")).teacher_weights == (0.6, 0.4)
    with pytest.raises(ValueError, match="name exactly its teachers"):
        loss_protocol(anchor, Taught, 0, 5)  # never equal weights in silence


def test_the_rates_of_a_run_are_those_of_its_schedule(lab: Any) -> None:
    schedule = {"schedule__epochs": 4, "schedule__warmup_epochs": 2, "schedule__min_lr": 0.0}
    anchor = lab.anchor(**schedule, optimizer__lr_by_student={"resnet8_w4": 0.2})
    history = lab.train([lab.spec("toy_bank", anchor=anchor)], "runs")[0].lane.history
    found = [(report.phase, report.epoch, report.epochs, report.learning_rate) for report in history]
    assert [entry[:3] for entry in found] == [
        ("init", 0, 2), ("init", 1, 2), ("main", 0, 4), ("main", 1, 4), ("main", 2, 4), ("main", 3, 4),
    ]  # fmt: skip
    # The phase of the helper states 0.02 itself; the student's rate is the anchor's for this student.
    assert [entry[3] for entry in found] == pytest.approx([0.02, 0.02, 0.1, 0.2, 0.2, 0.1])
