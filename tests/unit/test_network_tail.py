"""What comes behind a network's deepest stage, as modules of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdbench.backbones.base import Network
from kdbench.registry import Registry
from kdbench.types import StageShape, Taps

# A network of each family, and the modules it has behind its deepest stage.
TAILS = {
    "resnet8_w4": {"fc"},
    "resnet20_he": {"linear"},
    "wrn_16_1": {"bn1", "fc"},
    "vgg8": {"classifier"},
    "MobileNetV2": {"conv2", "classifier"},
    "ShuffleV1": {"linear"},
    "ShuffleV2": {"conv2", "bn2", "linear"},
    "ResNet18": {"linear"},
    "mobilenet_v2_scratch": {"model"},
}


def test_no_family_is_left_out(registry: Registry) -> None:
    families = {backbone.family for backbone in registry.backbones.as_mapping().values()}
    assert {registry.backbones[name].family for name in TAILS} == families


@pytest.mark.parametrize("name", TAILS)
def test_the_tail_continues_from_the_deepest_stage(registry: Registry, name: str) -> None:
    torch.manual_seed(0)
    network = registry.backbones[name].build(7, StageShape((3, 32, 32))).train()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        network(images)  # so that BN statistics are not the initial ones
        features = network.eval()(images, Taps((-1,), embedding=True))
        final, head = network.tail()
        maps = final(features.stages[0])
    assert maps.shape == (2, network.embedding_dim, *features.stages[0].shape[2:])
    assert (maps >= 0).all()  # every family pools behind a ReLU
    assert torch.equal(maps.mean((2, 3)), features.embedding)
    assert torch.equal(head(features.embedding), features.logits)


@pytest.mark.parametrize("name", TAILS)
def test_the_tail_shares_its_weights_and_holds_no_stage(registry: Registry, name: str) -> None:
    network = registry.backbones[name].build(7, StageShape((3, 32, 32)))
    names = {id(tensor): key for key, tensor in (*network.named_parameters(), *network.named_buffers())}
    final, head = network.tail()
    held = {names[id(tensor)] for part in (final, head) for tensor in (*part.parameters(), *part.buffers())}
    assert {key.partition(".")[0] for key in held} == TAILS[name]


def test_asking_for_the_tail_changes_nothing(registry: Registry) -> None:
    network = registry.backbones["wrn_16_1"].build(7, StageShape((3, 32, 32))).train()
    keys = list(network.state_dict())
    network.tail()
    assert list(network.state_dict()) == keys
    assert all(module.training for module in network.modules())


def test_an_embedding_of_ones_own_has_no_known_tail() -> None:
    class Strange(Network):
        head = nn.Identity()

        def embed(self, x: Tensor) -> Tensor:
            return x.amax(dim=(2, 3))

    with pytest.raises(NotImplementedError, match="Strange does not say what its embedding is made of"):
        Strange().tail()
