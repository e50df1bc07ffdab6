"""What a phase says of the student, the teachers, mixing and precision is what its steps do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.config.schema import Optimizer
from kdbench.method import Batch, Losses, Phase, Setup
from kdbench.training.networks import new_network
from kdbench.types import StageShape, Taps

TRAIN = 160
HEAVY = Optimizer(name="adamw", lr=0.05, weight_decay=0.5)


def fresh(lab: Any) -> dict[str, torch.Tensor]:
    backbone = lab.place.registry.backbones["resnet8_w4"]
    state: dict[str, torch.Tensor] = new_network(backbone, 10, StageShape((1, 8, 8)), seed=0).state_dict()
    return state


def watching(**switches: Any) -> Any:
    """Return the phases of a helper with such switches, given everything to train, before the main one."""

    def phases(self: Any) -> tuple[Phase, ...]:
        return (Phase("helper", 1, self.watch, optimizer=HEAVY, **switches), Phase())

    return phases


def watch(self: Any, batch: Batch) -> Losses:
    self.seen.append(batch)
    return self.shrink(batch)


@pytest.mark.parametrize("changes", [{}, {"step__precision": "fp16"}, {"step__ema_decay": 0.9, "step__accumulate": 2}])
def test_a_student_in_eval_mode_runs_and_keeps_every_bit(lab: Any, changes: dict[str, Any]) -> None:
    """Weights, statistics and counts, though the optimizer is given all of it and decays weights; it is metered."""
    kind = lab.probe("watches", phases=watching(student="eval"), watch=watch)
    spec = lab.spec("watches", anchor=lab.anchor(**changes))
    state = lab.stopped(spec, "cut", 4)
    for key, value in fresh(lab).items():
        assert torch.equal(state["student"][key], value), key
    assert state["counters"]["student_forwards"] == TRAIN
    assert not any(batch.student.logits.requires_grad for batch in kind.seen)
    assert all(batch.student.logits.shape[1] == 10 for batch in kind.seen)
    if not changes:
        student = new_network(lab.place.registry.backbones["resnet8_w4"], 10, StageShape((1, 8, 8)), seed=0).eval()
        data = lab.train([spec], "cut")[0].data
        student.set_normalisation(data.mean, data.std)
        said = student(kind.seen[0].images, Taps()).logits
        torch.testing.assert_close(kind.seen[0].student.logits, said, rtol=1e-4, atol=1e-5)


def test_a_student_in_train_mode_follows_its_batches_even_where_nothing_reaches_it(lab: Any) -> None:
    lab.probe("watches", phases=watching(student="train"), watch=watch)
    state, new = lab.stopped(lab.spec("watches"), "cut", 4)["student"], fresh(lab)
    moved = {key for key, value in new.items() if not torch.equal(state[key], value)}
    assert moved == {key for key in new if "running" in key or "num_batches" in key}


@pytest.mark.parametrize("teachers", [True, False])
@pytest.mark.parametrize("mixes", [True, False])
def test_teachers_and_mixing_are_had_where_the_phase_says_so(lab: Any, teachers: bool, mixes: bool) -> None:
    kind = lab.probe("watches", phases=watching(teachers=teachers, mixes=mixes), watch=watch)
    lane = lab.train([lab.spec("watches", anchor=lab.anchor(data__mixup_alpha=1.0))], "runs")[0].lane
    assert lane.failure is None
    assert {len(batch.teachers) for batch in kind.seen} == {int(teachers)}
    assert {batch.mix is not None for batch in kind.seen} == {mixes}
    assert lane.counters.teacher_forwards == TRAIN * (3 + teachers)


@pytest.mark.parametrize("full", [True, False])
def test_full_precision_holds_for_student_teachers_and_own_networks(lab: Any, full: bool) -> None:
    """A network's outputs are told from those of bfloat16 by bits that it does not have."""

    def prepare(self: Any, setup: Setup) -> None:
        self.run = setup.run
        self.seen.append(setup.teachers[0])

    def see(self: Any, batch: Batch) -> Losses:
        with torch.no_grad():
            own = self.run(self.seen[0], batch.images, Taps()).logits
        self.seen.append([batch.student.logits, batch.teacher.logits, own])
        return self.shrink(batch)

    kind = lab.probe("watches", phases=watching(full_precision=full), watch=see, prepare=prepare)
    lane = lab.train([lab.spec("watches", anchor=lab.anchor(step__precision="bf16"))], "runs")[0].lane
    assert lane.failure is None
    assert len(kind.seen) == 1 + lab.steps
    for said in kind.seen[1:]:
        assert {logits.dtype for logits in said} == {torch.float32}
        assert {torch.equal(logits, logits.bfloat16().float()) for logits in said} == {not full}


def test_the_main_phase_after_a_full_one_is_in_the_anchors_precision(lab: Any) -> None:
    """The same student as without the phase, bit for bit."""
    lab.probe("watches", phases=watching(full_precision=True, student="off"), watch=watch)
    lab.probe("plain")
    anchor = lab.anchor(step__precision="bf16")
    one, other = (lab.train([lab.spec(name, anchor=anchor)], name)[0].lane for name in ("watches", "plain"))
    assert lab.digest_of(one.student.state_dict()) == lab.digest_of(other.student.state_dict())


def test_a_phase_of_no_epochs_is_left_out(lab: Any) -> None:
    def phases(self: Any) -> tuple[Phase, ...]:
        none = Phase("none", 0, self.watch, optimizer=HEAVY)
        return (Phase("a", 0, main=True), none, Phase("b", 3, main=True), Phase("after", 0, self.watch))

    kind = lab.probe("watches", phases=phases, watch=watch)
    lab.probe("plain")
    one, other = (lab.train([lab.spec(name)], name)[0].lane for name in ("watches", "plain"))
    assert kind.seen == []
    assert [report.phase for report in one.history] == ["b"] * 3
    assert lab.digest_of(one.student.state_dict()) == lab.digest_of(other.student.state_dict())
    spec = lab.spec("watches")
    lab.stopped(spec, "cut", 2)
    assert lab.digest_after(spec, "cut") == lab.digest(one)
