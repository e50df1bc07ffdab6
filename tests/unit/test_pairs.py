"""Pair files: every shipped one loads and fits its dataset; a name that is not registered fails when it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.backbones.cost import flops_of
from kdbench.config.pairs import load_pair
from kdbench.errors import ConfigError, ProblemList
from kdbench.registry import Registry
from kdbench.types import Pair, StageShape

# The field's thirteen on CIFAR-100, seven of one family and six across two: student, teacher.
STANDARD = {
    "res110_res20": ("resnet20", "resnet110"),
    "res110_res32": ("resnet32", "resnet110"),
    "res32x4_res8x4": ("resnet8x4", "resnet32x4"),
    "res56_res20": ("resnet20", "resnet56"),
    "vgg13_vgg8": ("vgg8", "vgg13"),
    "wrn40_2_wrn16_2": ("wrn_16_2", "wrn_40_2"),
    "wrn40_2_wrn40_1": ("wrn_40_1", "wrn_40_2"),
    "res32x4_shuv1": ("ShuffleV1", "resnet32x4"),
    "res32x4_shuv2": ("ShuffleV2", "resnet32x4"),
    "res50_mbv2": ("MobileNetV2", "ResNet50"),
    "res50_vgg8": ("vgg8", "ResNet50"),
    "vgg13_mbv2": ("MobileNetV2", "vgg13"),
    "wrn40_2_shuv1": ("ShuffleV1", "wrn_40_2"),
}
# student, teachers, dataset
SHIPPED: dict[str, tuple[str, tuple[str, ...], str]] = {
    **{name: (student, (teacher,), "cifar100") for name, (student, teacher) in STANDARD.items()},
    "res20_res8": ("resnet8", ("resnet20",), "cifar100"),
    "res56he_shuv2": ("ShuffleV2", ("resnet56_he",), "cifar10"),
    "res56he_res20he_res8": ("resnet8", ("resnet56_he", "resnet20_he"), "cifar10"),
    "tiny": ("resnet8_w4", ("resnet14_w8",), "digits"),
    "tiny_two": ("resnet8_w4", ("resnet14_w8", "resnet8_w4"), "digits"),
}
# Two teachers from a library each, and students trained from nothing.
LIBRARY: dict[str, tuple[str, tuple[str, ...], str]] = {
    "r152_mbv2": ("mobilenet_v2_scratch", ("resnet152", "convnext_s"), "cifar100"),
    "cnexts_eb0": ("efficientnet_b0_scratch", ("convnext_s", "resnet152"), "cifar100"),
    "cnextl_r152_r101": ("resnet101_scratch", ("convnext_l", "resnet152"), "cifar100"),
    "overlap_100": ("resnet101_scratch", ("convnext_s", "resnet152"), "cifar100"),
}
# Per-pair values of the published tables; a method's default stands where there is none.
PUBLISHED = {
    ("dkd", "beta"): {
        "res56_res20": 2, "res110_res32": 2, "res32x4_res8x4": 8, "wrn40_2_wrn16_2": 6, "wrn40_2_wrn40_1": 6,
        "vgg13_vgg8": 6, "res32x4_shuv1": 8, "wrn40_2_shuv1": 8, "vgg13_mbv2": 6, "res50_mbv2": 8, "res32x4_shuv2": 8,
    },
    ("reviewkd", "weight"): {
        "wrn40_2_wrn16_2": 5, "wrn40_2_wrn40_1": 5, "wrn40_2_shuv1": 5, "res32x4_res8x4": 5, "res32x4_shuv1": 5,
        "res32x4_shuv2": 8, "res56_res20": 0.6, "res110_res32": 1,
    },
}  # fmt: skip
KNOWN = {"resnet20": None, "resnet56": None}
DATA = {"digits": None, "npz": None}


def problems(text: str, folder: Path) -> tuple[str, ...]:
    (folder / "p.yaml").write_text(text)
    with pytest.raises(ProblemList) as caught:
        load_pair(folder / "p.yaml", KNOWN, DATA)
    return caught.value.problems


def test_shipped_pairs(registry: Registry) -> None:
    ours = {n: p for n, p in registry.pairs.as_mapping().items() if registry.pairs.owner(n).distribution == "kdbench"}
    assert {n: (p.student, p.teachers, p.dataset) for n, p in ours.items()} == SHIPPED | LIBRARY
    assert len(STANDARD) == 13


@pytest.mark.parametrize(("method", "option"), PUBLISHED)
def test_published_values_of_the_standard_pairs(registry: Registry, method: str, option: str) -> None:
    kind = registry.methods[method]
    found = {name: kind.recommended("crd", registry.pairs[name]).get(option) for name in STANDARD}
    assert {name: value for name, value in found.items() if value is not None} == PUBLISHED[method, option]


@pytest.mark.parametrize("name", SHIPPED)
def test_networks_of_a_pair_take_its_images_and_the_teacher_computes_more(registry: Registry, name: str) -> None:
    pair = registry.pairs[name]
    image = StageShape((1, 8, 8)) if pair.dataset == "digits" else StageShape((3, 32, 32))
    student, *teachers = (registry.backbones[backbone] for backbone in (pair.student, *pair.teachers))
    assert [network.unfit(image) for network in (student, *teachers)] == [None] * (1 + len(teachers))
    # Operations, not parameters: grouped convolutions have many parameters for little arithmetic.
    ours, *theirs = (flops_of(b.build(10, image).to("meta"), image) for b in (student, *teachers))
    assert ours < theirs[0]
    assert ours <= min(theirs)


def test_all_that_is_unknown_at_once(tmp_path: Path) -> None:
    said = problems("name: p\nstudent: resnet22\nteachers: [resnet56, vgg]\ndataset: digitz\n", tmp_path)
    file = tmp_path / "p.yaml"
    assert said == (
        f"{file}: student: unknown backbone 'resnet22'. Did you mean 'resnet20'? All: kdbench list backbones",
        f"{file}: teachers[1]: unknown backbone 'vgg'. All: kdbench list backbones",
        f"{file}: dataset: unknown dataset 'digitz'. Did you mean 'digits'? All: kdbench list datasets",
    )


def test_wrong_keys(tmp_path: Path) -> None:
    said = problems("name: ../p\nstudnet: resnet20\nteachers: []\ndataset: digits\n", tmp_path)
    where = f"{tmp_path / 'p.yaml'}: "
    assert len(said) == 4
    assert any(text.startswith(f"{where}studnet: unknown key. Did you mean 'student'?") for text in said)
    assert any(text.startswith(f"{where}teachers is []: ") for text in said)
    assert any(text.startswith(f"{where}name is '../p': ") for text in said)
    assert f"{where}student: required, but missing" in said


def test_dataset_with_a_path_and_several_teachers(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: p\nstudent: resnet20\nteachers: [resnet56, resnet20]\ndataset: npz:/a/b.npz\n"
    )
    pair = load_pair(tmp_path / "p.yaml", KNOWN, DATA)
    assert pair == Pair("p", "resnet20", ("resnet56", "resnet20"), "npz:/a/b.npz")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pair(tmp_path / "gone.yaml", KNOWN, DATA)
