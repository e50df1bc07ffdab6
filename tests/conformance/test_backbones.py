"""Every registered backbone keeps the promises of ``Network`` and of its own description."""

import copy
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import kdbench.backbones
from kdbench.backbones.base import Backbone, Library, Network
from kdbench.backbones.imagenet_family import from_timm
from kdbench.backbones.timm_models import TimmNetwork
from kdbench.types import StageShape, Taps

CLASSES = 7
EVERYTHING = Taps("all", pre_activation=True, embedding=True)


def registered() -> list[Backbone]:
    names = [module.name for module in pkgutil.iter_modules(kdbench.backbones.__path__)]
    modules = [importlib.import_module(f"kdbench.backbones.{name}") for name in names]
    brought = [b for module in modules if hasattr(module, "kdbench_backbones") for b in module.kdbench_backbones()]
    libraries = {b.name: b for b in brought if isinstance(b, Library)}
    opened = [libraries[name].open(model) for name, model in (text.split(":") for text in EXAMPLES)]
    # Those that start with published weights need a network; their twins from random weights are the same networks.
    found = [b for b in brought if isinstance(b, Backbone) and not b.pretrained]
    # The largest are left out of some checks; a smaller one from the same builder takes part in all (convnext_s does).
    (largest,) = (b for b in found if b.name == "efficientnet_l2")
    smaller = partial(from_timm, "efficientnet_b0", drop_rate=0.4)
    return [*found, *opened, replace(largest, name="efficientnet_b0", native_size=224, build=smaller)]


# Models of libraries, one for each way they are cut into stages.
EXAMPLES = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "torchvision:convnext_tiny",
    "timm:resnet10t",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:mixer_s16_224",
    "timm:mobilenetv3_small_050",
)
BACKBONES = registered()
LARGE = 100_000_000  # parameters above which a pass at the native size, or a copy, costs minutes and gigabytes


