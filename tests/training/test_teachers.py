"""Teachers are trained once, by their recipe, and an interrupted training ends in the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdbench import artefacts
from kdbench.artefacts import MANIFEST, PREDICTIONS, WEIGHTS, TeacherStore, sha256_of
from kdbench.backbones.base import Backbone, Network
from kdbench.config.recipes import from_scratch
from kdbench.errors import ConfigError, KdbenchError, RunError
from kdbench.evaluation import read_predicted
from kdbench.files import TEMPORARY
from kdbench.training import teachers
from kdbench.training.networks import load_teacher, new_network
from kdbench.training.teachers import Recipe, recipes_of, train_teacher
from kdbench.training.trainer import Interrupted
from kdbench.training.verifying import verify_teacher
from kdbench.types import StageShape


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
    network = load_teacher(place.teachers, manifest, place.registry.backbones["resnet8_w4"], StageShape((1, 8, 8)))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert network.mean.flatten().tolist() == pytest.approx(list(manifest.mean))
    assert torch.equal(verify_teacher(manifest, place).predicted, read_predicted(folder / PREDICTIONS))
    hashes = [sha256_of(folder / name) for name in (WEIGHTS, PREDICTIONS)]
    assert [manifest.sha256, manifest.predictions_sha256] == hashes
    assert not (folder / teachers.TRAINING / "checkpoint").exists()
    # The supervised baseline under the same anchor and seed is the same training.
    student = lab.train([lab.spec("student", anchor=recipe.anchor)], "runs")[0].lane.student
    assert lab.digest_of(dict(sorted(student.state_dict().items()))) == lab.digest_of(
        dict(sorted(place.teachers.weights(manifest).items()))
    )


def test_verifying_looks_at_the_predictions_too(lab: Any, recipe: Recipe) -> None:
    place = _place(lab, "teachers")
    manifest = train_teacher(recipe, place)
    path = place.teachers.folder(lab.dataset, manifest.name) / PREDICTIONS
    data = path.read_bytes()
    path.write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])
    with pytest.raises(KdbenchError, match=r"predictions.npz: corrupt: sha256 is"):
        verify_teacher(manifest, place)


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
    store = TeacherStore(lab.root / "cut")
    assert not store.exists(lab.dataset, recipe.name)
    left = store.folder(lab.dataset, recipe.name) / f"{TEMPORARY}1-2-{WEIGHTS}"  # as of a writer that was killed
    left.touch()
    assert train_teacher(recipe, _place(lab, "cut")).sha256 == whole.sha256
    assert not left.exists()


STOPPED: dict[str, Any] = {
    "schedule__epochs": 12,
    "schedule__name": "constant",
    "optimizer__lr": 0.6,
    "stopping__patience": 3,
}


def test_a_stopped_teacher_is_that_of_its_best_epoch(lab: Any, recipe: Recipe) -> None:
    stopped = replace(recipe, anchor=lab.anchor(**STOPPED))
    whole = train_teacher(stopped, _place(lab, "whole"))
    assert (whole.epochs, whole.best_epoch) == (12, 9) or whole.epochs == whole.best_epoch + 3 < 12
    # The same training, as long as that epoch, and without an early end.
    short = lab.anchor(**{**STOPPED, "schedule__epochs": whole.best_epoch, "stopping__patience": 0})
    other = train_teacher(replace(recipe, anchor=short), _place(lab, "short"))
    assert (other.sha256, other.accuracy, other.best_epoch) == (whole.sha256, whole.accuracy, None)
    for steps in (1, whole.best_epoch * lab.steps, whole.epochs * lab.steps - 1):
        with pytest.raises(Interrupted):
            train_teacher(stopped, _place(lab, f"cut{steps}", should_stop=lab.stop_after(steps)))
        assert train_teacher(stopped, _place(lab, f"cut{steps}")).sha256 == whole.sha256


def test_pretrained_weights_come_from_the_backbone(lab: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, StageShape]] = []
    backbone: Backbone = lab.place.registry.backbones["resnet8_w4"]

    def build_pretrained(classes: int, image: StageShape) -> Network:
        asked.append((classes, image))
        network = backbone.build(classes, image)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.75)
        return network

    monkeypatch.setitem(vars(backbone), "build_pretrained", build_pretrained)
    image = StageShape((1, 8, 8))
    random, mine = (list(new_network(backbone, 10, image, 0, pretrained=p).parameters()) for p in (False, True))
    for a, b in zip(random, mine, strict=True):
        torch.testing.assert_close(a * 0.75, b)
    asked.clear()
    protocol = recipe.anchor.model_copy(update={"pretrained": True})
    tuned = train_teacher(replace(recipe, anchor=protocol), _place(lab, "tuned"))
    assert asked == [(10, image)]
    scratch = replace(recipe, anchor=from_scratch(protocol))
    assert scratch.name == "resnet8_w4-small-scratch-v1-seed0"
    untuned = train_teacher(scratch, _place(lab, "tuned"))
    assert (untuned.name, len(asked)) == (scratch.name, 1)
    assert untuned.sha256 == train_teacher(recipe, _place(lab, "plain")).sha256 != tuned.sha256
    assert len({m.recipe_sha256 for m in (tuned, untuned)}) == 2


def test_a_backbone_without_pretrained_weights_is_refused_before_data_are_read(
    lab: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = recipe.anchor.model_copy(update={"pretrained": True})
    monkeypatch.setattr(teachers, "train_cohort", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ConfigError) as caught:
        train_teacher(replace(recipe, anchor=protocol), _place(lab, "teachers"))
    assert str(caught.value) == (
        "backbone 'resnet8_w4' has no pretrained weights; add --scratch, or bring a teacher with kdbench teacher import"
    )


@pytest.mark.parametrize("on", [False, True])
def test_checkpointing_reaches_the_network(lab: Any, *, on: bool) -> None:
    anchor = lab.anchor(step__checkpointing=on, schedule__epochs=1)
    assert lab.train([lab.spec("student", anchor=anchor)], "runs")[0].lane.student.checkpointing is on


@pytest.mark.parametrize("file", [WEIGHTS, PREDICTIONS, MANIFEST])
def test_an_artefact_is_not_there_before_its_manifest(
    lab: Any, recipe: Recipe, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_teacher(recipe, _place(lab, "whole"))
    original = artefacts.write_atomic

    def cut(path: Any, data: Any) -> None:
        if path.name == file:
            raise KeyboardInterrupt
        original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "write_atomic", cut)
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
