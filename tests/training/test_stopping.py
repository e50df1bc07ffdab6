"""Early stopping: the best validation epoch's weights are what is left, and a kill anywhere changes no bit of them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from kdbench.config.loading import validate
from kdbench.config.schema import Anchor, Stopping
from kdbench.errors import ProblemList
from kdbench.evaluation import evaluate
from kdbench.schedule import best_epoch, has_stopped
from kdbench.training.trainer import Interrupted

# A rate far too high: the accuracy jumps up and down, and the best epoch is not the last.
JUMPY: dict[str, Any] = {
    "schedule__epochs": 12,
    "schedule__name": "constant",
    "optimizer__lr": 0.6,
    "stopping__patience": 3,
}


@pytest.mark.parametrize(
    ("accuracies", "patience", "delta", "stops"),
    [
        ([], 1, 0.0, False),
        ([50, 60, 60], 1, 0.0, True),
        ([50, 60, 60], 2, 0.0, False),
        ([50, 60, 60.04, 60.06], 2, 0.05, False),  # 60.06 is more than 0.05 above 60
        ([50, 60, 60.04, 60.05], 2, 0.05, True),  # small gains do not add up unnoticed, but neither do they count
        ([50, 60, 10, 10, 70, 10], 3, 0.0, False),
        ([50, 10, 10, 10], 0, 0.0, False),
    ],
)
def test_when_it_stops(accuracies: list[float], patience: int, delta: float, *, stops: bool) -> None:
    assert has_stopped(Stopping(patience=patience, min_delta=delta), accuracies) is stops


def test_the_best_epoch_is_the_first_of_equals() -> None:
    assert [best_epoch(a) for a in ([1.0], [1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.01])] == [0, 1, 2]


@pytest.mark.parametrize("more", [{}, {"step__ema_decay": 0.5}])
def test_the_weights_are_those_of_the_best_epoch(lab: Any, more: dict[str, Any]) -> None:
    (trained,) = lab.train([lab.spec("student", anchor=lab.anchor(**JUMPY, **more))], "stopped")
    lane = trained.lane
    accuracies = [report.validation_accuracy for report in lane.history]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) < 12, accuracies
    assert best == len(accuracies) - 4, accuracies
    assert accuracies[-1] < accuracies[best], "the case says nothing"
    # The same training, cut off behind that epoch.
    shorter = {**JUMPY, "schedule__epochs": best + 1, "stopping__patience": 0}
    (other,) = lab.train([lab.spec("student", anchor=lab.anchor(**shorter, **more))], "shorter")
    mine, theirs = (lab.digest_of(entry.lane.deployed().state_dict()) for entry in (trained, other))
    assert mine == theirs
    assert trained.data.validation is not None
    again = evaluate(lane.deployed(), trained.data.validation, lane.device, 500)
    assert again.accuracy == accuracies[best]


def test_without_an_early_end_the_best_epoch_is_kept_as_well(lab: Any) -> None:
    anchor = lab.anchor(**{**JUMPY, "stopping__patience": 50})
    (trained,) = lab.train([lab.spec("student", anchor=anchor)], "whole")
    accuracies = [report.validation_accuracy for report in trained.lane.history]
    assert len(accuracies) == 12
    assert accuracies[-1] < max(accuracies), "the case says nothing"
    found = evaluate(trained.lane.deployed(), trained.data.validation, trained.lane.device, 500).accuracy
    assert found == max(accuracies)


@pytest.mark.parametrize("more", [{}, {"step__ema_decay": 0.5, "schedule__name": "reduce_on_plateau"}])
def test_stopped_after_every_step_it_ends_in_the_same_bits(lab: Any, more: dict[str, Any]) -> None:
    spec = lab.spec("student", anchor=lab.anchor(**{**JUMPY, **more}))
    expected = lab.digest_after(spec, "whole")
    stops = 0
    while True:
        try:
            (trained,) = lab.train([spec], "cut", should_stop=lab.stop_after(1))
            break
        except Interrupted:
            stops += 1
    assert stops == lab.steps * len(trained.lane.history)
    assert lab.digest(trained.lane) == expected


def test_the_copy_in_the_checkpoint_matters(lab: Any) -> None:
    """Without it a resumed training would end with other weights: the test above can fail."""
    spec = lab.spec("student", anchor=lab.anchor(**JUMPY))
    expected = lab.digest_after(spec, "whole")
    (trained,) = lab.train([spec], "whole")
    cut = lab.steps * len(trained.lane.history) - 1  # in the last epoch, when the best one is past
    with pytest.raises(Interrupted):
        lab.train([spec], "cut", should_stop=lab.stop_after(cut))
    folder = lab.checkpoints(spec, "cut")
    state = folder.newest()
    assert state["best"] is not None
    folder.remove()
    folder.save({**state, "best": None}, tuple(state["position"]))
    assert lab.digest_after(spec, "cut") != expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stopping.patience": 2}, "stopping.patience goes by the validation accuracy, but data.validation_fraction"),
        ({"schedule.name": "reduce_on_plateau"}, "schedule.name reduce_on_plateau goes by the validation accuracy"),
        ({"stopping.patience": -1}, "stopping.patience is -1: input should be greater than or equal to 0"),
        ({"stopping.min_delta": math.inf}, "stopping.min_delta is inf: input should be a finite number"),
        ({"stopping.patient": 1}, "stopping.patient: unknown key. Did you mean 'patience'? Allowed: min_delta"),
    ],
)
def test_refused(lab: Any, changes: dict[str, Any], message: str) -> None:
    tree = lab.anchor().model_dump()
    tree["data"]["validation_fraction"] = 0.0
    for key, value in changes.items():
        section, leaf = key.split(".")
        tree[section][leaf] = value
    with pytest.raises(ProblemList, match=re.escape(message)):
        validate(Anchor, tree, "x")
