"""kdbench list and kdbench show: a row or a page for everything that is registered."""

from __future__ import annotations

import pytest
from commandline import failure, kdbench

from kdbench.registry import Registry, load

KINDS = ("methods", "backbones", "pairs", "datasets", "anchors", "recipes")


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
    paths = [d.name for d in registry.datasets.values() if d.takes_path]
    names = [f"{name}:PATH" if kind == "datasets" and name in paths else name for name in getattr(registry, kind)]
    assert [row.split()[0] for row in rows] == names


def test_list_plugins_says_where_they_come_from(registry: Registry) -> None:
    rows = [row.split() for row in kdbench("list", "plugins").out.splitlines()[2:]]
    assert [row[0] for row in rows] == [plugin.name for plugin in registry.plugins]
    assert [row[4] for row in rows] == [plugin.file for plugin in registry.plugins]


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
    assert "under fair_baseline: weight=1.0" in lines
    assert not [line for line in kdbench("show", "student").out.splitlines() if line.startswith("under")]
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
    assert small[2] == "stages 4x8x8, 4x8x8, 8x4x4, 16x2x2; embedding 16"


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
        "methods|backbones|pairs|datasets|anchors|recipes"
    )
