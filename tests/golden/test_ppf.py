"""Freeze levels of the libraries' plain models: stored names, and the table of what each level adds."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

ppf = importlib.import_module("adapters.ppf")

from kdbench.backbones.division import lies_in  # noqa: E402
from kdbench.backbones.freezing import FreezeLevel  # noqa: E402

GOLDEN = HERE.parents[2] / "shared" / "goldens" / "asib" / "ppf.json"
needs_shared = pytest.mark.skipif(not GOLDEN.exists(), reason="needs the shared reference files")

# Family: (what level 1 adds, what level 2 adds to that, the head), as published.
TABLE = {
    "resnet18": ("layer4", "layer3", "fc"),
    "resnet152": ("layer4", "layer3", "fc"),
    "mobilenet_v2": ("features.17 features.18", "features.14 features.15 features.16", "classifier"),
    "efficientnet_b0": ("features.7 features.8", "features.6", "classifier"),
    "shufflenet_v2_x1_0": ("stage4 conv5", "stage3", "fc"),
    "convnext_tiny": ("features.6 features.7", "features.4 features.5", "classifier"),
    "swin_t": ("features.6 features.7 norm", "features.4 features.5", "head"),
    "swin_v2_t": ("features.6 features.7 norm", "features.4 features.5", "head"),
    "timm:convnext_atto": ("stages.3", "stages.2", "head"),
    "timm:convnext_small": ("stages.3", "stages.2", "head"),
    "timm:convnextv2_atto": ("stages.3", "stages.2", "head"),
    "timm:efficientnet_b0": ("blocks.6 conv_head bn2", "blocks.5", "classifier"),
    "timm:tf_efficientnet_l2": ("blocks.6 conv_head bn2", "blocks.5", "classifier"),
    "timm:swin_tiny_patch4_window7_224": ("layers.3 norm", "layers.2", "head"),
    "timm:swinv2_tiny_window8_256": ("layers.3 norm", "layers.2", "head"),
}


@needs_shared
def test_golden() -> None:
    assert ppf.run(GOLDEN) == []


@needs_shared
def test_a_changed_name_or_number_is_a_problem(tmp_path: Path) -> None:
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    family = {"mobilenet_v2": stored["mobilenet_v2"]}
    names = family["mobilenet_v2"]["trainable"]["1"]["freeze_bn_true"]
    names.remove("features.18.0.weight")
    names.append("features.7.conv.0.0.weight")
    family["mobilenet_v2"]["trainable_count"]["0"]["freeze_bn_false"] = [106, 1]
    (tmp_path / "ppf.json").write_text(json.dumps(family), encoding="utf-8")
    first, second = ppf.run(tmp_path / "ppf.json")
    assert first.startswith("mobilenet_v2: level 0, freeze_bn_false: [106, 162212] tensors and numbers")
    assert second.startswith("mobilenet_v2: level 1, freeze_bn_true: 2 names differ")


def test_an_empty_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "ppf.json").write_text("{}", encoding="utf-8")
    assert ppf.run(tmp_path / "ppf.json") == ["ppf.json: holds no family"]


def expected(model: nn.Module, parts: list[str], *, freeze_bn: bool) -> set[str]:
    """Return what trains by the table: the parts, but norms by their kind alone."""
    names = {name for name, _ in model.named_parameters() if lies_in(name, parts)}
    for path, module in model.named_modules():
        own = {name for name, _ in module.named_parameters(path, recurse=False)}
        if isinstance(module, nn.LayerNorm) or (isinstance(module, nn.BatchNorm2d) and not freeze_bn):
            names |= own
        elif isinstance(module, nn.BatchNorm2d):
            names -= own
    return names


@pytest.mark.parametrize("family", TABLE)
def test_the_table(family: str) -> None:
    one, two, head = TABLE[family]
    model, _ = ppf.plain_model(family, 7)
    everything = tuple(name for name, _ in model.named_parameters())
    for freeze_bn in (False, True):
        found = [ppf.trained(family, 7, FreezeLevel(level, freeze_bn)) for level in (-1, 0, 1, 2)]
        levels = ([head], [head, *one.split()], [head, *one.split(), *two.split()])
        assert found[0] == everything
        assert [set(names) for names in found[1:]] == [expected(model, parts, freeze_bn=freeze_bn) for parts in levels]
