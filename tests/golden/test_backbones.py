"""The CIFAR networks against what was measured on the reference implementations, and against published weights."""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import kdbench.backbones
from kdbench.backbones.base import Backbone, Network
from kdbench.types import Features, StageShape, Taps

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = SHARED / "goldens" / "backbones.json"
MODELS: dict[str, Any] = {}
if GOLDEN.exists():
    golden = json.loads(GOLDEN.read_text())
    MODELS = {**golden["models"], "ResNet18": golden["mdistiller_extra_models"]["ResNet18"]}
EVERYTHING = Taps("all", pre_activation=True, embedding=True)

needs_shared = pytest.mark.skipif(not MODELS, reason="needs the shared reference files")


def registered() -> dict[str, Backbone]:
    names = [module.name for module in pkgutil.iter_modules(kdbench.backbones.__path__)]
    modules = [importlib.import_module(f"kdbench.backbones.{name}") for name in names]
    return {b.name: b for module in modules if hasattr(module, "kdbench_backbones") for b in module.kdbench_backbones()}


BACKBONES = registered()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trained_features(name: str, size: int = 32) -> tuple[Network, Features]:
    """Run one training-mode batch, so that BN sees real statistics and signs are not those of an untrained scale."""
    torch.manual_seed(0)
    network = BACKBONES[name].build(100, StageShape((3, 32, 32))).train()
    with torch.no_grad():
        return network, network(torch.randn(2, 3, size, size), EVERYTHING)


@needs_shared
def test_every_golden_network_is_registered() -> None:
    assert sorted(MODELS.keys() - BACKBONES.keys()) == []
    assert len(MODELS) == 23


@needs_shared
@pytest.mark.parametrize("name", MODELS)
def test_counts_and_shapes(name: str) -> None:
    info = BACKBONES[name].info(100, StageShape((3, 32, 32)))
    assert info.parameters == MODELS[name]["params"]
    assert [list(shape.dims) for shape in info.stages] == MODELS[name]["stage_feature_shapes_CHW"]
    assert info.embedding == MODELS[name]["penultimate_dim"]


@needs_shared
@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if "n_conv" in entry])
def test_layers(name: str) -> None:
    with torch.device("meta"):
        modules = list(BACKBONES[name].build(100, StageShape((3, 32, 32))).modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d)]
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
    want = MODELS[name]
    assert (len(convolutions), len(norms)) == (want["n_conv"], want["n_bn"])
    assert all((c.bias is not None) == want["conv_has_bias"] for c in convolutions)
    assert sum(p.numel() for c in convolutions for p in c.parameters()) == want["conv_params"]
    assert 2 * sum(n.num_features for n in norms) == want["bn_running_stat_scalars"]


@needs_shared
@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if "stage_feature_nonnegative" in entry])
def test_signs_and_pre_activations(name: str) -> None:
    _, features = trained_features(name)
    want = MODELS[name]
    assert [bool((stage >= 0).all()) for stage in features.stages] == want["stage_feature_nonnegative"]
    pairs = list(zip(features.pre_stages, features.stages, strict=True))
    assert [not torch.equal(pre, stage) for pre, stage in pairs] == want["preact_differs_from_feat"]
    assert [list(pre.shape[1:]) for pre in features.pre_stages] == want["preact_feature_shapes_CHW"]


@pytest.mark.parametrize("name", ["resnet8", "resnet20_he", "vgg11", "ShuffleV1", "ResNet18", "ResNet50"])
def test_a_stage_is_the_relu_of_its_pre_activation(name: str) -> None:
    _, features = trained_features(name, size=16)
    for pre, stage in zip(features.pre_stages[1:], features.stages[1:], strict=True):
        assert pre.min() < 0
        assert torch.equal(F.relu(pre), stage)


def test_shufflenet_v2_pre_activation_precedes_the_shuffle() -> None:
    _, features = trained_features("ShuffleV2", size=16)
    for pre, stage in zip(features.pre_stages[1:], features.stages[1:], strict=True):
        left, right = F.relu(pre).chunk(2, dim=1)
        assert torch.equal(stage[:, 0::2], left)
        assert torch.equal(stage[:, 1::2], right)


