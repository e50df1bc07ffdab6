"""Backbones of timm and torchvision: stems for small images, stages, published weights, and what is imported when."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch import nn

from kdbench.backbones import imagenet_family, timm_models, torchvision_models
from kdbench.backbones.base import Backbone, Network
from kdbench.backbones.chains import ChainNetwork, EvenConv2d, first_conv_for_small
from kdbench.config.pairs import load_pair
from kdbench.errors import ConfigError, ProblemList
from kdbench.registry import Registry
from kdbench.training.networks import new_network
from kdbench.types import StageShape, Taps

SMALL, NATIVE = StageShape((3, 32, 32)), StageShape((3, 224, 224))
EVERYTHING = Taps("all", pre_activation=True, embedding=True)

# Parameters with 100 classes: the library's published count with 1000 classes, its classifier (and ConvNeXt's norm in
# front of it) taken out, one linear layer and, in students, the adapter's two convolutions and two norms put in.
NAMED = {
    "resnet152": (60_192_808 - 2_049_000 + 204_900, 64 * 3 * (49 - 9), 2048),
    "resnet50_scratch": (25_557_032 - 2_049_000 + 204_900 + 2 * 1024**2 + 4 * 1024, 64 * 3 * (49 - 9), 2048),
    "mobilenet_v2_scratch": (3_504_872 - 1_281_000 + 128_100, 0, 1280),
    "efficientnet_b0_scratch": (5_288_548 - 1_281_000 + 128_100 + 2 * 1280**2 + 4 * 1280, 0, 1280),
    "shufflenet_v2_scratch": (2_278_604 - 1_025_000 + 102_500 + 2 * 1024**2 + 4 * 1024, 0, 1024),
    "convnext_s": (50_223_688 - 769_000 + 76_900 - 2 * 768, 2 * 96, 768),
}
STAGES = {
    "resnet152": "64x32x32 256x32x32 512x16x16 1024x8x8 2048x4x4",
    "resnet101_scratch": "64x32x32 256x32x32 512x16x16 1024x8x8 2048x4x4",
    "mobilenet_v2_scratch": "32x32x32 24x16x16 32x8x8 96x4x4 320x2x2",
    "efficientnet_b0_scratch": "32x32x32 24x16x16 40x8x8 112x4x4 320x2x2",
    "shufflenet_v2_scratch": "24x32x32 116x16x16 232x8x8 464x4x4",
    "convnext_s": "96x32x32 96x32x32 192x16x16 384x8x8 768x4x4",
    "convnext_l": "192x32x32 192x32x32 384x16x16 768x8x8 1536x4x4",
    "efficientnet_l2": "136x32x32 104x16x16 176x8x8 480x4x4 1376x2x2",
    "torchvision:densenet121": "64x32x32 256x32x32 512x16x16 1024x8x8 1024x4x4",
    "timm:resnet18": "64x32x32 64x32x32 128x16x16 256x8x8 512x4x4",
    "timm:vit_tiny_patch16_224": "64x192 64x192 64x192 64x192 64x192",
    "timm:eva02_tiny_patch14_224": "256x192 256x192 256x192 256x192 256x192",
    "timm:swin_tiny_patch4_window7_224": "96x32x32 96x32x32 192x16x16 384x8x8 768x4x4",
    "timm:regnety_002": "32x32x32 24x16x16 56x8x8 152x4x4 368x2x2",
    "timm:mobilenetv3_large_100": "16x32x32 16x32x32 24x16x16 40x8x8 112x4x4 960x2x2",
}


@pytest.mark.parametrize("name", NAMED)
def test_parameters_follow_from_the_published_counts(name: str, registry: Registry) -> None:
    native, less, width = NAMED[name]
    assert registry.backbones[name].info(100, NATIVE).parameters == native
    info = registry.backbones[name].info(100, SMALL)
    assert (info.parameters, info.embedding) == (native - less, width)


@pytest.mark.parametrize("name", STAGES)
def test_stems_keep_the_resolution_of_small_images(name: str, registry: Registry) -> None:
    info = registry.backbones[name].info(100, SMALL)
    assert " ".join(map(str, info.stages)) == STAGES[name]


@pytest.mark.parametrize(
    "name", ["resnet101_pretrain", "resnet152_pretrain", "resnet152_scratch", "resnet101_scratch", "convnext_l"]
)
def test_every_name_of_the_experiments_resolves(name: str, registry: Registry) -> None:
    assert registry.backbones[name].name == name
    assert registry.backbones[name].pretrained == name.endswith("_pretrain")
    assert registry.backbones[name].build_pretrained is not None


def settled(network: nn.Module, images: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        network.train()(images)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5", "densenet121",
                                  "convnext_tiny", "mobilenet_v3_small"])  # fmt: skip
@torch.no_grad()
def test_a_chain_computes_what_torchvision_computes(name: str) -> None:
    torch.manual_seed(0)
    network = torchvision_models.build(name, 7, StageShape((3, 96, 96)))
    images = torch.rand(2, 3, 96, 96)
    settled(network, images)
    torch.testing.assert_close(network(images).logits, network.model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0"])
@pytest.mark.parametrize("size", [32, 96])
@torch.no_grad()
def test_a_chain_computes_what_timm_computes(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = imagenet_family.from_timm(name, 7, StageShape((3, size, size)), drop_rate=0.4)
    images = torch.rand(2, 3, size, size)
    settled(network, images)
    features = network(images, EVERYTHING)
    expected = network.model.forward_features(images).mean((2, 3))  # type: ignore[operator]
    torch.testing.assert_close(features.embedding, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.logits, network.head(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dropout_stands_in_front_of_the_classifier_in_training_only() -> None:
    network = imagenet_family.from_timm("convnext_atto", 7, SMALL, drop_rate=0.4)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.eval()(images).logits, network(images).logits)
    network.train()
    assert not torch.equal(network(images).logits, network(images).logits)
    assert torch.equal(network(images, EVERYTHING).embedding, network(images, EVERYTHING).embedding)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
@torch.no_grad()
def test_pre_activations_of_residual_stages(name: str, registry: Registry) -> None:
    torch.manual_seed(0)
    network = registry.backbones[name].build(7, SMALL)
    for norm in (part for part in network.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.weight.fill_(0.5)  # timm starts residual branches at zero
    images = torch.rand(2, 3, 32, 32)
    features = settled(network, images)(images, EVERYTHING)
    for before, after in list(zip(features.pre_stages, features.stages, strict=True))[1:]:
        assert (before < 0).any()
        assert torch.equal(before.relu(), after)


@torch.no_grad()
def test_tokens_are_timms_own() -> None:
    torch.manual_seed(0)
    network = timm_models.build("vit_tiny_patch16_224", 7, SMALL).eval()
    images = torch.rand(2, 3, 32, 32)
    features = network(images, Taps((0, 2, 4)))
    assert features.indices == (0, 2, 4)
    inner = network.model.forward_intermediates(images, indices=[5, 11], output_fmt="NLC", intermediates_only=True)
    assert torch.equal(features.stages[1], inner[0])
    assert torch.equal(features.stages[2], inner[1])
    embedded = network.model.patch_embed(images) + network.model.pos_embed[:, 1:]
    torch.testing.assert_close(features.stages[0], embedded)


def test_the_channel_adapter_belongs_to_the_stage_behind_which_it_stands(registry: Registry) -> None:
    torch.manual_seed(0)
    network = imagenet_family.from_torchvision("resnet50", "layer3", 7, SMALL)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = settled(network, images)(images, Taps((2, 3)))
        plain = network.model.get_submodule("layer3")(features.stages[0])
        torch.testing.assert_close(features.stages[1], network.model.get_submodule("adapter")(plain))


def test_an_even_kernel_keeps_the_size_and_its_weights() -> None:
    conv = nn.Conv2d(3, 5, 4, 4)
    new = first_conv_for_small(conv)
    assert isinstance(new, EvenConv2d)
    images = torch.rand(2, 3, 8, 8)
    assert new(images).shape == (2, 5, 8, 8)
    # Away from the border, the pixel at (i, j) is the old kernel on rows i-1..i+2.
    torch.testing.assert_close(new(images)[:, :, 2, 2], conv(images[:, :, 1:5, 1:5])[:, :, 0, 0])


def test_the_centre_of_a_large_kernel_is_kept() -> None:
    conv = nn.Conv2d(3, 5, 7, 2, 3, bias=False)
    new = first_conv_for_small(conv)
    assert torch.equal(new.weight, conv.weight[:, :, 2:5, 2:5])
    assert new(torch.rand(1, 3, 9, 9)).shape == (1, 5, 9, 9)


def test_one_channel_sees_what_three_equal_ones_saw() -> None:
    torch.manual_seed(0)
    colour = torchvision_models.make_model("resnet18", 7, StageShape((3, 96, 96)), pretrained=False).eval()
    grey = torchvision_models.make_model("resnet18", 7, StageShape((1, 96, 96)), pretrained=False)
    old, new = colour.get_submodule("conv1"), grey.get_submodule("conv1")
    assert new(torch.rand(1, 1, 8, 8)).shape == old(torch.rand(1, 3, 8, 8)).shape
    shared = torchvision_models._for_channels(old, 1)  # type: ignore[arg-type]
    image = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(shared(image), old(image.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("name", ["resnet8", "torchvision:resnet18", "torchvision:efficientnet_b0", "ShuffleV2"])
def test_checkpointing_changes_no_bit(name: str, registry: Registry) -> None:
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = registry.backbones[name].build(7, SMALL).train()
        network.checkpointing = checkpointing
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = network(torch.rand(2, 3, 32, 32)).logits
        counted = kept
        logits.square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
        results.append((logits.detach(), gradients, network.state_dict(), counted))
    plain, saving = results
    assert torch.equal(plain[0], saving[0])
    for key, gradient in plain[1].items():
        assert gradient is not None
        assert torch.equal(gradient, saving[1][key]), key  # type: ignore[arg-type]
    assert [key for key, value in plain[2].items() if not torch.equal(value, saving[2][key])] == []
    assert saving[3] < 0.5 * plain[3]


def test_timm_networks_refuse_checkpointing() -> None:
    network = timm_models.build("resnet10t", 7, SMALL)
    network.checkpointing = False
    with pytest.raises(ConfigError, match=r"step\.checkpointing: models of timm cannot recompute"):
        network.checkpointing = True


def test_published_weights_of_timm_that_cannot_be_had(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"timm:convnext_small'.*--scratch.*teacher import"):
        new_network(registry.backbones["convnext_s"], 7, SMALL, seed=0, pretrained=True)


def test_published_weights_come_from_the_cache(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(5)
    published = models.resnet18()
    weights = models.ResNet18_Weights.DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    data = io.BytesIO()
    torch.save(published.state_dict(), data)
    name = f"resnet18-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}.pth"  # as the true file is named
    monkeypatch.setattr(weights.value, "url", f"https://download.pytorch.org/models/{name}")
    (folder / name).write_bytes(data.getvalue())
    network = new_network(registry.backbones["torchvision:resnet18:pretrained"], 7, SMALL, seed=0)
    assert isinstance(network, ChainNetwork)
    theirs, ours = published.state_dict(), network.model.state_dict()
    changed = {key for key in ours if ours[key].shape != theirs[key].shape or not torch.equal(ours[key], theirs[key])}
    assert changed == {"conv1.weight", "fc.weight", "fc.bias"}
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"][:, :, 2:5, 2:5])


def test_published_weights_that_cannot_be_had(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_args: object, **_more: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ConfigError, match=r"torchvision:resnet101.*no route to host.*--scratch.*teacher import"):
        new_network(registry.backbones["resnet101_pretrain"], 7, SMALL, seed=0)


def test_a_model_that_does_not_exist(registry: Registry) -> None:
    for name in ("timm:resnet180", "torchvision:resnet180", "keras:resnet18"):
        assert name not in registry.backbones
    with pytest.raises(ConfigError, match=r"unknown backbone 'torchvision:resnet180'. Did you mean"):
        registry.backbones["torchvision:resnet180"]
    with pytest.raises(
        ConfigError, match=r"backbone 'keras:[^']*': unknown library 'keras'.* All: timm:MODEL, torchvision:MODEL$"
    ):
        registry.backbones["keras:resnet18"]
    with pytest.raises(ConfigError, match="has no stages here; allowed are ResNet"):
        registry.backbones["torchvision:inception_v3"]
    with pytest.raises(ConfigError, match="'torchvision:regnet_y_128gf': RegNet has no stages here"):
        registry.backbones["torchvision:regnet_y_128gf"]


def test_images_a_model_cannot_take(registry: Registry) -> None:
    reason = registry.backbones["timm:vit_tiny_patch16_224"].unfit(StageShape((3, 32, 64)))
    assert reason is not None
    assert "as high as wide" in reason
    narrow = dataclasses.replace(registry.backbones["resnet8"], name="narrow", build=refuses)
    with pytest.raises(ConfigError, match=r"backbone 'narrow': cannot be run on images of 3x32x32: ValueError: odd"):
        narrow.info(10, SMALL)


def refuses(_num_classes: int, _image: StageShape) -> ChainNetwork:
    raise ValueError("odd")


def test_pair_files_may_name_models_of_libraries(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nstudent: timm:resnet10t\nteachers: ['torchvision:resnet18']\ndataset: digits\n")
    assert load_pair(file, registry.backbones, registry.datasets).student == "timm:resnet10t"
    file.write_text("name: mine\nstudent: timm:resnet10x\nteachers: [resnet152x]\ndataset: digits\n")
    with pytest.raises(ProblemList) as caught:
        load_pair(file, registry.backbones, registry.datasets)
    assert len(caught.value.problems) == 2
    assert "timm:resnet10x" in caught.value.problems[0]
    assert "Did you mean 'resnet152'" in caught.value.problems[1]


def test_no_library_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys; from kdbench.registry import load; r = load(); list(r.pairs); r.backbones['resnet152'];"
        "r.backbones['convnext_l']; assert not {'timm', 'torchvision'} & set(sys.modules);"
        "r.backbones['torchvision:resnet18']; assert 'timm' not in sys.modules; assert 'torchvision' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_network_that_computes_with_tensors_is_described_all_the_same(registry: Registry) -> None:
    """As RegNets of timm do, in an operation that some releases of PyTorch do not know without values."""
    backbone = registry.backbones["resnet8x4"]
    assert isinstance(backbone, Backbone)
    expected = backbone.info(7, StageShape((3, 32, 32)))

    def build(classes: int, image: StageShape) -> Network:
        if torch.get_default_device().type == "meta":
            raise NotImplementedError("aten::_unique2")
        return backbone.build(classes, image)

    before = torch.get_rng_state()
    assert dataclasses.replace(backbone, build=build).info(7, StageShape((3, 32, 32))) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_builders_of_torchvision_say_what_they_return() -> None:
    """Which class it is decides how a model is cut into stages, and is known before one is built."""
    from torchvision import models

    found = {name: get_type_hints(models.get_model_builder(name))["return"] for name in models.list_models(models)}
    assert all(issubclass(kind, torch.nn.Module) and kind is not torch.nn.Module for kind in found.values())
    assert found["resnet18"] is found["wide_resnet50_2"] is models.ResNet
