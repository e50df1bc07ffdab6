"""R2 and R3: what a checkpoint holds is needed, piece by piece; what only looks or saves changes no bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench import registry
from kdbench.errors import StoreError
from kdbench.method import Batch, Losses
from kdbench.seeds import stream
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.trainer import Interrupted

RICH: dict[str, Any] = {
    "step__precision": "fp16",
    "step__ema_decay": 0.9,
    "step__accumulate": 2,
    "data__cutmix_alpha": 1.0,
}
BUILT_IN = [m.name for m in registry.load().methods.values() if m.__module__.startswith("kdbench.methods.")]
LANE = ("position", "student", "method", "optimizers", "scaler", "average", "meters", "counters", "history", "best")
Path = tuple[str, ...]


def _pieces(early: Any, late: Any, digest: Any) -> Iterator[Path]:
    """Yield where two states differ: by component, and by the parts of those that are dicts.

    The tensors of one submodule are one part.
    """
    for component in early:
        if digest(early[component]) != digest(late[component]):
            yield (component,)
            if isinstance(late[component], dict) and component not in {"student", "average"}:
                parts = [
                    key for key in late[component] if digest(early[component].get(key)) != digest(late[component][key])
                ]
                yield from ((component, name) for name in dict.fromkeys(str(key).split(".")[0] for key in parts))


def _without(late: dict[str, Any], early: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a state with one piece as if it had never been saved: as it was when the run began."""
    component, *part = path
    if not part:
        return {**late, component: early[component]}
    own = [{k: v for k, v in state[component].items() if str(k).split(".")[0] == part[0]} for state in (late, early)]
    kept = {key: value for key, value in late[component].items() if key not in own[0]}
    return {**late, component: {**kept, **own[1]}}


def _survivors(lab: Any, spec: Any, cut: int, *, only: str = "") -> tuple[list[Path], int]:
    """Return which pieces can be left out without a trace, and how many were tried."""
    expected = lab.digest_after(spec, "whole")
    early, late = lab.stopped(spec, "early", 1), lab.stopped(spec, "cut", cut)
    found = _pieces(lab.timeless(_lane_part(early)), lab.timeless(_lane_part(late)), lab.digest_of)
    pieces = [path for path in found if path[0] == (only or path[0])]
    survived = []
    for number, path in enumerate(pieces):
        where = f"without {number}"
        folder = lab.checkpoints(spec, where)
        folder.save(_without(late, early, path), tuple(late["position"]))
        lane = lab.train([spec], where)[0].lane
        if lane.failure is None and lab.digest(lane) == expected:
            survived.append(path)
    return survived, len(pieces)


def _lane_part(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without what identifies the run, which is compared on loading."""
    return {key: state[key] for key in LANE}


def test_every_piece_of_a_state_that_has_them_all(lab: Any) -> None:
    spec = lab.spec("toy_bank", anchor=lab.anchor(**RICH))
    survived, tried = _survivors(lab, spec, 14)
    assert survived == [("meters", "images")], "only the epoch's speed depends on its images, and times may differ"
    assert tried > 15, "the state has fewer parts than it had"


@pytest.mark.parametrize("method", BUILT_IN)
def test_every_piece_of_a_methods_own_state(lab: Any, method: str) -> None:
    spec = lab.spec_for(method, lab.anchor(schedule__epochs=2))
    (whole,) = lab.train([spec], "count")
    steps = lab.steps * len(whole.lane.history)
    survived, tried = _survivors(lab, spec, steps - 1, only="method")
    assert survived == []
    changing = [p for p in whole.lane.method.parameters() if p.requires_grad]
    assert tried > 0 or not changing


def test_a_generator_of_a_methods_own(lab: Any) -> None:
    """A third party may draw from a generator of its own, whose state is then part of the run's."""

    def losses(self: Any, batch: Batch) -> Losses:
        if not hasattr(self, "dice"):
            self.dice = torch.Generator().manual_seed(stream(self.context.seed, "method", "dice"))
        noise = torch.rand(len(batch.labels), 1, generator=self.dice)
        return {"ce": batch.supervised(batch.student.logits * (1 + noise))}

    def get_state(self: Any) -> Tensor:
        return self.dice.get_state() if hasattr(self, "dice") else torch.zeros(0, dtype=torch.uint8)

    def set_state(self: Any, state: Tensor) -> None:
        if len(state):
            self.dice = torch.Generator()
            self.dice.set_state(state)

    lab.probe("toy_dice", losses=losses, get_extra_state=get_state, set_extra_state=set_state)
    spec = lab.spec("toy_dice")
    expected = lab.digest_after(spec, "whole")
    state = lab.stopped(spec, "cut", 6)
    assert lab.digest_after(spec, "cut") == expected
    folder = lab.checkpoints(spec, "without")
    folder.save(_without(state, lab.stopped(spec, "early", 1), ("method", "_extra_state")), tuple(state["position"]))
    assert lab.digest_after(spec, "without") != expected


def test_that_a_lane_has_diverged(lab: Any) -> None:
    specs = [lab.spec("toy_nan"), lab.spec("dkd")]
    expected = lab.digest(lab.train(specs, "whole")[0].lane)
    with pytest.raises(Interrupted):
        lab.train(specs, "cut", should_stop=lab.stop_after(2 * lab.steps + 1))
    folder = lab.checkpoints(specs[0], "cut")
    state = folder.newest()
    assert state["diverged"]
    assert lab.digest(lab.train(specs, "cut")[0].lane) == expected
    folder = lab.checkpoints(specs[0], "without")
    folder.save({**state, "diverged": ""}, tuple(state["position"]))
    assert lab.digest(lab.train(specs[:1], "without")[0].lane) != expected


@pytest.mark.parametrize("method", BUILT_IN)
def test_looking_and_saving_change_nothing(lab: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated and saved after every epoch; evaluated as seldom as may be, and never saved."""
    epochs = 6  # the last five are always evaluated
    often = lab.spec_for(method, lab.anchor(schedule__epochs=epochs, evaluation__every=1))
    seldom = often.model_copy(update={"anchor": lab.anchor(schedule__epochs=epochs, evaluation__every=5)})
    (one,) = lab.train([often], "often")
    monkeypatch.setattr(CheckpointFolder, "save", _full)
    (other,) = lab.train([seldom], "seldom")
    assert other.lane.unsaved == len(other.lane.history)
    looked = [[report.test_accuracy is not None for report in entry.lane.history] for entry in (one, other)]
    assert looked[0] != looked[1]
    states = [_unlooked(lab.timeless(entry.lane.state())) for entry in (one, other)]
    assert lab.digest_of(states[0]) == lab.digest_of(states[1])


def _full(*_: object) -> None:
    raise StoreError("no space left")


def _unlooked(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state without what an evaluation says."""
    history = [{**report, "test_accuracy": None} for report in state["history"]]
    return {**state, "history": history, "config_sha256": ""}