def allowed_size(backbone: Backbone, at_least: int) -> int:
    """Return the smallest size >= ``at_least`` the backbone accepts."""
    step = backbone.multiple_of
    return -(-max(at_least, backbone.min_size) // step) * step


def random_images(backbone: Backbone, channels: int = 3, at_least: int = 16) -> Tensor:
    """Return a fixed batch of two images."""
    size = allowed_size(backbone, at_least)
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def build(backbone: Backbone, channels: int = 3, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return backbone.build(CLASSES, StageShape((channels, 32, 32)))


@pytest.fixture(scope="module", params=BACKBONES, ids=lambda backbone: backbone.name)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.set_num_threads(1)
    found: Backbone = request.param
    return found


@pytest.fixture(scope="module")
def settled(backbone: Backbone) -> Network:
    """Return the network in eval mode after one training batch, so that BN statistics are not the initial ones."""
    network = build(backbone).train()
    with torch.no_grad():
        network(random_images(backbone))
    return network.eval()


@pytest.fixture
def of_usual_size(backbone: Backbone) -> None:
    """Leave out networks of gigabytes where smaller ones of their class show the same in a hundredth of the time."""
    if backbone.info(CLASSES, StageShape((3, 32, 32))).parameters > LARGE:
        pytest.skip("too large; smaller networks of its class show it")


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_names_are_unique_and_sources_given() -> None:
    names = [backbone.name for backbone in BACKBONES]
    assert len(names) == len(set(names))
    assert all(backbone.family and backbone.source.title and backbone.source.url for backbone in BACKBONES)


@pytest.mark.usefixtures("of_usual_size")
def test_every_parameter_learns_from_the_logits(backbone: Backbone) -> None:
    network = build(backbone).train()
    network.set_normalisation([0.5] * 3, [0.25] * 3)
    logits = network(random_images(backbone)).logits
    assert logits.shape == (2, CLASSES)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    wrong = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert wrong == []


@pytest.mark.usefixtures("of_usual_size")
def test_pre_activations_carry_gradients(backbone: Backbone) -> None:
    network = build(backbone).train()
    features = network(random_images(backbone), EVERYTHING)
    sum(tensor.square().mean() for tensor in (*features.pre_stages, *features.stages)).backward()
    stem = next(iter(network.parameters()))
    assert stem.grad is not None
    assert stem.grad.isfinite().all()
    assert stem.grad.abs().sum() > 0


def test_shapes_are_those_of_the_dry_run(backbone: Backbone, settled: Network, no_grad: None) -> None:
    images = random_images(backbone)
    features = settled(images, EVERYTHING)
    info = backbone.info(CLASSES, StageShape(tuple(images.shape[1:])))
    assert tuple(StageShape(tuple(stage.shape[1:])) for stage in features.stages) == info.stages
    assert [pre.shape for pre in features.pre_stages] == [stage.shape for stage in features.stages]
    assert features.indices == tuple(range(settled.stage_count)) == tuple(range(len(info.stages)))
    assert features.embedding.shape == (2, info.embedding)
    assert settled.embedding_dim == info.embedding
    assert sum(p.numel() for p in settled.parameters()) == info.parameters
    assert (info.name, info.classes) == (backbone.name, CLASSES)


def test_stages_at_the_native_size(backbone: Backbone) -> None:
    """Counted on the meta device: of shapes, weights say nothing."""
    small, native = (backbone.info(CLASSES, StageShape((3, size, size))) for size in (32, backbone.native_size))
    assert len(small.stages) == len(native.stages)
    assert (small.embedding, small.classes) == (native.embedding, native.classes)
    for less, more in zip(small.stages, native.stages, strict=True):
        assert less.channels == more.channels
        assert less.is_map == more.is_map
        assert less.height <= more.height


@pytest.mark.parametrize("native", [False, True], ids=["32x32", "native"])
def test_a_real_pass(backbone: Backbone, native: bool, no_grad: None) -> None:
    """One image through a network built for its size; the largest, whose shapes are counted above, at 32x32 only."""
    size = allowed_size(backbone, backbone.native_size if native else 32)
    image = StageShape((3, size, size))
    info = backbone.info(CLASSES, image)
    if native and info.parameters > LARGE:
        assert backbone.native_size >= 224
        return
    torch.manual_seed(0)
    features = backbone.build(CLASSES, image).eval()(torch.rand(1, 3, size, size), Taps("all", embedding=True))
    assert tuple(StageShape(tuple(stage.shape[1:])) for stage in features.stages) == info.stages
    assert all(value.isfinite().all() for value in (features.logits, features.embedding, *features.stages))


def test_taps_do_not_change_the_logits(backbone: Backbone, settled: Network, no_grad: None) -> None:
    images = random_images(backbone)
    assert torch.equal(settled(images, EVERYTHING).logits, settled(images).logits)


def test_a_single_tap_is_one_of_all(backbone: Backbone, settled: Network, no_grad: None) -> None:
    images = random_images(backbone)
    everything = settled(images, EVERYTHING)
    last = settled(images, Taps((-1,), pre_activation=True))
    assert torch.equal(last.stages[0], everything.stages[-1])
    assert torch.equal(last.pre_stages[0], everything.pre_stages[-1])


def test_the_head_maps_the_embedding_to_the_logits(backbone: Backbone, settled: Network, no_grad: None) -> None:
    features = settled(random_images(backbone), EVERYTHING)
    assert torch.equal(settled.head(features.embedding), features.logits)
    assert any(module is settled.head for module in settled.modules())


def test_forward_from_continues_from_every_stage(backbone: Backbone, settled: Network, no_grad: None) -> None:
    features = settled(random_images(backbone), EVERYTHING)
    if isinstance(settled, TimmNetwork):  # the one kind of network that cannot, and says so
        with pytest.raises(NotImplementedError, match="cannot go on from a stage"):
            settled.forward_from(1, features.stages[0])
        return
    for index, output in enumerate(features.stages):
        rest = settled.forward_from(index + 1, output, Taps("all"))
        torch.testing.assert_close(rest.logits, features.logits)
        assert rest.indices == features.indices[index + 1 :]
        assert len(rest.stages) == len(rest.indices)


@pytest.mark.usefixtures("of_usual_size")
def test_state_round_trip(backbone: Backbone, settled: Network, no_grad: None) -> None:
    other = build(backbone, seed=1).eval()
    images = random_images(backbone)
    theirs = settled.state_dict()
    assert any(not torch.equal(value, theirs[key]) for key, value in other.state_dict().items())
    other.load_state_dict(settled.state_dict(), strict=True)
    assert torch.equal(other(images).logits, settled(images).logits)


@pytest.mark.usefixtures("of_usual_size")
def test_equal_seeds_give_equal_weights(backbone: Backbone, no_grad: None) -> None:
    first, second = build(backbone).state_dict(), build(backbone).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("of_usual_size")
def test_channels_last_gives_the_same_logits(backbone: Backbone, settled: Network, no_grad: None) -> None:
    images = random_images(backbone)
    other = copy.deepcopy(settled).to(memory_format=torch.channels_last)
    logits = other(images.contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(logits, settled(images).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("of_usual_size")
def test_bf16_is_finite(backbone: Backbone, settled: Network, no_grad: None) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        features = settled(random_images(backbone), EVERYTHING)
    assert all(t.isfinite().all() for t in (features.logits, *features.stages, *features.pre_stages))


@pytest.mark.usefixtures("of_usual_size")
def test_one_channel_and_the_smallest_image(backbone: Backbone, no_grad: None) -> None:
    network = build(backbone, channels=1).train()
    images = random_images(backbone, channels=1, at_least=1)
    assert backbone.unfit(StageShape(tuple(images.shape[1:]))) is None
    features = network(images, EVERYTHING)
    assert features.logits.isfinite().all()
    assert network.in_channels == 1
    assert min(features.stages[-1].shape) >= 1


@pytest.mark.usefixtures("of_usual_size")
def test_another_and_an_uneven_image_size(backbone: Backbone, settled: Network, no_grad: None) -> None:
    if backbone.square:
        assert backbone.unfit(StageShape((3, 32, 48))) is not None
        return
    size = allowed_size(backbone, backbone.min_size + 1)
    wide = torch.rand(2, 3, size, size + 3 * backbone.multiple_of)
    features = settled(wide, EVERYTHING)
    assert features.logits.isfinite().all()
    assert features.embedding.shape == (2, settled.embedding_dim)


@pytest.mark.usefixtures("of_usual_size")
def test_running_statistics_move_once_whatever_is_tapped(backbone: Backbone, no_grad: None) -> None:
    plain = build(backbone).train()
    tapped = copy.deepcopy(plain)
    images = random_images(backbone)
    torch.manual_seed(3)  # of their dropout
    logits = plain(images).logits
    torch.manual_seed(3)
    features = tapped(images, EVERYTHING)
    assert torch.equal(features.logits, logits)
    buffers = dict(tapped.named_buffers())
    assert [key for key, value in plain.named_buffers() if not torch.equal(value, buffers[key])] == []
    assert {int(value) for key, value in buffers.items() if key.endswith("num_batches_tracked")} <= {1}


def test_eval_mode_leaves_every_buffer_alone(backbone: Backbone, settled: Network, no_grad: None) -> None:
    before = copy.deepcopy(dict(settled.named_buffers()))
    settled(random_images(backbone), EVERYTHING)
    assert [key for key, value in settled.named_buffers() if not torch.equal(value, before[key])] == []
