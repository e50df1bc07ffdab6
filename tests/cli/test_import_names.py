"""What the names of files, folders and stored command lines say of the network."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from kdbench.registry import load
from kdbench.training.foreign import read_checkpoint
from kdbench.training.naming import ALIASES, claims, meant_by


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mobile_half_cifar100_lr_0.01_decay_0.0005_trial_0", "MobileNetV2"),
        ("mv2", "MobileNetV2"),
        ("shuv1", "ShuffleV1"),
        ("ShuffleNetV2-1x", "ShuffleV2"),
        ("vgg8_bn", "vgg8"),
        ("vgg19_vanilla", "vgg19"),
        ("wrn40_2", "wrn_40_2"),
        ("WRN-16-1", "wrn_16_1"),
        ("wrn_40_2_vanilla", "wrn_40_2"),
        ("wrn_40_20", None),
        ("res32x4", "resnet32x4"),
        ("res50", "ResNet50"),
        ("resnet32x4_best", "resnet32x4"),
        ("resnet32", "resnet32"),
        ("resnet38x2_best", None),
        ("resnet20_he_vanilla", "resnet20_he"),
        ("ckpt_epoch_240", None),
        ("", None),
    ],
)
def test_names_of_other_programs(text: str, name: str | None) -> None:
    assert meant_by(text, [backbone.name for backbone in load().backbones.values()]) == name


def test_every_alias_stands_for_a_registered_backbone() -> None:
    names = {backbone.name for backbone in load().backbones.values()}
    assert set(ALIASES.values()) <= names
    assert not names & ALIASES.keys()


@pytest.mark.parametrize(
    ("options", "part", "file", "texts"),
    [
        ({"model": "a", "model_s": "b", "model_t": "c"}, "", "f/n_best.pth", ["a", "b", "n_best", "f"]),
        ({"model": "a", "model_s": "b", "model_t": "c"}, "student", "f/n_best.pth", ["b", "n_best", "f"]),
        ({"model": "a", "model_s": "b", "model_t": "c"}, "teacher", "f/n_best.pth", ["c", "f"]),
        ({}, "", "S:resnet8x4_T:wrn_40_2_cifar100_kd_r:1/x.pth", ["x", "resnet8x4"]),
        ({}, "teacher", "S~resnet8x4_T~wrn_40_2_cifar100_kd_r~1/x.pth", ["wrn_40_2_cifar100_kd_r~1"]),
        ({}, "student", "dkd,wrn_40_2,shuv1/best", ["best", "shuv1"]),
        ({}, "teacher", "dkd,wrn_40_2,shuv1/best", ["wrn_40_2"]),
        ({}, "", "vanilla,res56/student_best", ["student_best", "res56"]),
    ],
)
def test_where_names_are_looked_for(options: dict[str, str], part: str, file: str, texts: list[str]) -> None:
    assert [text for _, text in claims(options, part, Path(file))] == texts


def test_stored_options_of_any_kind_are_found() -> None:
    weights = {"w": torch.ones(1)}
    forms = ({"arch": "a", "state_dict": weights}, {"args": {"arch": "a"}, "model": weights})
    for tree in (*forms, {"config": argparse.Namespace(arch="a", model=3), "net": weights}):
        torch.save(tree, "n.pth")
        assert read_checkpoint(Path("n.pth")).options == {"arch": "a"}
