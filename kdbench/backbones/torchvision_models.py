"""torchvision's classifiers: ``torchvision:NAME``, with stems that keep the resolution of small images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, get_type_hints

import torch
from torch import nn

from kdbench.backbones.base import Backbone, Library
from kdbench.backbones.chains import Chain, ChainNetwork, first_conv_for_small, is_small, replace_module
from kdbench.backbones.division import Division, undivided
from kdbench.backbones.published import check_hub_checkpoint, first_line
from kdbench.errors import ConfigError, unknown
from kdbench.hooks import hookimpl
from kdbench.types import Source, StageShape

LIBRARY = "torchvision"
PRETRAINED = ":pretrained"
SOURCE = Source(
    "torchvision.models", 2016, "https://pytorch.org/vision/stable/models.html",
    deviations="Up to 64 pixels the first convolution has stride 1 (7x7 kernels are cut to 3x3) and there is no "
    "max-pooling behind it.",
)  # fmt: skip


def _strides(block: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) and part.stride[0] > 1 for part in block.modules())


def _resnet(_model: nn.Module) -> Chain:
    return Chain((("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)))


def _shufflenet(_model: nn.Module) -> Chain:
    return Chain((("conv1", "maxpool"), ("stage2",), ("stage3",), ("stage4",)), final=("conv5",))


def _densenet(model: nn.Module) -> Chain:
    model.get_submodule("features").add_module("relu5", nn.ReLU())  # torchvision applies it as a function
    stem = ("features.conv0", "features.norm0", "features.relu0", "features.pool0")
    later = ((f"features.transition{i}", f"features.denseblock{i + 1}") for i in (1, 2, 3))
    return Chain((stem, ("features.denseblock1",), *later), ("features.norm5", "features.relu5"), head="classifier")


def _convnext(_model: nn.Module) -> Chain:
    stages = (("features.0",), ("features.1",), *((f"features.{i}", f"features.{i + 1}") for i in (2, 4, 6)))
    return Chain(stages, neck=("classifier.0",), head="classifier.2")


def _inverted(model: nn.Module) -> Chain:
    """Cut inverted residuals where a block strides; those before the first that does belong to it.

    For partial freezing they are cut where the width changes, or as the library groups them.
    """
    first, *blocks, last = model.get_submodule("features").named_children()
    stages: list[list[str]] = [[]]
    seen = False
    for name, block in blocks:
        if _strides(block):
            if seen:
                stages.append([])
            seen = True
        stages[-1].append(f"features.{name}")
    *neck, (head, _) = model.get_submodule("classifier").named_children()
    names = tuple(f"classifier.{name}" for name, _ in neck)
    parts = tuple(tuple(stage) for stage in stages)
    stem = (f"features.{first[0]}",)
    return Chain((stem, *parts), (f"features.{last[0]}",), names, f"classifier.{head}", (stem, *_equally_wide(blocks)))


def _equally_wide(blocks: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, ...]]:
    def key(named: tuple[str, nn.Module]) -> Any:
        name, block = named
        return name if isinstance(block, nn.Sequential) else getattr(block, "out_channels", name)

    for _, group in groupby(blocks, key):
        yield tuple(f"features.{name}" for name, _ in group)


def _swin(_model: nn.Module) -> Division:
    stages = ((f"features.{i}", f"features.{i + 1}") for i in (2, 4, 6))
    return Division((("features.0",), ("features.1",), *stages), ("norm",), ("head",))


def division_of(model: nn.Module) -> Division:
    """Return the parts of a plain torchvision model for partial freezing, under its own names.

    Raises:
        Unsupported: If it is of a family that is not divided here.
    """
    family = type(model).__name__
    if family == "SwinTransformer":  # divided, but not cut into stages: its maps have their channels last
        return _swin(model)
    if family not in FAMILIES:
        raise undivided(model, f"its family is none of {', '.join(FAMILIES)}, SwinTransformer")
    return FAMILIES[family][0](model).division()


# Class of the model: (how it is run, its first convolution, its max-pooling).
FAMILIES: dict[str, tuple[Callable[[nn.Module], Chain], str, str]] = {
    "ResNet": (_resnet, "conv1", "maxpool"),
    "ShuffleNetV2": (_shufflenet, "conv1.0", "maxpool"),
    "MobileNetV2": (_inverted, "features.0.0", ""),
    "MobileNetV3": (_inverted, "features.0.0", ""),
    "EfficientNet": (_inverted, "features.0.0", ""),
    "DenseNet": (_densenet, "features.conv0", "features.pool0"),
    "ConvNeXt": (_convnext, "features.0.0", ""),
}


def adapt_stem(model: nn.Module, image: StageShape) -> None:
    """Let a model's first convolution take the image's channels, and let its stem keep the size of small images."""
    _, first, pooling = FAMILIES[type(model).__name__]
    conv = model.get_submodule(first)
    assert isinstance(conv, nn.Conv2d)
    if image.channels != conv.in_channels:
        conv = _for_channels(conv, image.channels)
    if is_small(image):
        conv = first_conv_for_small(conv)
        if pooling:
            replace_module(model, pooling, nn.Identity())
    replace_module(model, first, conv)


def _for_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return the convolution for images of other channels: each gets the kernels' sum over the old ones, shared."""
    new = copy.deepcopy(conv)
    new.in_channels = channels
    shared = conv.weight.detach().sum(1, keepdim=True) / channels
    new.weight = nn.Parameter(shared.expand(-1, channels, -1, -1).clone())
    return new


