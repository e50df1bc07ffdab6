"""What every backbone is: a list of stages, a pooled embedding, a head, and its own input normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdbench.adapters import ChannelAdapter, DistillAdapter
from kdbench.backbones.division import Division, Names, by_children, names_in, undivided
from kdbench.backbones.layers import global_pool
from kdbench.backbones.recompute import recomputed
from kdbench.backbones.weightless import weightless
from kdbench.errors import ConfigError, KdbenchError
from kdbench.types import Features, NetworkInfo, Source, StageShape, Taps


def head_at(path: str) -> Any:
    """Return ``head`` for a class whose classifier is a module of another name, so that its checkpoints load by name.

    Args:
        path: Dotted name of the classifier, e.g. ``fc`` or ``classifier.0``.
    """
    parts = path.split(".")

    def head(network: nn.Module) -> nn.Module:
        # Not operator.attrgetter, which torch.compile cannot look into.
        for part in parts:
            network = getattr(network, part)
        return network

    return property(head, doc=f"The linear classifier, ``{path}``.")


class Network(nn.Module):
    """Base class of all student and teacher networks.

    A subclass sets ``stage_count`` and ``embedding_dim``, assigns ``self.head`` (the linear classifier; or see
    :func:`head_at`) and implements :meth:`run_stage`, and :meth:`final_layers` if there are any (or :meth:`embed`, if
    it is more than these and mean pooling). Images arrive in [0, 1]; the network normalises them itself, so a teacher
    trained with other constants than the student's works unchanged.

    With ``checkpointing`` set, what lies inside stages is computed again in the backward pass instead of kept: less
    memory, more time, the same numbers.
    """

    stage_count: int
    embedding_dim: int
    recomputes_blocks = False  # whether run_stage sees to checkpointing itself, in smaller parts than a stage
    head: nn.Module
    mean: Tensor
    std: Tensor
    checkpointing: bool = False  # whether the backward pass computes activations again instead of keeping them
    never_trained: frozenset[str] | None = None  # parameters fixed at every freeze level; None before one is applied

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.memory_format = torch.contiguous_format
        self.checkpointing = False
        # Not part of the state dict: foreign checkpoints have no such keys, artefacts store them as metadata.
        self.register_buffer("mean", torch.zeros(1, in_channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, in_channels, 1, 1), persistent=False)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the per-channel constants of ``(x - mean) / std``, in units of [0, 1] pixel values."""
        self.mean.copy_(torch.tensor(mean).view(1, -1, 1, 1))
        self.std.copy_(torch.tensor(std).view(1, -1, 1, 1))

    def place(self, device: torch.device, *, channels_last: bool) -> None:
        """Move the network to a device in the memory format it computes in; images are converted on entry."""
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        """Run stage ``index`` (0 = stem) on the output of the stage before it.

        Args:
            index: Stage, 0..stage_count-1.
            x: Normalised images (N,C,H,W) for the stem, else the previous stage's output.
            pre: Whether the value before the last activation is wanted, too.

        Returns:
            (before activation or None, after activation). Asking for ``pre`` must not change running statistics.
        """
        raise NotImplementedError

    def final_layers(self) -> Sequence[nn.Module]:
        """Return the layers between the deepest stage's output and the mean pooling; they leave height and width."""
        return ()

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding (N,D) of the deepest stage's output: final layers, then the mean over positions."""
        for layer in self.final_layers():
            x = layer(x)
        return global_pool(x)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits (N,C) of an embedding (N,D); in training, behind the network's dropout if it has any."""
        logits: Tensor = self.head(embedding)
        return logits

    def tail(self) -> tuple[nn.Sequential, nn.Module]:
        """Return what comes behind the deepest stage, (final layers, head); both share the network's weights.

        For its output ``x`` (N,C,H,W), ``head(final(x).mean((2, 3)))`` are the logits.

        Raises:
            NotImplementedError: If the subclass has an :meth:`embed` of its own.
        """
        if type(self).embed is not Network.embed:
            raise NotImplementedError(f"{type(self).__name__} does not say what its embedding is made of")
        return nn.Sequential(*self.final_layers()), self.head

    def freeze_blocks(self) -> tuple[Names, ...]:
        """Return the blocks that partial freezing counts, shallow to deep, each as names of modules or parameters.

        A name stands for all that is in it; final layers and head belong to no block. Unless a subclass says them,
        they are its children, if there is exactly one with parameters for each stage.

        Raises:
            Unsupported: If they cannot be told.
        """
        others = {name.partition(".")[0] for name in names_in(self, (*self.final_layers(), self.head))}
        return by_children(self, self.stage_count, others)

    def freeze_division(self) -> Division:
        """Return the parts that partial freezing tells apart: blocks, final layers, head, and adapters.

        Raises:
            Unsupported: If blocks or head cannot be told.
        """
        head = names_in(self, (self.head,))
        if not head:
            raise undivided(self, "its head is no module of it")
        adapters = [part for part in self.modules() if isinstance(part, ChannelAdapter | DistillAdapter)]
        return Division(self.freeze_blocks(), names_in(self, self.final_layers()), head, names_in(self, adapters))

    def forward(self, images: Tensor, taps: Taps = Taps()) -> Features:
        """Return the features of images (N,C,H,W) in [0, 1].

        Args:
            images: Batch in [0, 1].
            taps: What else than the logits is wanted.
        """
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=self.memory_format)
        return self.forward_from(0, normalised, taps)

    def _stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        whole = self.checkpointing and self.training and torch.is_grad_enabled() and not pre
        if whole and not self.recomputes_blocks:
            return None, recomputed(lambda y: self.run_stage(index, y, pre=False)[1], self, x)
        return self.run_stage(index, x, pre=pre)

    def forward_from(self, stage: int, x: Tensor, taps: Taps = Taps()) -> Features:
        """Run stages ``stage``.. on ``x`` as if it were their input.

        Args:
            stage: First stage to run; ``stage_count`` runs the pooling and the head only.
            x: Output of stage ``stage - 1`` (normalised images for 0).
            taps: Stages before ``stage`` cannot be tapped.
        """
        taps = taps.resolve(self.stage_count)
        after: list[Tensor] = []
        before: list[Tensor] = []
        for index in range(stage, self.stage_count):
            tapped = index in taps.stages
            pre, x = self._stage(index, x, pre=tapped and taps.pre_activation)
            if tapped:
                after.append(x)
                before.extend([] if pre is None else [pre])
        embedding = self.embed(x)
        # Shallow to deep and each once, like the outputs, in whatever order the taps name them.
        indices = tuple(index for index in range(stage, self.stage_count) if index in taps.stages)
        kept = embedding if taps.embedding else None
        return Features(self.classify(embedding), kept, tuple(after), tuple(before), indices)


