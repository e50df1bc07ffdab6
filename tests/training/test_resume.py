"""Exact resume: a run that was stopped anywhere ends in the same bits as one that was not."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench import registry
from kdbench.artefacts import MANIFEST, WEIGHTS, TeacherStore, sha256_of
from kdbench.errors import ConfigError
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.environment import Machine
from kdbench.training.trainer import Interrupted

RICH: dict[str, Any] = {
    "step__precision": "fp16",
    "step__ema_decay": 0.9,
    "step__accumulate": 2,
    "data__cutmix_alpha": 1.0,
}
ADAMW: dict[str, Any] = {"optimizer__name": "adamw", "optimizer__nesterov": False, "optimizer__lr": 0.01}
# toy_bank has two epochs of its own first: steps 1-8 are its init phase, 9-20 the main phase.
CASES = [
    *(("toy_bank", {}, stop) for stop in (3, 4, 5, 8, 9, 12, 19, 20)),
    *(("toy_bank", RICH, stop) for stop in (6, 14)),
    ("toy_bank", ADAMW, 14),
    ("toy_bank", {"data__mixup_alpha": 0.4, "loss__tau_schedule": (6.0, 2.0)}, 11),
    *(("toy_head", {}, stop) for stop in (3, 8)),
    ("dkd", RICH, 5),
]
_METHODS = registry.load().methods
BUILT_IN = [method.name for method in _METHODS.values() if _METHODS.owner(method.name).distribution == "kdbench"]


@pytest.mark.parametrize(("method", "changes", "stop"), CASES)
def test_a_stopped_run_ends_in_the_bits_of_an_uninterrupted_one(
    lab: Any, method: str, changes: dict[str, Any], stop: int
) -> None:
    spec = lab.spec(method, anchor=lab.anchor(**changes))
    expected = lab.digest_after(spec, "whole")
    with pytest.raises(Interrupted, match="every run was saved"):
        lab.train([spec], "cut", should_stop=lab.stop_after(stop))
    torch.manual_seed(999)  # a new process would not have the old one's generators
    assert lab.digest_after(spec, "cut") == expected


@pytest.mark.parametrize("method", BUILT_IN)
def test_every_built_in_method_resumes_exactly(lab: Any, method: str) -> None:
    spec = lab.spec_for(method, lab.anchor(data__cutmix_alpha=1.0, step__ema_decay=0.9))
    expected = lab.digest_after(spec, "whole")
    for where, stop in (("middle", 6), ("end of an epoch", 4), ("late", 11)):
        with pytest.raises(Interrupted):
            lab.train([spec], where, should_stop=lab.stop_after(stop))
        assert lab.digest_after(spec, where) == expected, where


def test_stopping_after_every_step_changes_nothing(lab: Any) -> None:
    spec = lab.spec("toy_bank", anchor=lab.anchor(**RICH))
    stops = 0
    while True:
        try:
            (trained,) = lab.train([spec], "cut", should_stop=lab.stop_after(1))
            break
        except Interrupted:
            stops += 1
    assert stops == 5 * lab.steps
    assert lab.digest(trained.lane) == lab.digest_after(spec, "whole")


def test_seed_and_method_change_the_digest(lab: Any) -> None:
    """The digest tells runs apart at all."""
    specs = [lab.spec("vanilla_kd"), lab.spec("vanilla_kd", seed=1), lab.spec("dkd")]
    assert len({lab.digest_after(spec, str(place)) for place, spec in enumerate(specs)}) == 3


COMPONENTS = ("position", "student", "method", "optimizers", "scaler", "average", "meters", "counters", "history")


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_of_a_checkpoint_matters(lab: Any, component: str) -> None:
    """R2: with one component as it stood five steps earlier, the end differs."""
    spec = lab.spec("toy_bank", anchor=lab.anchor(**RICH))
    expected = lab.digest_after(spec, "whole")
    earlier, state = _stopped(lab, spec, "earlier", 9), _stopped(lab, spec, "cut", 14)
    assert lab.digest_of(earlier[component]) != lab.digest_of(state[component]), "the case says nothing"
    folder = CheckpointFolder(lab.folders([spec], "mutated")[0].checkpoints)
    folder.save({**state, component: earlier[component]}, (1, 1, 2))
    assert lab.digest_after(spec, "mutated") != expected


@pytest.mark.parametrize("component", [*COMPONENTS, "best"])
def test_a_checkpoint_without_a_component_is_refused(lab: Any, component: str) -> None:
    spec = lab.spec("toy_bank", anchor=lab.anchor(**RICH))
    state = _stopped(lab, spec, "cut", 14)
    del state[component]
    CheckpointFolder(lab.folders([spec], "mutated")[0].checkpoints).save(state, (1, 1, 2))
    lane = lab.train([spec], "mutated")[0].lane
    assert isinstance(lane.failure, KeyError)
    assert component in str(lane.failure)
    assert lane.failed_in == "loading its state"


def test_unchanged_components_resume_exactly(lab: Any) -> None:
    """The mutation above is what changes the digest, not the way the checkpoint was put there."""
    spec = lab.spec("toy_bank", anchor=lab.anchor(**RICH))
    state = _stopped(lab, spec, "cut", 14)
    CheckpointFolder(lab.folders([spec], "moved")[0].checkpoints).save(state, (1, 1, 2))
    assert lab.digest_after(spec, "moved") == lab.digest_after(spec, "whole")


def _stopped(lab: Any, spec: Any, where: str, steps: int) -> dict[str, Any]:
    with pytest.raises(Interrupted):
        lab.train([spec], where, should_stop=lab.stop_after(steps))
    state = CheckpointFolder(lab.folders([spec], where)[0].checkpoints).newest()
    assert state is not None
    return state


# --- what a run may not be continued with -----------------------------------------------------------------------


def test_another_thread_count_is_refused(lab: Any) -> None:
    spec = lab.spec("vanilla_kd")
    _stopped(lab, spec, "cut", 3)
    machine = Machine(torch.device("cpu"), 2)
    with pytest.raises(ConfigError, match=r"seed0: was started with threads 1, now it is 2; .* choose another --out"):
        lab.train([spec], "cut", machine=machine)
    lab.train([spec], "cut")  # as it was started it goes on


def test_another_torch_is_refused(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("vanilla_kd")
    _stopped(lab, spec, "cut", 3)
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    with pytest.raises(ConfigError, match=r"was started with torch '2\..*', now it is '1\.0\.0'"):
        lab.train([spec], "cut")


def test_another_teacher_file_is_refused(lab: Any) -> None:
    spec = lab.spec("vanilla_kd")
    _stopped(lab, spec, "cut", 3)
    other = TeacherStore(lab.root / "teachers")
    shutil.copytree(lab.place.teachers.root, other.root)
    folder = other.folder(spec.dataset, lab.teacher)
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "fc.bias": weights["fc.bias"] + 1}, folder / WEIGHTS)
    changed = other.manifest(spec.dataset, lab.teacher).model_copy(update={"sha256": sha256_of(folder / WEIGHTS)})
    (folder / MANIFEST).write_text(changed.model_dump_json())
    with pytest.raises(ConfigError, match=rf"was started with teachers .*, now it is \['{changed.sha256}'\]"):
        lab.train([spec], "cut", teachers=other)


def test_another_configuration_is_refused(lab: Any) -> None:
    spec = lab.spec("dkd")
    state = _stopped(lab, spec, "cut", 3)
    other = lab.spec("dkd", "beta=3.0")
    CheckpointFolder(lab.folders([other], "other")[0].checkpoints).save(state, (0, 0, 3))
    with pytest.raises(ConfigError, match="was started with config_sha256"):
        lab.train([other], "other")