def make_model(name: str, num_classes: int, image: StageShape, *, pretrained: bool) -> nn.Module:
    """Return a torchvision model for these images, with a new classifier for ``num_classes``.

    Args:
        name: torchvision's name.
        num_classes: Outputs of the classifier.
        image: Shape of one image.
        pretrained: Whether all but the classifier starts with torchvision's newest published weights.

    Raises:
        ConfigError: If the weights cannot be had.
    """
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None)
    if pretrained:
        model.load_state_dict(_published(name))
    adapt_stem(model, image)
    chain = FAMILIES[type(model).__name__][0](model)
    old = model.get_submodule(chain.head)
    assert isinstance(old, nn.Linear)
    replace_module(model, chain.head, nn.Linear(old.in_features, num_classes))
    return model


def _published(name: str) -> dict[str, torch.Tensor]:
    """Return torchvision's newest weights of a model; no code in their file is run.

    Raises:
        ConfigError: If they cannot be had, or another file lies in their place.
    """
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    check_hub_checkpoint(weights.url)  # torchvision checks hashes while it downloads, and never later
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # a file that is no checkpoint can raise anything
        folder = torch.hub.get_dir()
        raise ConfigError(
            f"backbone '{LIBRARY}:{name}': its published weights {weights} could not be had from {weights.url}: "
            f"{first_line(error)}. Run again with a network, put the file into {folder}/checkpoints, start from random "
            "weights (--scratch, or a backbone without pretraining), or bring a trained teacher: kdbench teacher import"
        ) from error
    return state


def build(name: str, num_classes: int, image: StageShape, *, pretrained: bool = False) -> ChainNetwork:
    """Return a network made of a torchvision model; see :func:`make_model`."""
    model = make_model(name, num_classes, image, pretrained=pretrained)
    return ChainNetwork(model, FAMILIES[type(model).__name__][0](model), image.channels)


def open_model(argument: str) -> Backbone:
    """Return the backbone ``torchvision:NAME`` or ``torchvision:NAME:pretrained``.

    Raises:
        ConfigError: If torchvision has no such classifier, or one that is not cut into stages here.
    """
    from torchvision import models

    name = argument.removesuffix(PRETRAINED)
    if name not in (known := models.list_models(module=models)):
        raise ConfigError(unknown("backbone", f"{LIBRARY}:{name}", [f"{LIBRARY}:{model}" for model in known]))
    family = get_type_hints(models.get_model_builder(name))["return"].__name__
    if family not in FAMILIES:
        raise ConfigError(
            f"backbone '{LIBRARY}:{name}': {family} has no stages here; allowed are {', '.join(FAMILIES)}; the same "
            "network may be there as timm:NAME"
        )
    return Backbone(
        f"{LIBRARY}:{argument}", f"{LIBRARY}-{family.lower()}", partial(build, name), SOURCE,
        native_size=224, build_pretrained=partial(build, name, pretrained=True),
        pretrained=argument.endswith(PRETRAINED),
    )  # fmt: skip


@hookimpl
def kdbench_backbones() -> list[Library]:
    """Return torchvision as a library."""
    return [Library(LIBRARY, open_model, "torchvision's classifiers, e.g. torchvision:resnet18")]
