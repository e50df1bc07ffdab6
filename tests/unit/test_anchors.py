"""The six shipped anchors hold the values of their sources, and short variants differ in nothing but their length."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdbench.config.loading import load_anchor
from kdbench.config.schema import Anchor
from kdbench.registry import Registry

# The user's strict protocol: every key, so that no default slips in unseen.
FAIR_BASELINE = {
    "strict_mode": True,
    "auto_renorm": False,
    "loss.ce_alpha": 0.65,
    "loss.kd_alpha": 0.35,
    "loss.weights": "anchor",
    "loss.kd_target": "avg",
    "loss.kd_teacher_index": 0,
    "loss.teacher_weights": None,
    "loss.tau": 4.0,
    "loss.tau_schedule": None,
    "loss.tau_start": None,
    "loss.tau_end": None,
    "loss.tau_decay_power": 1.0,
    "loss.ce_label_smoothing": 0.05,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.1,
    "optimizer.lr_by_student": {},
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 5e-4,
    "schedule.name": "cosine",
    "schedule.epochs": 240,
    "schedule.warmup_epochs": 5,
    "schedule.min_lr": 1e-5,
    "schedule.milestones": (),
    "schedule.gamma": 0.1,
    "schedule.period": 0,
    "schedule.multiplier": 1,
    "schedule.restart_factor": 1.0,
    "schedule.plateau_factor": 0.5,
    "schedule.plateau_patience": 5,
    "data.batch_size": 128,
    "data.validation_fraction": 0.1,
    "data.crop_padding": 4,
    "data.padding_mode": "reflect",
    "data.mirror": True,
    "data.mixup_alpha": 0.2,
    "data.cutmix_alpha": 1.0,
    "step.precision": "bf16",
    "step.channels_last": True,
    "step.grad_clip_norm": 1.0,
    "step.accumulate": 1,
    "step.ema_decay": 0.0,
    "step.checkpointing": False,
    "step.compile": False,
    "step.teacher_precision": None,
    "step.teacher_cache": "exact",
    "step.batch_norm": "sync",
    "step.safe_retry": False,
    "freezing.use_partial_freeze": False,
    "freezing.student_freeze_bn": False,
    "evaluation.every": 1,
    "evaluation.batch_size": 500,
    "stopping.patience": 0,
    "stopping.min_delta": 0.0,
    "pretrained": False,
}
# The field's protocol (RepDistiller's column of the table): 0-based milestones, so epoch 151 is the first slower one.
CRD = FAIR_BASELINE | {
    "loss.ce_alpha": 0.1,
    "loss.kd_alpha": 0.9,
    "loss.weights": "published",
    "loss.ce_label_smoothing": 0.0,
    "optimizer.lr": 0.05,
    "optimizer.lr_by_student": {"MobileNetV2": 0.01, "ShuffleV1": 0.01, "ShuffleV2": 0.01},
    "optimizer.nesterov": False,
    "schedule.name": "step",
    "schedule.warmup_epochs": 0,
    "schedule.min_lr": 0.0,
    "schedule.milestones": (150, 180, 210),
    "data.batch_size": 64,
    "data.validation_fraction": 0.0,
    "data.padding_mode": "zeros",
    "data.mixup_alpha": 0.0,
    "data.cutmix_alpha": 0.0,
    "step.precision": "fp32",
    "step.grad_clip_norm": 0.0,
}
EXPECTED = {
    "fair_baseline": FAIR_BASELINE,
    "fair_baseline_short": FAIR_BASELINE | {"schedule.epochs": 15, "schedule.warmup_epochs": 1},
    "fair_baseline_smoke": FAIR_BASELINE | {"schedule.epochs": 2, "schedule.warmup_epochs": 1},
    "crd": CRD,
    "crd_short": CRD | {"schedule.epochs": 15, "schedule.milestones": (9, 11, 13)},
    "crd_smoke": CRD | {"schedule.epochs": 2, "schedule.milestones": (1,)},
}
# What the protocol protects, of the keys there are.
PROTECTED = {
    "loss.ce_alpha",
    "loss.kd_alpha",
    "loss.tau",
    "loss.tau_schedule",
    "loss.ce_label_smoothing",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "data.batch_size",
    "data.mixup_alpha",
    "data.cutmix_alpha",
    "freezing.use_partial_freeze",
    "freezing.student_freeze_bn",
}


def anchor(name: str, registry: Registry) -> Anchor:
    return load_anchor(name, registry.anchors.as_mapping())


def test_these_six_ship(registry: Registry) -> None:
    ours = {name for name in registry.anchors if registry.anchors.owner(name).name == "kdbench.config.pairs"}
    assert ours == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_value(registry: Registry, name: str) -> None:
    assert anchor(name, registry).keys() == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_name_lineage_and_locks(registry: Registry, name: str) -> None:
    loaded = anchor(name, registry)
    root = "crd" if name.startswith("crd") else "fair_baseline"
    assert (loaded.name, loaded.version, loaded.family) == (name, 1, root)
    assert loaded.lineage == (() if name == root else (root,))
    assert set(loaded.locked) >= PROTECTED
    assert "loss.kd_target" not in loaded.locked  # methods choose it


def test_no_two_have_the_same_hash(registry: Registry) -> None:
    assert len({anchor(name, registry).sha256 for name in EXPECTED}) == 6


def test_learning_rate_by_student(registry: Registry) -> None:
    crd = anchor("crd", registry)
    rates = {name: crd.learning_rate_of(name) for name in ("MobileNetV2", "ShuffleV2", "resnet20")}
    assert rates == {"MobileNetV2": 0.01, "ShuffleV2": 0.01, "resnet20": 0.05}
    fair = anchor("fair_baseline", registry)
    assert fair.learning_rate_of("MobileNetV2") == 0.1


def test_students_with_a_rate_of_their_own_exist(registry: Registry) -> None:
    """A misspelt name would silently train at the common rate; ShuffleV1 is in no shipped pair, but is a backbone."""
    assert set(anchor("crd", registry).optimizer.lr_by_student) <= set(registry.backbones.as_mapping())


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_crd_against_the_reference_table(registry: Registry, shared: Path) -> None:
    text = (shared / "goldens" / "README.md").read_text(encoding="utf-8")
    crd = anchor("crd", registry)
    assert int(row(text, "epochs")[1]) == crd.schedule.epochs
    assert int(row(text, "batch size")[1]) == crd.data.batch_size
    assert float(row(text, "initial lr")[1]) == crd.optimizer.lr
    assert float(row(text, "lr, MobileNetV2 / ShuffleV1 / ShuffleV2 students")[1]) == 0.01
    assert float(row(text, "weight decay")[1]) == crd.optimizer.weight_decay
    assert row(text, "decay epochs, rate")[1] == "150, 180, 210; x0.1"
    assert int(row(text, "first epoch with the lower lr (counting from 1)")[1]) == crd.schedule.milestones[0] + 1


def test_fair_baseline_against_the_reference_text(registry: Registry, shared: Path) -> None:
    text = (shared / "asib.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.strip().startswith("fair_baseline values:")]
    fair = anchor("fair_baseline", registry)
    found = {key: float(value) for key, value in re.findall(r"(\w+) ([0-9.]+(?:e-?[0-9]+)?)[,.]", line)}
    assert found == {
        "ce": fair.loss.ce_alpha,
        "kd": fair.loss.kd_alpha,
        "tau": fair.loss.tau,
        "ce_label_smoothing": fair.loss.ce_label_smoothing,
        "lr": fair.optimizer.lr,
        "wd": fair.optimizer.weight_decay,
        "batch": fair.data.batch_size,
        "mixup": fair.data.mixup_alpha,
        "cutmix": fair.data.cutmix_alpha,
    }
    for words in ("kd_target avg", "sgd", "use_partial_freeze false", "student_freeze_bn false", "strict_mode true"):
        assert words in line
