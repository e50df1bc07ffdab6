"""Teacher recipes: the shipped files against the table they come from, and what a recipe file may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import kdbench
from kdbench.config import recipes
from kdbench.config.recipes import check_names, from_scratch, load_recipe
from kdbench.config.schema import Anchor
from kdbench.errors import ConfigError, ProblemList
from kdbench.plan import Request, make_plan
from kdbench.registry import Registry, load
from kdbench.teacher_plan import TeacherRequest, teacher_cell

FILES = {path.stem: path for path in recipes.kdbench_recipes()}
# Section 6.5 of the experiments' specification, row by row: epochs, lr, weight decay, warm-up, batch, smoothing,
# scheduler, patience, min_delta; and the least rate where the scheduler has one.
STEP, PLATEAU, RESTARTS = "step", "reduce_on_plateau", "cosine_warm_restarts"
TABLE: dict[str, tuple[Any, ...]] = {
    "convnext_l_cifar100": (60, 8e-5, 8e-3, 5, 64, 0.5, "onecycle", 15, 0.05, 0.0),
    "convnext_l_imagenet32": (120, 4e-5, 1.2e-2, 10, 64, 0.7, RESTARTS, 15, 0.05, 4e-7),
    "convnext_s_cifar100": (80, 1.5e-4, 8e-3, 4, 128, 0.5, PLATEAU, 10, 0.1, 1e-6),
    "convnext_s_imagenet32": (120, 3e-5, 1.5e-2, 10, 256, 0.7, STEP, 25, 0.03, 0.0),
    "efficientnet_l2_cifar100": (65, 1.8e-4, 3e-3, 3, 32, 0.4, STEP, 6, 0.15, 0.0),
    "efficientnet_l2_imagenet32": (100, 5e-5, 8e-3, 10, 32, 0.7, STEP, 15, 0.05, 0.0),
    "resnet152_cifar100": (70, 1.2e-4, 2e-3, 3, 64, 0.3, RESTARTS, 10, 0.1, 1e-6),
    "resnet152_imagenet32": (80, 8e-5, 8e-3, 6, 128, 0.5, PLATEAU, 15, 0.08, 8e-7),
}
COURSES: dict[str, dict[str, Any]] = {
    "convnext_l_imagenet32": {"period": 30, "multiplier": 1, "restart_factor": 0.8},
    "convnext_s_cifar100": {"plateau_factor": 0.5, "plateau_patience": 5},
    "convnext_s_imagenet32": {"milestones": (40, 80, 100), "gamma": 0.5},
    "efficientnet_l2_cifar100": {"milestones": (20, 40, 55), "gamma": 0.3},
    "efficientnet_l2_imagenet32": {"milestones": (40, 70, 90), "gamma": 0.3},
    "resnet152_cifar100": {"period": 20, "multiplier": 2, "restart_factor": 1.0},
    "resnet152_imagenet32": {"plateau_factor": 0.5, "plateau_patience": 5},
}
TREE: dict[str, Any] = {
    "name": "tiny_digits",
    "backbone": "resnet8_w4",
    "dataset": "digits",
    "pretrained": True,
    "loss": {"ce_label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.001},
    "schedule": {"name": "onecycle", "epochs": 3, "warmup_epochs": 1},
    "data": {"batch_size": 40, "validation_fraction": 0.1},
    "stopping": {"patience": 2},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / f"{changes.get('name', TREE['name'])}.yaml"
    path.write_text(yaml.safe_dump({**TREE, **changes}), encoding="utf-8")
    return path


def with_files(*paths: Path) -> Registry:
    guest = ModuleType("guest")
    guest.kdbench_recipes = kdbench.hookimpl(lambda: list(paths), specname="kdbench_recipes")  # type: ignore[attr-defined]
    return load(extra=[guest])


def test_these_eight_ship(registry: Registry) -> None:
    assert set(FILES) >= set(TABLE)
    assert set(registry.recipes.as_mapping()) >= set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_every_value_of_the_table(name: str) -> None:
    recipe = load_recipe(FILES[name])
    anchor = recipe.anchor()
    backbone, _, dataset = name.rpartition("_")
    assert (recipe.name, recipe.backbone, recipe.dataset) == (name, backbone, dataset)
    schedule = anchor.schedule
    found = (
        schedule.epochs, anchor.optimizer.lr, anchor.optimizer.weight_decay, schedule.warmup_epochs,
        anchor.data.batch_size, anchor.loss.ce_label_smoothing, schedule.name, anchor.stopping.patience,
        anchor.stopping.min_delta, schedule.min_lr,
    )  # fmt: skip
    assert found == TABLE[name]
    assert {key: getattr(schedule, key) for key in COURSES.get(name, {})} == COURSES.get(name, {})
    assert anchor.optimizer.name == "adamw"
    assert (anchor.data.cutmix_alpha, anchor.data.mixup_alpha, anchor.data.validation_fraction) == (1.0, 0.0, 0.1)
    assert (anchor.step.precision, anchor.pretrained) == ("bf16", True)
    assert anchor.step.checkpointing is (backbone == "efficientnet_l2")
    assert (anchor.loss.ce_alpha, anchor.loss.kd_alpha) == (1.0, 0.0)


def test_no_two_recipes_have_the_same_hash() -> None:
    anchors = [load_recipe(path).anchor() for path in FILES.values()]
    anchors += [from_scratch(anchor) for anchor in anchors if anchor.pretrained]
    assert len({anchor.sha256 for anchor in anchors}) == len(anchors) >= 2 * len(TABLE)


def test_from_scratch_has_a_name_of_its_own(tmp_path: Path) -> None:
    anchor = load_recipe(write(tmp_path, version=2)).anchor()
    scratch = from_scratch(anchor)
    assert (anchor.label, scratch.label) == ("tiny_digits-v2", "tiny_digits-scratch-v2")
    assert {key for key, value in scratch.keys().items() if value != anchor.keys()[key]} == {"pretrained"}
    with pytest.raises(ConfigError) as caught:
        from_scratch(scratch)
    message = "--scratch: 'tiny_digits-scratch' starts from random weights anyway; leave --scratch out"
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbon": "x"}, "backbon: unknown key. Did you mean 'backbone'? Allowed: backbone"),
        ({"loss": {"kd_alpha": 0.5}}, "loss.kd_alpha: unknown key"),
        ({"dataset": "npz:/x.npz"}, "dataset is 'npz:/x.npz': string should match pattern '^[^:]+$'"),
        ({"data": {"batch_size": 40}}, "stopping.patience goes by the validation accuracy"),
        ({"optimizer": {"name": "adamw", "lr": 0.1}}, "optimizer.weight_decay: required, but missing"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ProblemList) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_names_are_checked(tmp_path: Path, registry: Registry) -> None:
    path = write(tmp_path, backbone="resnet8_w5", dataset="digit")
    with pytest.raises(ProblemList) as caught:
        check_names(load_recipe(path), path, registry.backbones.as_mapping(), registry.datasets.as_mapping())
    assert caught.value.problems == (
        f"{path}: backbone: unknown backbone 'resnet8_w5'. Did you mean 'resnet8_w4'? All: kdbench list backbones",
        f"{path}: dataset: unknown dataset 'digit'. Did you mean 'digits'? All: kdbench list datasets",
    )
    fine = write(tmp_path)
    check_names(load_recipe(fine), fine, registry.backbones.as_mapping(), registry.datasets.as_mapping())


REQUEST = TeacherRequest("resnet8_w4", "digits")


def test_the_recipe_of_backbone_and_dataset_is_taken(tmp_path: Path) -> None:
    registry = with_files(write(tmp_path))

    def protocol(**changes: Any) -> Anchor:
        return teacher_cell(replace(REQUEST, **changes), registry)[1]

    assert protocol() == registry.recipes["tiny_digits"].anchor()
    assert protocol(scratch=True).label == "tiny_digits-scratch-v1"
    assert protocol(backbone="resnet14_w8").label == "fair_baseline-v1"
    assert protocol(anchor="crd_smoke").label == "crd_smoke-v1"
    other = write(tmp_path, name="other", pretrained=False, schedule={"epochs": 2})
    assert protocol(recipe=str(other)).label == "other-v1"
    assert protocol(recipe="tiny_digits").label == "tiny_digits-v1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe": "tiny_digit"},
            "unknown recipe 'tiny_digit'. Did you mean 'tiny_digits'? All: kdbench list recipes",
        ),
        ({"recipe": "tiny_digits", "anchor": "crd"}, "--recipe and --anchor exclude each other: a recipe is the whole"),
        (
            {"recipe": "tiny_digits", "backbone": "resnet14_w8"},
            "--recipe tiny_digits: trains 'resnet8_w4', not 'resnet14_w8'; take another recipe",
        ),
        ({"backbone": "resnet14_w8", "scratch": True}, "--scratch: 'fair_baseline' starts from random weights anyway"),
        ({"dataset": "digit"}, "unknown dataset 'digit'. Did you mean 'digits'?"),
    ],
)
def test_a_teacher_command_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    registry = with_files(write(tmp_path))
    with pytest.raises(ProblemList) as caught:
        teacher_cell(replace(REQUEST, **changes), registry)
    assert str(caught.value).startswith(message)


def test_two_recipes_for_one_teacher_need_a_choice(tmp_path: Path) -> None:
    registry = with_files(write(tmp_path), write(tmp_path, name="again"))
    with pytest.raises(ProblemList) as caught:
        teacher_cell(REQUEST, registry)
    message = "backbone 'resnet8_w4' has several recipes for 'digits': again, tiny_digits; choose one by --recipe"
    assert str(caught.value) == message
    assert teacher_cell(replace(REQUEST, recipe="again"), registry)[1].name == "again"


def test_a_warm_up_as_long_as_the_training_is_refused(tmp_path: Path) -> None:
    registry = with_files(write(tmp_path, schedule={"epochs": 3, "warmup_epochs": 3}))
    with pytest.raises(ProblemList, match=r"schedule.warmup_epochs 3 is not less than schedule.epochs 3"):
        teacher_cell(REQUEST, registry)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "stopping: {patience: 3}\n",
            "anchor house: stopping.patience is 3, which is for teachers only (kdbench teacher train): a student's "
            "score is that of its last epoch; set it to 0",
        ),
        (
            "pretrained: true\n",
            "anchor house: pretrained is true, which is for teachers only (kdbench teacher train): students of one "
            "seed start from the same random weights; set it to false",
        ),
    ],
)
def test_students_are_neither_stopped_nor_pretrained(
    tmp_path: Path, registry: Registry, line: str, message: str
) -> None:
    path = tmp_path / "house.yaml"
    path.write_text(f"extends: fair_baseline_smoke\nname: house\n{line}", encoding="utf-8")
    with pytest.raises(ProblemList) as caught:
        make_plan(Request(("student",), ("tiny",), (0,), str(path)), registry)
    assert str(caught.value) == message
