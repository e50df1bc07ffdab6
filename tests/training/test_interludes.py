"""Between epochs a method looks, keeps and restores: in eval mode and float32, metered, and the same after a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.backbones.freezing import FreezeLevel
from kdbench.config.schema import Optimizer
from kdbench.method import Interlude, Phase, Setup
from kdbench.types import Taps

VALIDATION, TRAIN = 40, 160
OWN = Optimizer(name="adam", lr=0.01, weight_decay=0.0)


def modes(lane: SimpleNamespace | Any, method: Any) -> list[bool]:
    return [part.training for part in (*lane.student.modules(), *method.modules())]


def phases(self: Any) -> tuple[Phase, ...]:
    helper = Phase("helper", 1, self.of_helper, self.helper.parameters, student="off")
    return (helper, Phase("part0", 1, main=True), replace(helper, name="again"), Phase("part1", 2, main=True))


# --- what is asked when, and how --------------------------------------------------------------------------------------


def test_hooks_are_called_in_order_with_what_the_epoch_showed(lab: Any) -> None:
    def before(self: Any, interlude: Interlude) -> None:
        assert (interlude.means, interlude.validation_accuracy) == ({}, None)
        self.seen.append(("before", interlude.phase.name, interlude.epoch))

    def after(self: Any, interlude: Interlude) -> Mapping[str, float | str]:
        assert interlude.phase.is_main == (interlude.validation_accuracy is not None)
        assert "total" in interlude.means
        assert "correct" not in interlude.means
        self.seen.append(("after", interlude.phase.name, interlude.epoch))
        return {"accuracy": interlude.validation_accuracy or 0.0, "word": interlude.phase.name, **interlude.means}

    kind = lab.probe("asked", before_phase=before, after_epoch=after, phases=phases)
    lane = lab.train([lab.spec("asked")], "runs")[0].lane
    assert lane.failure is None
    assert kind.seen == [
        ("before", "helper", 0),
        ("after", "helper", 1),
        ("before", "part0", 0),
        ("after", "part0", 1),
        ("before", "again", 0),
        ("after", "again", 1),
        ("before", "part1", 0),
        ("after", "part1", 1),
        ("after", "part1", 2),
    ]
    for report in lane.history:
        own = report.metrics
        assert own["word"] == report.phase
        assert own["total"] == report.losses["total"]
        assert own["accuracy"] == (report.validation_accuracy or 0.0)


def test_a_look_shows_the_split_in_order_in_eval_mode_and_float32(lab: Any) -> None:
    """What it says is what the student says when it is asked alone, in float32, though training is in bfloat16."""

    def after(self: Any, interlude: Interlude) -> Mapping[str, float]:
        assert not torch.is_grad_enabled()
        batches = list(interlude.look(None))
        assert not any(modes(interlude, self))
        self.seen.append((batches, interlude.student(torch.cat([b.images for b in batches]), Taps())))
        return {}

    kind = lab.probe("looks", after_epoch=after)
    anchor = lab.anchor(step__precision="bf16", evaluation__batch_size=16, data__cutmix_alpha=1.0)
    (entry,) = lab.train([lab.spec("looks", anchor=anchor)], "runs")
    assert entry.lane.failure is None
    split = entry.data.validation
    for batches, said in kind.seen:
        assert [len(batch.labels) for batch in batches] == [16, 16, 8]
        assert torch.cat([batch.index for batch in batches]).tolist() == list(range(VALIDATION))
        assert torch.equal(torch.cat([batch.images for batch in batches]), split.images.float() / 255)
        assert torch.equal(torch.cat([batch.labels for batch in batches]), split.labels)
        assert all(batch.mix is None and len(batch.teachers) == 1 for batch in batches)
        torch.testing.assert_close(torch.cat([b.student.logits for b in batches]), said.logits, rtol=1e-5, atol=1e-5)
        low = said.logits.bfloat16().float()
        assert (said.logits - low).abs().max() > 1e-4, "float32 could not be told from bfloat16"
        assert batches[0].student.embedding is not None


def test_a_network_of_the_methods_own_is_run_in_float32_while_it_looks(lab: Any) -> None:
    def prepare(self: Any, setup: Setup) -> None:
        self.run = setup.run

    def after(self: Any, interlude: Interlude) -> Mapping[str, float]:
        (batch,) = interlude.look(1)
        said = self.run(interlude.student, batch.images, Taps()).logits
        return {"same": float(torch.equal(said, batch.student.logits))}

    lab.probe("runs", prepare=prepare, after_epoch=after)
    lane = lab.train([lab.spec("runs", anchor=lab.anchor(step__precision="bf16"))], "runs")[0].lane
    assert [report.metrics["same"] for report in lane.history] == [1.0] * 3
    assert lane.precision == "fp32", "also once it has finished, when it is evaluated"


@pytest.mark.parametrize("first", [0, 1, 2, None])
def test_a_look_is_metered(lab: Any, first: int | None) -> None:
    def before(self: Any, interlude: Interlude) -> None:
        for _ in interlude.look(first):
            pass

    lab.probe("looks", before_phase=before, phases=phases)
    anchor = lab.anchor(evaluation__batch_size=16)
    counters = lab.train([lab.spec("looks", anchor=anchor)], "runs")[0].lane.counters
    images = {0: 0, 1: 16, 2: 32, None: VALIDATION}[first]
    # Once before each of two phases that run the student, and two that do not.
    assert counters.student_forwards == 3 * TRAIN + 2 * images
    assert counters.teacher_forwards == 5 * TRAIN + 4 * images
    assert counters.images == 5 * TRAIN


def test_own_forwards_are_metered_in_steps_and_looks_and_shared_teachers_may_rest(lab: Any) -> None:
    def before(self: Any, interlude: Interlude) -> None:
        self.seen.extend(batch.teachers for batch in interlude.look(None))

    def own(self: Any) -> tuple[Phase, ...]:
        shrink = Phase("a", 2, self.shrink, self.helper.parameters, student="off", teachers=False, own_forwards=3)
        return (shrink, Phase(losses=self.of_ce, teachers=False, own_forwards=2))

    def of_ce(self: Any, batch: Any) -> Any:
        self.seen.append(batch.teachers)
        return {"ce": batch.supervised()}

    kind = lab.probe("owns", before_phase=before, phases=own, of_ce=of_ce)
    lab.probe("taught")
    alone = lab.train([lab.spec("owns")], "runs")[0].lane
    assert alone.failure is None
    assert kind.seen == [()] * len(kind.seen)
    assert len(kind.seen) == 2 + 3 * lab.steps
    assert alone.counters.teacher_forwards == 3 * (2 * TRAIN + VALIDATION) + 2 * (3 * TRAIN + VALIDATION)
    beside, taught = (e.lane for e in lab.train([lab.spec("owns"), lab.spec("taught")], "both"))
    assert lab.digest(beside) == lab.digest(alone)
    assert taught.counters.teacher_forwards == 3 * TRAIN, "it bears the shared teachers alone"


def test_without_a_validation_split_there_is_nothing_to_see(lab: Any) -> None:
    def after(self: Any, interlude: Interlude) -> Mapping[str, float]:
        assert interlude.validation_accuracy is None
        return {"batches": float(len(list(interlude.look(None))))}

    lab.probe("looks", after_epoch=after)
    lane = lab.train([lab.spec("looks", anchor=lab.anchor(data__validation_fraction=0.0))], "runs")[0].lane
    assert [report.metrics["batches"] for report in lane.history] == [0.0] * 3
    assert lane.counters.student_forwards == 3 * (TRAIN + VALIDATION)


def test_what_is_reported_is_json(lab: Any) -> None:
    lab.probe("says", after_epoch=lambda _self, _i: {"nan": float("nan"), "tensor": torch.tensor(2.5), "word": "yes"})
    lane = lab.train([lab.spec("says")], "runs")[0].lane
    assert [report.metrics for report in lane.history] == [{"nan": None, "tensor": 2.5, "word": "yes"}] * 3


# --- looks that end otherwise -----------------------------------------------------------------------------------------


def breaks_off(self: Any, interlude: Interlude) -> None:
    for _ in interlude.look(None):
        break


def catches(self: Any, interlude: Interlude) -> None:
    with suppress(ZeroDivisionError):
        for _ in interlude.look(None):
            raise ZeroDivisionError


def keeps(self: Any, interlude: Interlude) -> None:
    look = interlude.look(None)
    next(look)
    self.seen.append(look)


def interleaves(self: Any, interlude: Interlude) -> None:
    one, other = interlude.look(None), interlude.look(None)
    next(one)
    next(other)
    one.close()  # type: ignore[attr-defined]
    assert not any(modes(interlude, self))
    for batch in other:
        assert torch.equal(batch.student.logits, interlude.student(batch.images, Taps()).logits)


@pytest.mark.parametrize("when", ["before_phase", "after_epoch"])
@pytest.mark.parametrize("look", [breaks_off, catches, keeps, interleaves], ids=lambda look: look.__name__)
def test_however_a_look_ends_training_goes_on_as_it_was(lab: Any, look: Callable[..., None], when: str) -> None:
    def losses(self: Any, batch: Any) -> Any:
        assert all(modes(SimpleNamespace(student=nn.Module()), self))
        assert batch.student.logits.requires_grad
        return super(type(self), self).losses(batch)

    def hook(self: Any, interlude: Interlude) -> Mapping[str, float]:
        look(self, interlude)
        return {}

    lab.probe("plain")
    lab.probe("looks", losses=losses, **{when: hook})
    anchor = lab.anchor(step__precision="bf16", evaluation__batch_size=16)
    plain, looks = (lab.train([lab.spec(name, anchor=anchor)], name)[0].lane for name in ("plain", "looks"))
    assert looks.failure is None
    assert lab.digest_of(looks.student.state_dict()) == lab.digest_of(plain.student.state_dict())
    assert [r.losses for r in looks.history] == [r.losses for r in plain.history]


def test_a_look_is_not_for_training(lab: Any) -> None:
    def before(self: Any, interlude: Interlude) -> None:
        self.seen.append(interlude)

    def losses(self: Any, batch: Any) -> Any:
        next(self.seen[0].look(None))
        return {"ce": batch.supervised()}

    lab.probe("late", before_phase=before, losses=losses)
    lane = lab.train([lab.spec("late")], "runs")[0].lane
    assert "look() was used in training; it is for before_phase and after_epoch" in str(lane.failure)


def test_what_is_noted_of_a_look_is_not_part_of_the_epoch(lab: Any) -> None:
    def before(self: Any, interlude: Interlude) -> None:
        for batch in interlude.look(None):
            batch.note("one", 100.0)

    def losses(self: Any, batch: Any) -> Any:
        batch.note("one", 1.0)
        return {"ce": batch.supervised()}

    lab.probe("notes", before_phase=before, losses=losses)
    lane = lab.train([lab.spec("notes")], "runs")[0].lane
    assert [report.metrics for report in lane.history] == [{"one": 1.0}] * 3


def test_batchnorms_that_are_frozen_stay_so_after_a_look(lab: Any) -> None:
    def after(self: Any, interlude: Interlude) -> Mapping[str, float]:
        breaks_off(self, interlude)
        return {}

    lab.probe(
        "frozen",
        after_epoch=after,
        before_phase=breaks_off,
        phases=lambda _self: (Phase(freeze=FreezeLevel(0, freeze_bn=True)),),
    )
    spec = lab.spec("frozen", anchor=lab.anchor(freezing__use_partial_freeze=True))
    one, end = lab.stopped(spec, "cut", 1)["student"], lab.train([spec], "whole")[0].lane
    kept = [key for key in one if "running" in key]
    assert kept
    assert all(torch.equal(end.student.state_dict()[key], one[key]) for key in kept)
    assert not torch.equal(end.student.state_dict()["fc.weight"], one["fc.weight"])


# --- faults -----------------------------------------------------------------------------------------------------------


def raises(self: Any, interlude: Interlude) -> None:
    for _ in interlude.look(None):
        raise ZeroDivisionError("by the method")


@pytest.mark.parametrize(
    ("when", "where"),
    [("before_phase", "phase 'main', epoch 1"), ("after_epoch", "phase 'main', epoch 1")],
)
def test_a_hook_that_raises_ends_its_own_lane(lab: Any, when: str, where: str) -> None:
    lab.probe("sound")
    lab.probe("faulty", **{when: raises})
    expected = lab.train([lab.spec("sound")], "alone")[0].lane
    faulty, sound = (e.lane for e in lab.train([lab.spec("faulty"), lab.spec("sound")], "both"))
    assert str(faulty.failure) == "by the method"
    assert faulty.failed_in == where
    assert sound.failure is None
    assert lab.digest_of(sound.student.state_dict()) == lab.digest_of(expected.student.state_dict())
    (record, _) = lab.run([lab.spec("faulty"), lab.spec("sound")], "records")
    assert record.status == "infra_failed"
    assert "by the method" in record.reason


@pytest.mark.parametrize("when", ["before_phase", "after_epoch"])
def test_what_asks_too_much_of_the_device_is_nobodys_fault_in_company(lab: Any, when: str) -> None:
    def hungry(self: Any, interlude: Interlude) -> None:
        raise MemoryError("too much")

    lab.probe("sound")
    lab.probe("hungry", **{when: hungry})
    assert isinstance(lab.train([lab.spec("hungry")], "alone")[0].lane.failure, MemoryError)
    with pytest.raises(MemoryError, match="too much"):
        lab.train([lab.spec("hungry"), lab.spec("sound")], "both")


def reset(self: Any, interlude: Interlude) -> Mapping[str, float]:
    if self.due(interlude):
        interlude.student.fc.weight.mul_(1.0)  # not even its value has to change
    return {}


@pytest.mark.parametrize(
    ("due", "message"),
    [
        (lambda i: i.phase.name == "part1" and i.epoch == 2, "after_epoch changed the student after its last epoch"),
        (lambda i: i.phase.name == "late" and i.epoch == 1, "after_epoch changed the student after its last epoch"),
        (lambda i: i.phase.name == "late" and i.epoch == 0, "before_phase changed the student after its last epoch"),
        (lambda i: i.phase.name != "late" and not (i.phase.name == "part1" and i.epoch == 2), ""),
    ],
    ids=["last", "after", "before", "sooner"],
)
def test_the_student_is_not_changed_once_it_is_scored(lab: Any, due: Callable[..., bool], message: str) -> None:
    def course(self: Any) -> tuple[Phase, ...]:
        return (*phases(self), Phase("late", 1, self.of_helper, self.helper.parameters, student="off"))

    hooks = {"due": lambda _self, interlude: due(interlude), "before_phase": reset, "after_epoch": reset}
    lab.probe("resets", phases=course, **hooks)
    lane = lab.train([lab.spec("resets")], "runs")[0].lane
    if not message:
        assert lane.failure is None
        return
    assert message in str(lane.failure)
    assert len(lane.history) == (5 if "late" in lane.failed_in else 4)


# --- the average ------------------------------------------------------------------------------------------------------


def test_the_average_over_parts_and_looks(lab: Any) -> None:
    """It starts with the student's first step, rests in phases between, and is the average of all its own steps."""

    def course(self: Any) -> tuple[Phase, ...]:
        head = Phase("eval", 1, self.of_helper, self.helper.parameters, student="eval", optimizer=OWN)
        return (
            replace(head, name="first"),
            Phase("part0", 1, main=True),
            head,
            Phase("part1", 2, main=True),
            replace(head, name="last"),
        )

    lab.probe("averaged", phases=course)
    spec = lab.spec("averaged", anchor=lab.anchor(step__ema_decay=0.75))
    states = {steps: lab.stopped(spec, str(steps), steps) for steps in (5, 6, 7, 8, 12, 13, 23)}
    end = lab.train([spec], "whole")[0].lane.state()
    names = [key for key, value in states[5]["student"].items() if value.is_floating_point()]

    def average(state: dict[str, Any], key: str) -> Tensor:
        return state["average"]["model"][f"0.{key}"]

    for key in names:
        value = states[5]["student"][key]
        assert torch.equal(average(states[5], key), value), "initial weights are no part of it"
        for steps in (6, 7, 8, 13):
            value = 0.75 * value + 0.25 * states[steps]["student"][key]
            torch.testing.assert_close(average(states[steps], key), value, rtol=1e-5, atol=1e-6)
        assert torch.equal(average(states[12], key), average(states[8], key)), "it rests in eval mode"
        assert torch.equal(average(end, key), average(states[23], key))
        assert torch.equal(end["student"][key], states[23]["student"][key])
    helper = states[12]["method"]["helper.weight"]
    assert torch.equal(states[12]["average"]["model"]["1.helper.weight"], helper), "helpers are taken as they are"
