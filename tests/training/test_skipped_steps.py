"""A step with a non-finite loss that is left out changes nothing, is counted, and is no part of any mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.config.schema import Optimizer
from kdbench.method import Batch, Losses, Phase
from kdbench.types import Term

OPTIMIZERS = {
    "sgd": Optimizer(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": Optimizer(name="adam", lr=0.01, weight_decay=0.1),
    "adamw": Optimizer(name="adamw", lr=0.01, weight_decay=0.1),
}
BAD = {"value": float("nan"), "gradient": float("inf")}


def bad_in(*steps: int, part: int | None = None) -> Any:
    """Return a loss of the helper that is not finite in some steps, in one part of an accumulated batch or in all."""

    def losses(self: Any, batch: Batch) -> Losses:
        parts = self.context.batch_size
        step = round(batch.progress * self.context.steps_per_epoch)
        number = len(self.seen) % (40 // parts)
        self.seen.append(step)
        found = self.of_helper(batch)
        broken = step in steps and part in {None, number}
        batch.note("loss", found["fit"].value * (float("nan") if broken else 1.0))
        batch.note("step", float(step))
        # The gradient of what makes it infinite is 0: a scaler, which looks at gradients, would not see it.
        return {**found, "more": Term(torch.tensor(float("nan") if broken else 0.5))}

    return losses


def skipping(name: str = "sgd", *, skips: bool = True) -> Any:
    def phases(self: Any) -> tuple[Phase, ...]:
        own = OPTIMIZERS[name]
        helper = Phase(
            "helper", 1, self.bad, self.helper.parameters, optimizer=own, student="off", skips_nonfinite=skips
        )
        return (helper, Phase())

    return phases


def helper_at(lab: Any, spec: Any, step: int) -> tuple[Any, Any]:
    """Return the helper's weights and its optimizer's state after a step."""
    state = lab.stopped(spec, f"{spec.method}-{spec.anchor.name}-{step}", step)
    key = next(key for key in state["optimizers"])
    weights = {name: value for name, value in state["method"].items() if name.startswith("helper")}
    return weights, state["optimizers"][key]["state"]


@pytest.mark.parametrize("changes", [{}, {"step__precision": "fp16"}, {"step__grad_clip_norm": 0.5}], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_left_out_changes_nothing(lab: Any, name: str, changes: dict[str, Any]) -> None:
    """Neither weights (with their decay) nor momentum nor the step count; the steps around it are done."""
    lab.probe("skips", bad=bad_in(1), phases=skipping(name))
    spec = lab.spec("skips", anchor=lab.anchor(**changes))
    (before, one), (after, two), (later, _) = (helper_at(lab, spec, step) for step in (1, 2, 3))
    assert lab.digest_of(before) == lab.digest_of(after)
    assert lab.digest_of(one) == lab.digest_of(two)
    assert lab.digest_of(after) != lab.digest_of(later)
    lane = lab.train([spec], "whole")[0].lane
    assert lane.failure is None
    assert not lane.diverged
    assert lane.history[0].metrics["skipped_steps"] == 1


@pytest.mark.parametrize("changes", [{}, {"step__precision": "fp16"}], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_step_may_be_left_out(lab: Any, name: str, changes: dict[str, Any]) -> None:
    """Afterwards momentum is 0, not what the memory held: the second step is a first one."""
    junk = [torch.full((2560,), 7e8) for _ in range(50)]
    del junk
    lab.probe("skips", bad=bad_in(0), phases=skipping(name))
    spec = lab.spec("skips", anchor=lab.anchor(**changes))
    (first, state), (second, _) = helper_at(lab, spec, 1), helper_at(lab, spec, 2)
    held = [value for one in state.values() for value in one.values()]
    assert all(float(value.abs().max()) == 0 for value in held)
    moved = (second["helper.weight"] - first["helper.weight"]).abs().max()
    assert 0 < float(moved) < 0.1


def test_the_means_and_notes_are_those_of_the_steps_that_were_done(lab: Any) -> None:
    lab.probe("skips", bad=bad_in(1, 3), phases=skipping())
    lane = lab.train([lab.spec("skips")], "runs")[0].lane
    report = lane.history[0]
    assert report.metrics["skipped_steps"] == 2
    assert report.metrics["step"] == pytest.approx((0 + 2) / 2)
    assert report.losses["more"] == pytest.approx(0.5)
    assert report.losses["total"] == pytest.approx(report.losses["fit"] + 0.5)
    assert report.metrics["loss"] == pytest.approx(report.losses["fit"])
    assert "skipped_steps" not in lane.history[1].metrics


@pytest.mark.parametrize("part", [0, 1])
def test_of_an_accumulated_step_the_sound_part_does_not_count_either(lab: Any, part: int) -> None:
    lab.probe("skips", bad=bad_in(2, part=part), phases=skipping())
    lab.probe("whole", bad=bad_in(2), phases=skipping())
    anchor = lab.anchor(step__accumulate=2)
    (one, other) = (lab.train([lab.spec(name, anchor=anchor)], name)[0].lane for name in ("skips", "whole"))
    assert one.history[0].metrics["skipped_steps"] == other.history[0].metrics["skipped_steps"] == 1
    assert one.history[0].losses == other.history[0].losses
    assert one.history[0].metrics == other.history[0].metrics
    assert lab.digest_of(one.method.state_dict()) == lab.digest_of(other.method.state_dict())


def test_the_mark_of_a_skipped_step_does_not_reach_who_goes_on_with_the_optimizer(lab: Any) -> None:
    """The last step of a part is left out; the next part, which leaves none out, does its first one."""

    def losses(self: Any, batch: Batch) -> Losses:
        self.seen.append(1)
        factor = float("nan") if len(self.seen) == lab.steps else 1.0
        return {"ce": Term(batch.supervised().value * factor)}

    def phases(self: Any) -> tuple[Phase, ...]:
        return (Phase("part0", 1, main=True, skips_nonfinite=True), Phase("part1", 2, main=True))

    lab.probe("parts", losses=losses, phases=phases)
    spec = lab.spec("parts")
    lane = lab.train([spec], "whole")[0].lane
    assert not lane.diverged
    assert [report.metrics for report in lane.history] == [{"skipped_steps": 1}, {}, {}]
    assert lane.history[2].losses["total"] < lane.history[1].losses["total"] < lane.history[0].losses["total"]
    assert not hasattr(lane.optimizer, "found_inf")


def test_a_step_that_no_phase_may_leave_out_ends_the_run(lab: Any) -> None:
    lab.probe("strict", bad=bad_in(1), phases=skipping(skips=False))
    lane = lab.train([lab.spec("strict")], "runs")[0].lane
    assert lane.diverged == "non-finite loss in phase 'helper', epoch 1"


def test_an_epoch_without_a_single_step_ends_the_run(lab: Any) -> None:
    lab.probe("nothing", bad=bad_in(0, 1, 2, 3), phases=skipping())
    lane = lab.train([lab.spec("nothing")], "runs")[0].lane
    assert lane.diverged == "non-finite loss in phase 'helper', epoch 1"
    assert (lane.history[0].losses, lane.history[0].metrics) == ({}, {"skipped_steps": 4})


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"step__precision": "fp16"}], ids=str)
def test_skips_are_resumed_exactly(lab: Any, stop: int, changes: dict[str, Any]) -> None:
    lab.probe("skips", bad=bad_in(0, 2), phases=skipping())
    spec = lab.spec("skips", anchor=lab.anchor(**changes))
    lab.stopped(spec, "cut", stop)
    assert lab.digest_after(spec, "cut") == lab.digest_after(spec, "whole")
