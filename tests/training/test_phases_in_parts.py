"""A main phase in parts is the main phase in one: rate, order, dropout, optimizer, temperature and average go on."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdbench.method import Batch, Losses, Phase, View
from kdbench.phases import check_phases
from kdbench.store import EPOCHS
from kdbench.training.trainer import SCORED_EPOCHS


def split(*parts: int, between: int = 2) -> Any:
    """Return the phases of a main phase in parts, with one of the helper's after each but the last."""

    def phases(self: Any) -> tuple[Phase, ...]:
        made: list[Phase] = []
        for number, epochs in enumerate(parts):
            if number:
                name, chosen = f"helper{number}", self.helper.parameters
                made.append(Phase(name, between, self.of_helper, chosen, learning_rate=0.05, student="off"))
            made.append(Phase(f"part{number}", epochs, main=True))
        return tuple(made)

    return phases


def main_of(lane: Any) -> list[dict[str, Any]]:
    """Return what the reports of the main phase say, but for names and times."""
    shown = {"learning_rate", "losses", "metrics", "train_accuracy", "validation_accuracy", "test_accuracy"}
    parts = [phase.name for phase in lane.phases if phase.is_main]
    return [report.model_dump(include=shown) for report in lane.history if report.phase in parts]


# Too fast to do better in every epoch.
FAST = {"optimizer__lr": 3.0, "schedule__warmup_epochs": 0, "schedule__epochs": 5, "step__grad_clip_norm": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {"schedule__warmup_epochs": 1, "step__ema_decay": 0.9, "data__cutmix_alpha": 1.0},
    "onecycle": {"schedule__name": "onecycle", "optimizer__name": "adamw", "optimizer__nesterov": False},
    "step": {"schedule__name": "step", "schedule__milestones": (2, 3), "step__accumulate": 2},
    "plateau": {"schedule__name": "reduce_on_plateau", "schedule__plateau_patience": 0, **FAST},
    "fp16": {"step__precision": "fp16", "optimizer__name": "adam", "optimizer__nesterov": False},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_parts_are_the_whole(lab: Any, changes: dict[str, Any]) -> None:
    lab.probe("whole")
    lab.probe("parts", phases=split(2, 2, 1))
    anchor = lab.anchor(**{"schedule__epochs": 5, **changes})
    whole, parts = (lab.train([lab.spec(name, anchor=anchor)], name)[0].lane for name in ("whole", "parts"))
    assert (whole.failure, parts.failure) == (None, None)
    assert [report.phase for report in parts.history] == (
        ["part0"] * 2 + ["helper1"] * 2 + ["part1"] * 2 + ["helper2"] * 2 + ["part2"]
    )
    assert lab.digest_of(parts.student.state_dict()) == lab.digest_of(whole.student.state_dict())
    assert lab.digest_of(parts.deployed().state_dict()) == lab.digest_of(whole.deployed().state_dict())
    assert main_of(parts) == main_of(whole)
    rates = [report["learning_rate"] for report in main_of(whole)]
    assert len(set(rates)) > 1, "the rate does not move, so nothing is said of it"
    assert not torch.equal(parts.method.helper.weight, whole.method.helper.weight), "the phases between did nothing"


def test_the_epochs_of_the_student_are_counted_in_parts_alone(lab: Any) -> None:
    lab.probe("whole")
    lab.probe("parts", phases=split(1, 2))
    whole, parts = (lab.train([lab.spec(name)], name)[0].lane for name in ("whole", "parts"))
    assert [report.student_epoch for report in parts.history] == [0, None, None, 1, 2]
    assert [(report.epoch, report.epochs) for report in parts.history] == [(0, 1), (0, 2), (1, 2), (0, 2), (1, 2)]
    assert [report.student_epoch for report in whole.history] == [None] * 3


def test_exactly_the_last_five_epochs_of_the_student_are_tested(lab: Any) -> None:
    lab.probe("parts", phases=split(3, 2, 2, between=1))
    anchor = lab.anchor(schedule__epochs=7, evaluation__every=100)
    (record,) = lab.run([lab.spec("parts", anchor=anchor)], "runs")
    assert record.status == "ok", record.reason
    (folder,) = lab.folders([lab.spec("parts", anchor=anchor)], "runs")
    reports = [json.loads(line) for line in (folder.path / EPOCHS).read_text().splitlines()]
    found = {report["student_epoch"]: report["test_accuracy"] for report in reports}
    tested = {epoch: accuracy for epoch, accuracy in found.items() if accuracy is not None}
    assert list(tested) == list(range(7 - SCORED_EPOCHS, 7))
    assert record.accuracy.last5_mean == pytest.approx(sum(tested.values()) / SCORED_EPOCHS)
    assert record.accuracy.last == tested[6]


@pytest.mark.parametrize("stop", [1, 4, 5, 8, 11, 12, 17])
def test_a_run_in_parts_resumes_exactly(lab: Any, stop: int) -> None:
    lab.probe("parts", phases=split(1, 2))
    spec = lab.spec("parts", anchor=lab.anchor(step__ema_decay=0.9, data__mixup_alpha=0.4))
    lab.stopped(spec, "cut", stop)
    assert lab.digest_after(spec, "cut") == lab.digest_after(spec, "whole")


# --- beside other lanes -----------------------------------------------------------------------------------------------


def kept(self: Any, batch: Batch) -> Losses:
    self.seen.append(batch.index.tolist())
    return {"ce": batch.supervised(self.drop(batch.student.logits)), "kd": batch.kd()}


def test_lanes_in_parts_and_in_one_see_the_same_batches_and_end_as_if_alone(lab: Any) -> None:
    kinds = [
        lab.probe("whole", losses=kept),
        lab.probe("parts", losses=kept, phases=split(1, 2)),
        lab.probe("others", losses=kept, phases=split(2, 1)),
    ]
    specs = [lab.spec(kind.name) for kind in kinds]
    together = lab.train(specs, "together")
    assert len(kinds[0].seen) == 3 * lab.steps
    assert kinds[0].seen == kinds[1].seen == kinds[2].seen
    for first in range(0, 3 * lab.steps, lab.steps):
        shown = sorted(index for batch in kinds[0].seen[first : first + lab.steps] for index in batch)
        assert shown == list(range(160)), "an epoch shows each image once"
    for spec, entry in zip(specs, together, strict=True):
        alone = lab.train([spec], "alone")[0].lane
        # Of the teachers' passes lanes share the cost; nothing else may depend on who is beside them.
        one, other = ({**lab.timeless(lane.state()), "counters": None} for lane in (entry.lane, alone))
        assert lab.digest_of(one) == lab.digest_of(other), spec.method
        assert entry.lane.counters.teacher_forwards < alone.counters.teacher_forwards


def test_a_cohort_with_parts_is_cut_anywhere(lab: Any) -> None:
    lab.probe("whole")
    lab.probe("parts", phases=split(1, 2))
    specs = [lab.spec("whole"), lab.spec("parts")]
    expected = [lab.digest(entry.lane) for entry in lab.train(specs, "undisturbed")]
    for steps in (2, 3, 5, 4):
        with pytest.raises(Exception, match="stopped"):
            lab.train(specs, "cut", should_stop=lab.stop_after(steps))
    assert [lab.digest(entry.lane) for entry in lab.train(specs, "cut")] == expected


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"loss__tau_start": 6.0, "loss__tau_end": 2.0}, [6, 2 + 4 * 2 / 3, 2 + 4 / 3]),
        ({"loss__tau_schedule": (4.0, 1.0)}, [4, 4, 1]),
        ({"loss__tau": 3.0}, [3, 3, 3]),
    ],
    ids=["course", "schedule", "constant"],
)
def test_the_temperature_over_parts_by_hand(lab: Any, loss: dict[str, Any], expected: list[float]) -> None:
    """A course spans the student's epochs; ``tau_schedule`` starts anew in each part, of one epoch and of two."""

    def losses(self: Any, batch: Batch) -> Losses:
        self.seen.append(batch.tau)
        return {"ce": batch.supervised()}

    kind = lab.probe("parts", losses=losses, phases=split(1, 2))
    lab.train([lab.spec("parts", anchor=lab.anchor(**loss))], "runs")
    assert kind.seen[:: lab.steps] == pytest.approx(expected)
    assert len(kind.seen) == 3 * lab.steps


