"""Every registered backbone can be frozen in part, at every level that is used."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from kdbench import registry as registries
from kdbench.adapters import ChannelAdapter
from kdbench.backbones import freezing
from kdbench.backbones.base import Backbone, Network
from kdbench.backbones.division import lies_in
from kdbench.backbones.freezing import FreezeLevel
from kdbench.errors import Unsupported
from kdbench.types import StageShape

EXAMPLES = (
    "torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:densenet121", "torchvision:convnext_tiny",
    "timm:resnet10t", "timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224",
    "timm:mixer_s16_224", "timm:mobilenetv3_small_050", "timm:densenet121", "timm:regnety_002", "timm:nfnet_f0",
)  # fmt: skip
# Those with an adapter inside.
STUDENTS = (
    "resnet50_scratch", "resnet101_scratch", "resnet152_scratch", "resnet101_pretrain", "resnet152_pretrain",
    "efficientnet_b0_scratch", "shufflenet_v2_scratch",
)  # fmt: skip
RUNNABLE = 30_000_000  # parameters up to which a real pass takes a second
REGISTRY = registries.load()
NAMES = (*REGISTRY.backbones.as_mapping(), *EXAMPLES)
LEVELS = (0, 1, 2)

# What the last two blocks of a network are, and what lies behind them.
DEEPEST = {
    "resnet8x4": ("layer2", "layer3", ""),
    "resnet20_he": ("layer2", "layer3", ""),
    "wrn_16_2": ("block2", "block3", "bn1"),
    "vgg8": ("block3", "block4", ""),
    "MobileNetV2": ("blocks.5", "blocks.6", "conv2"),
    "ShuffleV1": ("layer2", "layer3", ""),
    "ShuffleV2": ("layer2", "layer3", "conv2 bn2"),
    "ResNet50": ("layer3", "layer4", ""),
    "resnet101_scratch": ("model.layer3", "model.layer4", ""),
    "resnet152": ("model.layer3", "model.layer4", ""),
    "mobilenet_v2_scratch": (
        "model.features.14 model.features.15 model.features.16", "model.features.17", "model.features.18"
    ),
    "efficientnet_b0_scratch": ("model.features.6", "model.features.7", "model.features.8"),
    "shufflenet_v2_scratch": ("model.stage3", "model.stage4", "model.conv5"),
    "convnext_s": ("model.stages.2", "model.stages.3", "model.norm_pre"),
    "efficientnet_l2": ("model.blocks.5", "model.blocks.6", "model.conv_head model.bn2"),
}  # fmt: skip


def backbone(name: str) -> Backbone:
    return REGISTRY.backbones[name]


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> Network:
    """Return the network without memory for its weights."""
    with torch.device("meta"):
        return backbone(request.param).build(7, StageShape((3, 32, 32))).train()


def trained(network: Network, level: int, *, freeze_bn: bool) -> set[str]:
    freezing.apply(network, FreezeLevel(level, freeze_bn))
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_every_parameter_is_in_one_part(network: Network) -> None:
    division = network.freeze_division()
    division.check(network)
    parts = [*division.blocks, division.behind, division.head]
    homes = Counter({name: sum(lies_in(name, part) for part in parts) for name, _ in network.named_parameters()})
    assert {name for name, count in homes.items() if count > 1} == set()
    assert {name for name, count in homes.items() if not count and not lies_in(name, division.always)} == set()
    assert len(division.blocks) >= 3


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_each_level_trains_more(network: Network, freeze_bn: bool) -> None:
    everything, division = {name for name, _ in network.named_parameters()}, network.freeze_division()
    found = [trained(network, level, freeze_bn=freeze_bn) for level in LEVELS]
    head = {name for name in everything if lies_in(name, division.head)}
    assert set() < head <= found[0] < found[1] < found[2] < everything
    assert trained(network, len(division.blocks), freeze_bn=False) == everything
    assert trained(network, -1, freeze_bn=freeze_bn) == everything
    assert all(module.training for module in network.modules())
    with pytest.raises(Unsupported, match=r"allowed are -1\.\."):
        trained(network, len(division.blocks) + 1, freeze_bn=freeze_bn)


def test_frozen_norms_are_in_eval_mode_and_nothing_else_is(network: Network) -> None:
    freezing.apply(network, FreezeLevel(1, freeze_bn=True))
    resting = {module for module in network.modules() if not module.training}
    assert resting == {module for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    freezing.apply(network, FreezeLevel())


@pytest.mark.parametrize("name", STUDENTS)
def test_adapters_always_train(name: str) -> None:
    with torch.device("meta"):
        network = backbone(name).build(7, StageShape((3, 32, 32))).train()
    inside = [path for path, module in network.named_modules() if isinstance(module, ChannelAdapter)]
    assert inside == ["model.adapter"]
    own = {path for path, _ in network.named_parameters() if lies_in(path, inside)}
    assert len(own) == 6
    for level in (-1, *LEVELS):
        assert own <= trained(network, level, freeze_bn=True)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_norms_keep_their_statistics(name: str) -> None:
    image = StageShape((3, 32, 32))
    if backbone(name).info(7, image).parameters > RUNNABLE:
        pytest.skip("a real pass costs too much; that its norms are in eval mode is tested above")
    torch.manual_seed(0)
    network = backbone(name).build(7, image).train()
    freezing.apply(network, FreezeLevel(0, freeze_bn=True))
    before = copy.deepcopy(dict(network.named_buffers()))
    with torch.no_grad():
        network(torch.rand(2, 3, 32, 32))
    assert [path for path, value in network.named_buffers() if not torch.equal(value, before[path])] == []
    freezing.apply(network, FreezeLevel(0, freeze_bn=False))
    with torch.no_grad():
        network(torch.rand(2, 3, 32, 32))
    statistics = [path for path in before if path.endswith("running_mean")]
    buffers = dict(network.named_buffers())
    assert all(not torch.equal(buffers[path], before[path]) for path in statistics)


@pytest.mark.parametrize("name", DEEPEST)
def test_the_deepest_blocks(name: str) -> None:
    with torch.device("meta"):
        division = backbone(name).build(7, StageShape((3, 32, 32))).freeze_division()
    *_, second, last = division.blocks
    adapter = "model.adapter"
    found = [" ".join(part for part in parts if part != adapter) for parts in (second, last, division.behind)]
    assert tuple(found) == DEEPEST[name]


# Blocks of timm's models, by how they list their features.
LISTED = {
    # One module of the network for each feature.
    "timm:resnet18": "conv1 bn1 | layer1 | layer2 | layer3 | layer4",
    # Some members of one sequence, in which each is a block.
    "timm:mobilenetv3_small_050": "conv_stem bn1 | blocks.0 | blocks.1 | blocks.2 | blocks.3 | blocks.4 | blocks.5",
    # Members of a sequence of single layers: a block ends with each that is listed.
    "timm:vgg11_bn": "features.0 features.1 | features.4 features.5 | "
    "features.8 features.9 features.11 features.12 | features.15 features.16 features.18 features.19 | "
    "features.22 features.23 features.25 features.26",
    # Layers deep inside of blocks, which are not torn apart.
    "timm:legacy_xception": "conv1 bn1 conv2 bn2 | block1 block2 | block3 | block4 block5 block6 block7 block8 block9 "
    "block10 block11 block12 | conv3 bn3 conv4 bn4",
    # A column.
    "timm:mixer_s16_224": "stem | blocks.0 blocks.1 | blocks.2 blocks.3 | blocks.4 blocks.5 | blocks.6 blocks.7",
}


@pytest.mark.parametrize("name", LISTED)
def test_blocks_follow_from_what_timm_lists(name: str) -> None:
    with torch.device("meta"):
        blocks = backbone(name).build(7, StageShape((3, 64, 64))).freeze_blocks()
    assert " | ".join(" ".join(part.removeprefix("model.") for part in block) for block in blocks) == LISTED[name]


def test_no_family_is_left_out() -> None:
    families = {found.family for found in REGISTRY.backbones.as_mapping().values() if isinstance(found, Backbone)}
    assert {backbone(name).family for name in DEEPEST} == families


def test_a_model_whose_features_are_no_modules_says_so_and_trains_whole() -> None:
    with torch.device("meta"):
        network = backbone("timm:hrnet_w18").build(7, StageShape((3, 64, 64)))
    with pytest.raises(Unsupported, match="freezing HighResolutionNet: timm does not list the modules"):
        freezing.apply(network, FreezeLevel(1))
    assert freezing.apply(network, FreezeLevel()).trainable == len(list(network.parameters()))