class Build(Protocol):
    """Constructor of a network for images of one shape: some networks have another stem for small images."""

    def __call__(self, num_classes: int, image: StageShape) -> Network: ...


def by_channels(build: Callable[[int, int], Network]) -> Build:
    """Return the constructor of a network that takes images of any size.

    Args:
        build: Called with (num_classes, in_channels).
    """
    return lambda num_classes, image: build(num_classes, image.channels)


@dataclass(frozen=True)
class Backbone:
    """A registered network: how to build it, and what may be said of it without building it.

    Args:
        name: Registered name.
        family: Family it belongs to, e.g. ``resnet-cifar``.
        build: Called with (num_classes, image shape); libraries are imported inside it, not before. Random weights.
        source: Paper or reference implementation.
        min_size: Smallest input height and width in pixels.
        multiple_of: Input height and width must be a multiple of this.
        channels_last: Whether the channels-last memory format is the faster one; ``tests/bench/memory_format.py``
            measures it.
        native_size: Height and width in pixels the network was designed for.
        square: Whether height and width must be equal.
        build_pretrained: Like ``build``, with published weights in all but the head; None = there are none. Raises
            ConfigError if they cannot be had.
        pretrained: Whether a student starts with the published weights.
    """

    name: str
    family: str
    build: Build = field(repr=False)
    source: Source = field(repr=False)
    min_size: int = 8
    multiple_of: int = 1
    channels_last: bool = True
    native_size: int = 32
    square: bool = False
    build_pretrained: Build | None = field(default=None, repr=False)
    pretrained: bool = False

    def unfit(self, image: StageShape) -> str | None:
        """Return why images of this shape cannot be used, or None."""
        for side in image.dims[1:]:
            if side < self.min_size or side % self.multiple_of:
                return (
                    f"backbone '{self.name}' needs height and width of at least {self.min_size} pixels that are "
                    f"multiples of {self.multiple_of}; the images are {image}"
                )
        if self.square and image.height != image.width:
            return f"backbone '{self.name}' needs images as high as wide; these are {image}"
        return None

    def on_meta(self, num_classes: int, image: StageShape) -> Network:
        """Return a network without memory for its weights, drawing nothing; see :func:`weightless`."""
        return weightless(lambda: self.build(num_classes, image))

    def info(self, num_classes: int, image: StageShape) -> NetworkInfo:
        """Return stage shapes, embedding width and parameter count from a dry run; see :meth:`on_meta`."""
        try:
            network = self.on_meta(num_classes, image).eval()
            with torch.device("meta"), torch.no_grad():
                features = network(torch.empty(2, *image.dims), Taps("all", embedding=True))
        except KdbenchError:
            raise
        except Exception as error:  # other libraries' models say in their own ways which images they cannot take
            raise ConfigError(
                f"backbone '{self.name}': cannot be run on images of {image}: {type(error).__name__}: {error}; choose "
                "another backbone or another dataset"
            ) from error
        assert features.embedding is not None
        return NetworkInfo(
            name=self.name,
            stages=tuple(StageShape(tuple(stage.shape[1:])) for stage in features.stages),
            embedding=features.embedding.shape[1],
            classes=num_classes,
            parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
            pretrained=self.pretrained,
        )


@dataclass(frozen=True)
class Library:
    """A library of networks: ``NAME:MODEL`` is a backbone for each of its models.

    Args:
        name: Registered name, e.g. ``timm``.
        open: Called with the text after the colon; imports the library. Raises ConfigError for an unknown model.
        description: One line for ``kdbench list backbones``.
    """

    name: str
    open: Callable[[str], Backbone] = field(repr=False)
    description: str = ""
