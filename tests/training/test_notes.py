"""What a method notes of its batches: weighted means in the epoch's report, and the first step of each phase."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.method import Batch, Losses, Phase
from kdbench.records import StepReport
from kdbench.training.meters import Averages
from kdbench.types import Term

# Step of the epoch to value and weight: means by hand below.
VALUES = [(1.0, 1.0), (3.0, 0.5), (float("nan"), 0.0), (5.0, 0.25)]
MEAN = (1 + 3 * 0.5 + 5 * 0.25) / 1.75


def step_of(self: Any, batch: Batch) -> int:
    """Return the step of the epoch."""
    epochs = self.context.epochs
    return round(batch.progress * epochs * self.context.steps_per_epoch) % self.context.steps_per_epoch


def noting(*, tensors: bool) -> Any:
    def losses(self: Any, batch: Batch) -> Losses:
        value, weight = VALUES[step_of(self, batch)]
        made = torch.tensor if tensors else float
        batch.note("weighted", made(value), made(weight))
        batch.note("plain", made(step_of(self, batch)))
        batch.note("never", made(float("nan")), made(0.0))
        if step_of(self, batch) == 1:
            batch.note("once", made(7.0), made(0.125))
        loss = batch.supervised()
        batch.note("ce", loss.value)
        return {"ce": loss}

    return losses


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("chunks", [1, 4])
def test_means_by_hand(lab: Any, tensors: bool, chunks: int) -> None:
    lab.probe("notes", losses=noting(tensors=tensors))
    lane = lab.train([lab.spec("notes", anchor=lab.anchor(step__accumulate=chunks))], "runs")[0].lane
    assert lane.failure is None
    for report in lane.history:
        assert report.metrics["weighted"] == pytest.approx(MEAN)
        assert report.metrics["plain"] == pytest.approx(1.5)
        assert report.metrics["once"] == pytest.approx(7.0)
        assert report.metrics["ce"] == pytest.approx(report.losses["ce"], rel=1e-6)
        assert report.metrics.keys() == {"weighted", "plain", "once", "ce"}


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_means_over_a_resume(lab: Any, stop: int, chunks: int) -> None:
    lab.probe("notes", losses=noting(tensors=True))
    spec = lab.spec("notes", anchor=lab.anchor(step__accumulate=chunks))
    lab.stopped(spec, "cut", stop)
    one, other = (lab.train([spec], where)[0].lane for where in ("cut", "whole"))
    assert [report.metrics for report in one.history] == [report.metrics for report in other.history]
    assert lab.digest(one) == lab.digest(other)


def test_parts_of_a_batch_count_by_their_images(lab: Any) -> None:
    """All 160 images at once, in parts of 53, 53 and 54: the mean of what each part says of its own size."""

    def losses(self: Any, batch: Batch) -> Losses:
        batch.note("size", float(len(batch.labels)))
        return {"ce": batch.supervised()}

    lab.probe("notes", losses=losses)
    anchor = lab.anchor(step__accumulate=3, data__batch_size=162)
    lane = lab.train([lab.spec("notes", anchor=anchor)], "runs")[0].lane
    assert lane.history[0].metrics["size"] == pytest.approx((53 * 53 + 53 * 53 + 54 * 54) / 160)


def test_what_is_not_a_number_is_none_in_the_report(lab: Any) -> None:
    def losses(self: Any, batch: Batch) -> Losses:
        batch.note("broken", float("inf"))
        return {"ce": batch.supervised()}

    lab.probe("notes", losses=losses)
    lane = lab.train([lab.spec("notes")], "runs")[0].lane
    assert not lane.diverged, "a note is no loss"
    assert [report.metrics for report in lane.history] == [{"broken": None}] * 3


def test_notes_after_the_step_count_too(lab: Any) -> None:
    lab.probe("notes", after_step=lambda _self, batch: batch.note("after", float(batch.epoch)))
    lane = lab.train([lab.spec("notes")], "runs")[0].lane
    assert [report.metrics for report in lane.history] == [{"after": 0.0}, {"after": 1.0}, {"after": 2.0}]


def test_a_note_holds_no_graph(lab: Any) -> None:
    values = Averages()
    leaf = torch.ones((), requires_grad=True)
    values.add("x", leaf * 2, leaf * 3)
    assert not any(isinstance(part, Tensor) and part.requires_grad for part in values.state()["x"])
    assert values.means() == {"x": 2.0}


@pytest.mark.parametrize("weight", [0.0, torch.tensor(0.0), torch.tensor(0), torch.tensor(False)], ids=repr)
def test_at_weight_zero_a_value_does_not_matter(weight: Any) -> None:
    values = Averages()
    for value in (float("nan"), float("inf"), torch.tensor(float("nan"))):
        values.add("x", value, weight)
    assert values.means() == {}
    values.add("x", 2.0, 4)
    values.add("x", torch.tensor(5.0), torch.tensor(2))
    values.add("x", float("nan"), weight)
    assert values.means() == {"x": 3.0}


def test_averages_survive_their_state() -> None:
    one, other = Averages(), Averages()
    one.add("a", torch.tensor(1.5), 3.0)
    one.add("b", 2.0, torch.tensor(0.25))
    other.load(one.state(), torch.device("cpu"))
    for values in (one, other):
        values.add("a", 2.5, torch.tensor(1.0))
        values.add("b", torch.tensor(1.0), 0.75)
    assert one.means() == other.means() == {"a": 1.75, "b": 1.25}


# --- the first step of a phase ----------------------------------------------------------------------------------------


def phases(self: Any) -> tuple[Phase, ...]:
    helper = Phase("helper", 1, self.of_helper, self.helper.parameters, student="off")
    return (helper, Phase("part0", 1, main=True), Phase("part1", 2, main=True))


def weighted(self: Any, batch: Batch) -> Losses:
    batch.note("images", float(len(batch.labels)))
    return {"ce": Term(batch.supervised().value, 0.25), "kd": Term(batch.kd().value, torch.tensor(0.5))}


def test_the_first_step_of_each_phase_is_told_once(lab: Any) -> None:
    reports: list[StepReport] = []
    lab.probe("parts", phases=phases, losses=weighted)
    lab.train([lab.spec("parts")], "runs", phase_started=reports.append)
    assert [report.phase for report in reports] == ["helper", "part0", "part1"]
    helper, one, _ = reports
    assert helper.losses.keys() == {"fit", "total"}
    assert helper.weights == {"fit": 1.0}
    assert (one.weights, one.metrics) == ({"ce": 0.25, "kd": 0.5}, {"images": 40.0})
    assert one.losses.keys() == {"ce", "kd", "total"}
    assert one.losses["total"] == pytest.approx(0.25 * one.losses["ce"] + 0.5 * one.losses["kd"])
    assert one.run_id == lab.spec("parts").run_id


def test_it_is_the_loss_of_that_step_alone(lab: Any) -> None:
    reports: list[StepReport] = []

    def losses(self: Any, batch: Batch) -> Losses:
        loss = batch.supervised()
        self.seen.append(float(loss.value.detach()))
        return {"ce": loss}

    kind = lab.probe("ce", losses=losses)
    lab.train([lab.spec("ce")], "runs", phase_started=reports.append)
    (report,) = reports
    assert report.losses["ce"] == pytest.approx(kind.seen[0])
    assert kind.seen[0] != kind.seen[1]


def test_a_lane_beside_tells_its_own(lab: Any) -> None:
    reports: list[StepReport] = []
    lab.probe("parts", phases=phases)
    lab.probe("whole")
    specs = [lab.spec("parts"), lab.spec("whole")]
    lab.train(specs, "runs", phase_started=reports.append)
    told = sorted((report.run_id == specs[0].run_id, report.phase) for report in reports)
    assert told == [(False, "main"), (True, "helper"), (True, "part0"), (True, "part1")]


@pytest.mark.parametrize(("stop", "told"), [(1, ["part0", "part1"]), (4, ["part0", "part1"]), (5, ["part1"]), (13, [])])
def test_after_a_resume_it_is_told_only_where_a_phase_begins(lab: Any, stop: int, told: list[str]) -> None:
    reports: list[StepReport] = []
    lab.probe("parts", phases=phases)
    spec = lab.spec("parts")
    lab.stopped(spec, "runs", stop)
    lab.train([spec], "runs", phase_started=reports.append)
    # Four steps in, an epoch ends, but it is the stop that is saved: its phase is to be ended, not begun.
    assert [report.phase for report in reports] == told


def test_what_is_not_finite_is_told_as_such(lab: Any) -> None:
    reports: list[StepReport] = []

    def losses(self: Any, batch: Batch) -> Losses:
        weight = torch.tensor(float("nan"))
        return {"ce": batch.supervised(), "odd": Term(batch.kd().value, weight)}

    lab.probe("odd", losses=losses)
    lab.train([lab.spec("odd")], "runs", phase_started=reports.append)
    assert reports[0].losses["total"] is None
    assert reports[0].weights == {"ce": lab.spec("odd").anchor.loss.ce_alpha, "odd": None}
    assert StepReport.model_validate_json(reports[0].model_dump_json()) == reports[0]
