"""Large teachers and their students: ImageNet networks with one linear classifier on mean-pooled features.

The library's own classifier, and what it has between pooling and classifier, is left out. Students have a residual
channel adapter of 1x1 convolutions inside. Teachers are fine-tuned from published weights by their recipes; a student
starts from them only if its name says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from torch import nn

from kdbench.adapters import ChannelAdapter
from kdbench.backbones.base import Backbone
from kdbench.backbones.chains import Chain, ChainNetwork
from kdbench.hooks import hookimpl
from kdbench.types import Source, StageShape

CLASSIFIER = "classifier"


def _source(title: str, year: int, paper: str, code: str, adapter: str = "") -> Source:
    deviations = "One linear classifier on mean-pooled features; up to 64 pixels the stem keeps the resolution"
    return Source(title, year, f"https://arxiv.org/abs/{paper}", code, f"{deviations}{adapter}.")


RESNET = ("Deep Residual Learning for Image Recognition", 2016, "1512.03385", "pytorch/vision")
MOBILENET = ("MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, "1801.04381", "pytorch/vision")
EFFICIENTNET = ("EfficientNet: Rethinking Model Scaling for CNNs", 2019, "1905.11946", "pytorch/vision")
SHUFFLENET = ("ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018, "1807.11164",
              "pytorch/vision")  # fmt: skip
CONVNEXT = ("A ConvNet for the 2020s", 2022, "2201.03545", "huggingface/pytorch-image-models")
NOISY = ("Self-training with Noisy Student improves ImageNet classification", 2020, "1911.04252",
         "huggingface/pytorch-image-models")  # fmt: skip


def _wrap(model: nn.Module, chain: Chain, width: int, num_classes: int, in_channels: int) -> ChainNetwork:
    """Return a network that runs the chain and classifies what is mean-pooled behind it."""
    model.add_module(CLASSIFIER, nn.Linear(width, num_classes))
    return ChainNetwork(model, replace(chain, neck=(), head=CLASSIFIER), in_channels)


def from_torchvision(
    name: str, adapted: str, num_classes: int, image: StageShape, *, pretrained: bool = False
) -> ChainNetwork:
    """Return a torchvision model with one linear classifier.

    Args:
        name: torchvision's name.
        adapted: Module behind which the channel adapter is put; empty = no adapter.
        num_classes: Outputs of the classifier.
        image: Shape of one image.
        pretrained: Whether to start from torchvision's newest published weights.
    """
    from kdbench.backbones.torchvision_models import FAMILIES, make_model

    model = make_model(name, num_classes, image, pretrained=pretrained)
    chain = FAMILIES[type(model).__name__][0](model)
    head = model.get_submodule(chain.head)
    assert isinstance(head, nn.Linear)
    delattr(model, chain.head.partition(".")[0])
    stages, final = chain.stages, chain.final
    if adapted:
        model.add_module("adapter", ChannelAdapter(_width(model, adapted)))
        stages = tuple(_behind(stage, adapted) for stage in stages)
        final = _behind(final, adapted)
    return _wrap(model, replace(chain, stages=stages, final=final), head.in_features, num_classes, image.channels)


def _behind(parts: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(new for part in parts for new in ((part, "adapter") if part == name else (part,)))


def _width(model: nn.Module, name: str) -> int:
    norms = [part for part in model.get_submodule(name).modules() if isinstance(part, nn.BatchNorm2d)]
    return max(norm.num_features for norm in norms)


def from_timm(
    name: str, num_classes: int, image: StageShape, *, drop_rate: float = 0.0, pretrained: bool = False
) -> ChainNetwork:
    """Return a ConvNeXt or EfficientNet of timm with one linear classifier.

    Args:
        name: timm's name.
        num_classes: Outputs of the classifier.
        image: Shape of one image.
        drop_rate: Dropout in front of the classifier, in [0, 1).
        pretrained: Whether to start from the published weights.
    """
    from kdbench.backbones.timm_models import make_model

    model = make_model(name, 0, image, pretrained=pretrained)
    features = getattr(model, "num_features")  # noqa: B009 (timm's models are untyped)
    if type(model).__name__ == "ConvNeXt":
        delattr(model, "head")
        chain = Chain((("stem",), *((f"stages.{index}",) for index in range(4))), ("norm_pre",))
    else:
        for part in ("global_pool", CLASSIFIER):
            delattr(model, part)
        groups = ((0, 1), (2,), (3, 4), (5, 6))  # each but the first starts where a map is halved
        stages = (tuple(f"blocks.{index}" for index in group) for group in groups)
        stem, blocks = ("conv_stem", "bn1"), tuple((f"blocks.{index}",) for group in groups for index in group)
        chain = Chain((stem, *stages), ("conv_head", "bn2"), blocks=(stem, *blocks))
    network = _wrap(model, chain, int(features), num_classes, image.channels)
    network.drop_rate = drop_rate
    return network


def _student(name: str, model: str, adapted: str, about: tuple[str, int, str, str], *, pretrained: bool) -> Backbone:
    note = f"; a residual channel adapter behind {adapted}" if adapted else ""
    build = partial(from_torchvision, model, adapted)
    return Backbone(
        name, "imagenet", build, _source(*about, note),
        native_size=224, build_pretrained=partial(build, pretrained=True), pretrained=pretrained,
    )  # fmt: skip


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return teachers and students."""
    resnet = partial(from_torchvision, "resnet152", "")
    yield Backbone("resnet152", "imagenet", resnet, _source(*RESNET), native_size=224,
                   build_pretrained=partial(resnet, pretrained=True))  # fmt: skip
    for name, model, about, size, rate in (
        ("convnext_s", "convnext_small", CONVNEXT, 224, 0.0),
        ("convnext_l", "convnext_large.fb_in22k", CONVNEXT, 224, 0.0),
        ("efficientnet_l2", "tf_efficientnet_l2.ns_jft_in1k", NOISY, 800, 0.4),
    ):
        build = partial(from_timm, model, drop_rate=rate)
        yield Backbone(name, "imagenet", build, _source(*about), native_size=size, min_size=16,
                       build_pretrained=partial(build, pretrained=True))  # fmt: skip
    for name, pretrained in (("scratch", False), ("pretrain", True)):
        for depth in (50, 101, 152):
            if (depth, pretrained) != (50, True):
                yield _student(f"resnet{depth}_{name}", f"resnet{depth}", "layer3", RESNET, pretrained=pretrained)
    yield _student("mobilenet_v2_scratch", "mobilenet_v2", "", MOBILENET, pretrained=False)
    yield _student("efficientnet_b0_scratch", "efficientnet_b0", "features.8", EFFICIENTNET, pretrained=False)
    yield _student("shufflenet_v2_scratch", "shufflenet_v2_x1_0", "conv5", SHUFFLENET, pretrained=False)
