"""kdbench list and kdbench show: a row or a page for everything that is registered."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import failure, installed, kdbench, write_plugin

from kdbench.registry import Registry, load

KINDS = ("methods", "backbones", "pairs", "datasets", "anchors", "recipes", "executors")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


@pytest.mark.parametrize("kind", KINDS)
def test_list_has_one_row_for_each_name(kind: str, registry: Registry) -> None:
    outcome = kdbench("list", kind)
    assert outcome.code == 0
    header, rule, *rows = outcome.out.splitlines()
    assert header.split()[0] == kind.removesuffix("s")
    assert set(rule) == {"-", " "}
    names = [registry.datasets[name].form if kind == "datasets" else name for name in getattr(registry, kind)]
    assert [row.split()[0] for row in rows] == names


def test_list_plugins_says_where_they_come_from(registry: Registry) -> None:
    rows = [row.split() for row in kdbench("list", "plugins").out.splitlines()[2:]]
    assert [row[0] for row in rows] == [plugin.name for plugin in registry.plugins]
    assert [row[-1] for row in rows] == [plugin.file for plugin in registry.plugins]
    assert {row[0]: row[4] for row in rows}["kdbench.methods.asib"] == "asib-config"


def test_list_teachers_without_any() -> None:
    assert kdbench("list", "teachers").out == "no teachers in teachers\n"
    assert kdbench("teacher", "list", "--teachers", "else").out == "no teachers in else\n"


@pytest.mark.parametrize("kind", KINDS)
def test_show_knows_everything_that_is_listed(kind: str, registry: Registry) -> None:
    names = list(getattr(registry, kind))
    if kind == "backbones":  # one of each family: counting all of them takes long
        names = list({registry.backbones[name].family: name for name in names}.values())
    for name in names:
        outcome = kdbench("show", name)
        assert outcome.code == 0, (name, outcome)
        assert f"{kind.removesuffix('s')} {name}" in outcome.out


def test_show_method_states_source_options_ranges() -> None:
    text = kdbench("show", "dkd").out
    assert text.startswith("method dkd (version 1, kdbench ")
    assert "source: Decoupled Knowledge Distillation (2022) https://arxiv.org/abs/2203.08679" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("alpha", "beta", "warmup"))}
    assert rows["beta"].split()[:5] == ["beta", "float", "8", ">=", "0"]
    assert "weight of the non-target-class part (NCKD)" in rows["beta"]
    assert ">= 0, <= 1" in rows["warmup"]


def test_show_method_states_what_a_protocol_or_pair_recommends() -> None:
    lines = kdbench("show", "reviewkd").out.splitlines()
    assert "under crd (res56_res20): weight=0.6" in lines
    assert any(line.startswith("under crd (") and line.endswith("), fair_baseline: weight=1.0") for line in lines)
    assert not [line for line in kdbench("show", "student").out.splitlines() if line.startswith("under")]
    # What holds under every protocol is said once, and options are written as people say them.
    text = kdbench("show", "asib").out
    assert text.count("recommended: ") == 1
    assert "under " not in text.partition("recommended: ")[2].partition("\n")[0]
    assert "its own business, whatever the anchor says: loss.kd_target" in text
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}
    assert rows["kd_ens_alpha_max"].startswith("float | null >= 0, <= 1")
    assert rows["student_freeze_level_schedule"].startswith("list of int | null >= -1, <= 2")
    assert any("exact | relax" in line for line in kdbench("show", "crd").out.splitlines())


def test_show_anchor_marks_locked_keys_and_lineage(registry: Registry) -> None:
    text = kdbench("show", "fair_baseline_smoke").out
    assert text.startswith("anchor fair_baseline_smoke-v1, sha256 ")
    assert "extends fair_baseline\n" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("loss.", "schedule."))}
    assert rows["loss.ce_alpha"] == ["0.65", "locked"]
    assert rows["schedule.epochs"] == ["2"]
    assert str(registry.anchors["fair_baseline_smoke"]) in text


def test_show_backbone_counts_at_the_given_size() -> None:
    # 8x8 instead of 32x32 pixels: 16 times fewer operations in every convolution, equal parameters.
    small, large = (kdbench("show", "resnet8_w4", "--size", size).out.splitlines() for size in (8, 32))
    assert small[1].startswith("at 3x8x8, 100 classes: 6,744 parameters, ")
    assert large[1].startswith("at 3x32x32, 100 classes: 6,744 parameters, ")
    head = 2 * 16 * 100  # the classifier sees pooled features, whatever the size
    flops = [int(lines[1].split()[-4].replace(",", "")) for lines in (small, large)]
    assert (flops[1] - head) == 16 * (flops[0] - head)
    assert small[3:] == [
        "stages (maps CxHxW) 4x8x8, 4x8x8, 8x4x4, 16x2x2",
        "embedding 16; head Linear 16 -> 100, 1,700 parameters",
        "input: height and width of at least 4 pixels",
    ]


def test_show_backbone_with_other_classes_and_channels() -> None:
    lines = kdbench("show", "resnet8_w4", "--size", 8, "--classes", 10, "--channels", 1).out.splitlines()
    # 90 classes of 16 weights and a bias less, and two channels of 4 filters of 3x3.
    assert lines[1].startswith(f"at 1x8x8, 10 classes: {6744 - 90 * 17 - 2 * 4 * 9:,} parameters, ")
    assert lines[4] == "embedding 16; head Linear 16 -> 10, 170 parameters"
    assert "Invalid value for '--classes'" in failure("show", "resnet8_w4", "--classes", 0)


HEAVY = """
import torch
from torch import nn
import kdbench
from kdbench.backbones.base import Backbone, Network, by_channels
from kdbench.types import Source