# --- other phases -----------------------------------------------------------------------------------------------------


def test_the_rate_of_another_phase_does_not_follow_the_students_accuracy(lab: Any) -> None:
    """On a plateau the main phase slows down; a phase after it measures nothing, so its rate stays."""

    def phases(self: Any) -> tuple[Phase, ...]:
        return (Phase(), Phase("head", 3, self.of_helper, self.helper.parameters, learning_rate=0.1, student="off"))

    lab.probe("late", phases=phases)
    changes = {"schedule__name": "reduce_on_plateau", "schedule__plateau_patience": 0, **FAST}
    lane = lab.train([lab.spec("late", anchor=lab.anchor(**changes))], "runs")[0].lane
    rates = [report.learning_rate for report in lane.history]
    assert rates[4] < rates[0], "the plateau was not met"
    assert rates[5:] == [0.1] * 3


def test_without_mixing_views_are_not_mixed_either(lab: Any) -> None:
    """The view that is turned by nothing shows the same pixels, up to its crop, as the images of its batch."""

    def look(self: Any, batch: Batch) -> Losses:
        self.seen.append((batch.mix, batch.images, batch.views[0].images))
        return self.of_helper(batch)

    def phases(self: Any) -> tuple[Phase, ...]:
        plain = Phase("plain", 1, self.look, self.helper.parameters, mixes=False)
        return (plain, Phase("mixed", 1, self.look, self.helper.parameters), Phase())

    kind = lab.probe("viewer", phases=phases, look=look, views=(View(0),))
    anchor = lab.anchor(data__mixup_alpha=1.0, data__crop_padding=0)
    lab.train([lab.spec("viewer", anchor=anchor)], "runs")
    plain, mixed = kind.seen[: lab.steps], kind.seen[lab.steps :]
    assert all(mix is None and torch.equal(images, view) for mix, images, view in plain)
    assert all(mix is not None and torch.equal(images, view) for mix, images, view in mixed)