def test_wrn_pre_activation_is_the_next_norm_of_the_raw_sum() -> None:
    network, features = trained_features("wrn_16_1")
    for pre, stage in zip(features.pre_stages[1:], features.stages[1:], strict=True):
        mean, var = stage.mean((0, 2, 3), keepdim=True), stage.var((0, 2, 3), correction=0, keepdim=True)
        torch.testing.assert_close(pre, (stage - mean) / (var + 1e-5).sqrt(), atol=1e-4, rtol=1e-4)
    norm = network.get_submodule("block2.layer.0.bn1")
    nn.init.constant_(norm.get_parameter("bias"), 5.0)
    network.eval()
    later = network(torch.randn(2, 3, 32, 32), Taps((1,), pre_activation=True))
    torch.testing.assert_close(later.pre_stages[0], norm(later.stages[0]))


def test_wrn_embedding_is_behind_the_final_norm_and_relu() -> None:
    network, features = trained_features("wrn_16_1")
    network.eval()
    norm = network.get_submodule("bn1")
    expected = F.relu(norm(features.stages[-1])).flatten(2).mean(2)
    torch.testing.assert_close(network.embed(features.stages[-1]), expected)


@pytest.mark.parametrize(("size", "deepest"), [(32, 4), (60, 7), (64, 4), (8, 1)])
def test_vgg_pools_once_more_from_64_pixels_on(size: int, deepest: int) -> None:
    info = BACKBONES["vgg8"].info(10, StageShape((3, size, size)))
    assert info.stages[-1].dims == (512, deepest, deepest)


# A few keys per family; published checkpoints of RepDistiller load by them.
KEYS = {
    "resnet8x4": "conv1.weight bn1.bias layer1.0.downsample.0.weight layer3.0.downsample.1.bias fc.bias",
    "wrn_16_2": "block1.layer.0.convShortcut.weight block3.layer.1.bn2.bias bn1.weight fc.bias",
    "vgg13": "block0.0.weight block0.1.weight block0.3.bias block4.4.running_var classifier.weight",
    "MobileNetV2": "conv1.1.bias blocks.0.0.conv.0.weight blocks.6.0.conv.7.bias conv2.0.weight classifier.0.bias",
    "ShuffleV1": "conv1.weight layer1.0.conv3.weight layer2.7.bn3.bias linear.bias",
    "ShuffleV2": "layer1.0.conv5.weight layer1.0.bn5.bias layer2.7.bn3.bias conv2.weight bn2.bias linear.bias",
    "ResNet50": "layer1.0.conv3.weight layer1.0.shortcut.0.weight layer4.2.bn3.bias linear.bias",
}


@pytest.mark.parametrize("name", KEYS)
def test_key_names(name: str) -> None:
    with torch.device("meta"):
        assert (
            sorted(set(KEYS[name].split()) - BACKBONES[name].build(100, StageShape((3, 32, 32))).state_dict().keys())
            == []
        )


def test_narrow_networks_for_small_images() -> None:
    digits = StageShape((1, 8, 8))
    small, large = BACKBONES["resnet8_w4"].info(10, digits), BACKBONES["resnet14_w8"].info(10, digits)
    assert [str(stage) for stage in small.stages] == ["4x8x8", "4x8x8", "8x4x4", "16x2x2"]
    assert [str(stage) for stage in large.stages] == ["8x8x8", "8x8x8", "16x4x4", "32x2x2"]
    # Stem 36+8, stages 2*(144+8), 288+576+2*16+(32+16), 1152+2304+2*32+(128+32), head 170.
    assert small.parameters == 44 + 304 + 944 + 3680 + 170


def published(name: str) -> dict[str, Tensor]:
    matches = list((SHARED / "data" / "checkpoints").glob(f"{name}-*.th"))
    if not matches:
        pytest.skip("needs the shared reference files")
    state = torch.load(matches[0], weights_only=True, map_location="cpu")["state_dict"]
    return {key.removeprefix("module."): value for key, value in state.items()}


def first_images(per_class: int) -> tuple[Tensor, Tensor]:
    """Return the first test images of each CIFAR-10 class in [0, 1], and their labels."""
    rows = []
    for path in sorted((SHARED / "data" / "cifar10" / "test").glob("*.webp")):
        mosaic = np.asarray(Image.open(path).convert("RGB"))
        rows += [mosaic[:32, left : left + 32] for left in range(0, 32 * per_class, 32)]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 255, torch.arange(10).repeat_interleave(per_class)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_published_weights_load_and_classify(name: str) -> None:
    network = BACKBONES[f"{name}_he"].build(10, StageShape((3, 32, 32))).eval()
    network.load_state_dict(published(name), strict=True)
    network.set_normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images, labels = first_images(per_class=20)
    with torch.no_grad():
        right = (network(images).logits.argmax(1) == labels).sum().item()
    # 91.7 % and 93.4 % on all 10,000 images; zeros padded on one side only leave far fewer right.
    assert right >= 175
