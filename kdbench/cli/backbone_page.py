"""What ``kdbench show`` says of a backbone, counted on the meta device however large it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from torch import nn

from kdbench.backbones.base import Backbone
from kdbench.backbones.cost import cost_of
from kdbench.errors import ConfigError
from kdbench.types import StageShape


def backbone_page(backbone: Backbone, classes: int, image: StageShape) -> list[str]:
    """Return the lines about a backbone with images of one shape.

    Raises:
        ConfigError: If it cannot take such images.
    """
    if reason := backbone.unfit(image):
        raise ConfigError(reason)
    info, network, source = backbone.info(classes, image), backbone.on_meta(classes, image), backbone.source
    head = network.head
    cost = cost_of(network, image)
    return [
        f"backbone {backbone.name} ({backbone.family}); {source.title} ({source.year}) {source.url}",
        f"at {image}, {classes} classes: {cost.parameters:,} parameters, {cost.flops:,} FLOPs per image",
        f"memory per image in float32: {_size(cost.activation_bytes)} kept in training, "
        f"{_size(cost.forward_bytes)} at once in a forward pass without gradients",
        f"stages {_stages(info.stages)}",
        f"embedding {info.embedding}; head {_head(head)}, {sum(p.numel() for p in head.parameters()):,} parameters",
        f"input: height and width of at least {backbone.min_size} pixels{_multiples(backbone.multiple_of)}",
    ]


def _stages(stages: Sequence[StageShape]) -> str:
    """Return the shapes, shallow to deep, each run of them under its kind."""
    groups = groupby(stages, key=lambda stage: stage.is_map)
    return "; ".join(
        f"({'maps CxHxW' if maps else 'tokens TxD'}) {', '.join(map(str, shapes))}" for maps, shapes in groups
    )


def _head(head: Any) -> str:
    shape = f" {head.in_features} -> {head.out_features}" if isinstance(head, nn.Linear) else ""
    return f"{type(head).__name__}{shape}"


def _multiples(of: int) -> str:
    return "" if of == 1 else f" that are multiples of {of}"


def _size(count: int) -> str:
    return f"{count / 1024:,.0f} KiB" if count < 10 * 2**20 else f"{count / 2**20:,.1f} MiB"
