"""Teachers are trained once, by their recipe, and an interrupted training ends in the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdbench.artefacts import MANIFEST, PREDICTIONS, WEIGHTS, TeacherStore
from kdbench.errors import ConfigError, KdbenchError, RunError
from kdbench.evaluation import read_predicted
from kdbench.training import teachers
from kdbench.training.networks import load_teacher
from kdbench.training.teachers import Recipe, recipes_of, train_teacher
from kdbench.training.trainer import Interrupted
from kdbench.training.verifying import verify_teacher


@pytest.fixture
def recipe(lab: Any) -> Recipe:
    return Recipe("resnet8_w4", lab.dataset, lab.anchor(schedule__epochs=5))


def _place(lab: Any, name: str, **changes: Any) -> Any:
    return replace(lab.place, teachers=TeacherStore(lab.root / name), **changes)


def test_a_teacher_is_trained_with_labels_only_and_described(lab: Any, recipe: Recipe) -> None:
    place = _place(lab, "teachers")
    manifest = train_teacher(recipe, place)
    assert manifest == place.teachers.manifest(lab.dataset, "resnet8_w4-small-v1-seed0")
    assert (manifest.origin, manifest.recipe, manifest.epochs, manifest.seed) == ("trained", "small-v1", 5, 0)
    assert manifest.recipe_sha256 == recipe.anchor.sha256
    assert (manifest.test_images, len(manifest.classes), manifest.in_channels) == (599, 10, 1)
    folder = place.teachers.folder(lab.dataset, manifest.name)
    network = load_teacher(place.teachers, manifest, place.registry.backbones["resnet8_w4"])
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert network.mean.flatten().tolist() == pytest.approx(list(manifest.mean))
    assert torch.equal(verify_teacher(manifest, place).predicted, read_predicted(folder / PREDICTIONS))
    assert not (folder / teachers.TRAINING / "checkpoint").exists()
    # The supervised baseline under the same anchor and seed is the same training.
    student = lab.train([lab.spec("student", anchor=recipe.anchor)], "runs")[0].lane.student
    assert lab.digest_of(dict(sorted(student.state_dict().items()))) == lab.digest_of(
        dict(sorted(place.teachers.weights(manifest).items()))
    )


def test_an_existing_teacher_is_kept(lab: Any, recipe: Recipe) -> None:
    place = _place(lab, "teachers")
    first = train_teacher(recipe, place)
    folder = place.teachers.folder(lab.dataset, first.name)
    stamps = [(folder / name).stat().st_mtime_ns for name in (WEIGHTS, PREDICTIONS, MANIFEST)]
    again = train_teacher(recipe, replace(place, should_stop=lambda: True))
    assert again == first
    assert [(folder / name).stat().st_mtime_ns for name in (WEIGHTS, PREDICTIONS, MANIFEST)] == stamps


def test_a_teacher_of_another_recipe_is_refused(lab: Any, recipe: Recipe) -> None:
    place = _place(lab, "teachers")
    train_teacher(recipe, place)
    other = replace(recipe, anchor=lab.anchor(schedule__epochs=4))
    assert other.name == recipe.name
    with pytest.raises(KdbenchError, match=r"was made by another recipe .*; raise the anchor's version, choose"):
        train_teacher(other, place)


@pytest.mark.parametrize("steps", [2, 4, 11, 20])
def test_an_interrupted_training_continues_to_the_same_bits(lab: Any, recipe: Recipe, steps: int) -> None:
    whole = train_teacher(recipe, _place(lab, "whole"))
    with pytest.raises(Interrupted):
        train_teacher(recipe, _place(lab, "cut", should_stop=lab.stop_after(steps)))
    assert not TeacherStore(lab.root / "cut").exists(lab.dataset, recipe.name)
    assert train_teacher(recipe, _place(lab, "cut")).sha256 == whole.sha256


@pytest.mark.parametrize("file", [WEIGHTS, PREDICTIONS, MANIFEST])
def test_an_artefact_is_not_there_before_its_manifest(
    lab: Any, recipe: Recipe, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_teacher(recipe, _place(lab, "whole"))
    original = teachers.write_atomic

    def cut(path: Any, data: Any) -> None:
        if path.name == file:
            raise KeyboardInterrupt
        original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(teachers, "write_atomic", cut)
        with pytest.raises(KeyboardInterrupt):
            train_teacher(recipe, _place(lab, "cut"))
    assert not TeacherStore(lab.root / "cut").exists(lab.dataset, recipe.name)
    assert train_teacher(recipe, _place(lab, "cut")).sha256 == whole.sha256


def test_a_diverged_training_makes_no_teacher(lab: Any, recipe: Recipe) -> None:
    anchor = lab.anchor(optimizer__lr=1e9, step__grad_clip_norm=0.0, schedule__epochs=2)
    with pytest.raises(RunError, match=r"teacher 'resnet8_w4-small-v1-seed0': training diverged: non-finite loss"):
        train_teacher(replace(recipe, anchor=anchor), _place(lab, "teachers"))
    assert not TeacherStore(lab.root / "teachers").exists(lab.dataset, recipe.name)


def test_a_damaged_teacher_teaches_nobody(lab: Any, recipe: Recipe) -> None:
    place = _place(lab, "teachers")
    manifest = train_teacher(recipe, place)
    path = place.teachers.folder(lab.dataset, manifest.name) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(KdbenchError, match=r"corrupt: sha256 is .* expected .*train or import the teacher again"):
        verify_teacher(manifest, place)
    spec = lab.spec("vanilla_kd", networks=("resnet8_w4", ("resnet8_w4",)), teachers=(manifest.name,))
    with pytest.raises(KdbenchError, match="corrupt: sha256 is"):
        lab.train([spec], "runs", teachers=place.teachers)


def test_a_missing_teacher_is_named(lab: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"teacher 'resnet14_w8-recip' for dataset 'digits-20pc': not in .*Did you mean"
    ):
        lab.train([lab.spec("vanilla_kd", teachers=("resnet14_w8-recip",))], "runs")


def test_recipes_of_runs_come_once(lab: Any) -> None:
    specs = [lab.spec(method, seed=seed) for method in ("vanilla_kd", "dkd", "student") for seed in (0, 1)]
    unnamed = [spec.model_copy(update={"teacher_names": ()}) for spec in specs]
    assert recipes_of(specs) == []
    assert [recipe.name for recipe in recipes_of(unnamed)] == ["resnet14_w8-small-v1-seed0"]