class Tokens(Network):
    stage_count, embedding_dim = 2, 8

    def __init__(self, num_classes, in_channels):
        super().__init__(in_channels)
        self.patches = nn.Conv2d(in_channels, 8, 4, 4)
        self.wide = nn.Linear(8, 1 << 33, bias=False)  # 256 GiB
        self.back = nn.Linear(1 << 33, 8, bias=False)
        self.head = nn.Linear(8, num_classes)

    def run_stage(self, index, x, *, pre):
        if index == 0:
            return None, self.patches(x)
        return None, self.back(self.wide(x.flatten(2).transpose(1, 2)))

    def embed(self, x):
        return x.mean(1)

@kdbench.hookimpl
def kdbench_backbones():
    source = Source("A Title", 2020, "https://a.b")
    return [Backbone("heavy", "mine", by_channels(Tokens), source, min_size=8, multiple_of=4)]
"""


def test_show_a_backbone_that_no_memory_would_hold(tmp_path: Path) -> None:
    with installed(write_plugin(tmp_path / "site", "heavy_backbones", HEAVY)):
        lines = kdbench("show", "heavy", "--size", 8).out.splitlines()
    weights = 3 * 16 * 8 + 8 + 2 * 8 * 2**33 + 8 * 100 + 100
    assert lines[0] == "backbone heavy (mine); A Title (2020) https://a.b"
    # Four patches go through each layer once; the head sees their mean.
    flops = 2 * (4 * (3 * 16 * 8 + 2 * 8 * 2**33) + 8 * 100)
    assert lines[1] == f"at 3x8x8, 100 classes: {weights:,} parameters, {flops:,} FLOPs per image"
    # Kept: the image for the patches, them for the wide layer, its output for the next, the mean for the head.
    kept = 4 * (3 * 64 + 4 * 8 + 4 * 2**33 + 8) / 2**20
    assert lines[2].startswith(f"memory per image in float32: {kept:,.1f} MiB kept in training, ")
    assert lines[3:] == [
        "stages (maps CxHxW) 8x2x2; (tokens TxD) 4x8",
        "embedding 8; head Linear 8 -> 100, 900 parameters",
        "input: height and width of at least 8 pixels that are multiples of 4",
    ]


def test_show_a_model_of_a_library() -> None:
    lines = kdbench("show", "torchvision:resnet18").out.splitlines()
    # The library's 11,689,512 with 100 classes, and a first convolution of 3x3.
    assert lines[1].startswith(f"at 3x32x32, 100 classes: {11_689_512 - 900 * 513 - 64 * 3 * 40:,} parameters, ")
    assert "stages (maps CxHxW) 64x32x32, 64x32x32, 128x16x16, 256x8x8, 512x4x4" in lines
    message = failure("show", "torchvision:resnet180")
    assert message.startswith("unknown backbone 'torchvision:resnet180'. Did you mean 'torchvision:resnet18'?")


def test_show_refuses_a_size_the_backbone_cannot_take() -> None:
    assert failure("show", "vgg8", "--size", "4") == (
        "backbone 'vgg8' needs height and width of at least 8 pixels that are multiples of 1; the images are 3x4x4"
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("VGG-8", "vgg8"), ("vanila_kd", "vanilla_kd"), ("fair_baselin", "fair_baseline"), ("tinny", "tiny")],
)
def test_show_suggests_the_nearest_name(name: str, nearest: str) -> None:
    assert failure("show", name) == (
        f"unknown name '{name}'. Did you mean '{nearest}'? All: kdbench list "
        "methods|backbones|pairs|datasets|anchors|recipes|presets|ladders|executors"
    )


def test_show_pair_prints_what_has_been_published() -> None:
    lines = kdbench("show", "res32x4_res8x4").out.splitlines()
    header = next(line for line in lines if line.startswith("claimed %")).split()
    assert header[2:] == ["RepDistiller", "SSKD", "SimKD", "mdistiller"]
    assert ["student", "72.50", "72.51", "73.09"] in [line.split() for line in lines]
    assert "  anchor crd, 240 epochs, cifar100; epoch best-test, teacher 79.63 %" in lines
    assert "never ranked" in lines[-1]
    assert "claimed" not in kdbench("show", "tiny").out