# --- what is refused --------------------------------------------------------------------------------------------------

A, B = Phase("a", 1), Phase("b", 1, continues="a")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase("a", 1, main=True), Phase("b", 1, main=True)), r"the parts of the main phase have \[1, 1\] epochs"),
        ((Phase("a", 4, main=True),), "the anchor has 3"),
        ((Phase("a", 3, main=True), Phase()), "one main phase"),
        ((Phase("a", 1, main=True), Phase("a", 2, main=True)), "unique names"),
        ((Phase("a", 4, main=True), Phase("b", -1, main=True)), "phase 'b': epochs is -1; a phase has 0 or more"),
        ((Phase("b", 1, continues="a"), Phase("a", 1), Phase()), "continues 'a', which is no phase before it"),
        ((Phase("m", 3, main=True), replace(B, continues="m")), "which is no phase before it .* those are none"),
        ((A, B, Phase("c", 1, continues="b"), Phase()), "continues 'b', .* those are a"),
    ],
)
def test_phases_that_are_no_training_are_refused(phases: tuple[Phase, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_phases(phases, 3)


def test_phases_that_are_one_are_not() -> None:
    check_phases((A, B, Phase("c", 1, continues="a"), Phase()), 3)
    check_phases((Phase("x", 0, main=True), A, Phase("y", 3, main=True)), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student": "eval"}, "student is the anchor's in the main phase"),
        ({"student": "off"}, "so it must run it"),
        ({"optimizer": lambda lab: lab.anchor().optimizer}, "optimizer is the anchor's"),
        ({"continues": "a"}, "continues is the anchor's"),
        ({"mixes": False}, "mixes is the anchor's"),
        ({"full_precision": True}, "full_precision is the anchor's"),
        ({"learning_rate": 0.1}, "has the anchor's learning rate"),
        ({"rate_factor": lambda _lab: 1.0}, "has the anchor's learning rate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_part_keeps_the_anchor(lab: Any, settings: dict[str, Any], message: str) -> None:
    given = {key: value(lab) if key == "optimizer" else value for key, value in settings.items()}
    for place in ({"epochs": 2, "main": True}, {}):
        with pytest.raises(ValueError, match=message):
            Phase("part", **place, **given)
    other = {key: value for key, value in given.items() if key != "continues"}
    assert not Phase("other", epochs=2, **other).is_main


def test_a_phase_says_once_what_it_trains_and_how_fast(lab: Any) -> None:
    with pytest.raises(ValueError, match="give parameters or groups, not both"):
        Phase("a", 1, parameters=list, groups=list)
    with pytest.raises(ValueError, match="its optimizer has the learning rate"):
        Phase("a", 1, optimizer=lab.anchor().optimizer, learning_rate=0.1)
    with pytest.raises(ValueError, match="letters, digits and '_' only"):
        Phase("a/b", 1)
