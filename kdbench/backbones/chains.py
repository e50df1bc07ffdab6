"""Networks of other libraries as chains of their own modules, cut into stages by module names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones.base import Network
from kdbench.backbones.division import Division, Names
from kdbench.backbones.recompute import recomputed
from kdbench.types import StageShape

SMALL = 64  # pixels up to which an image is small: ImageNet stems would leave next to nothing of it
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)


def is_small(image: StageShape) -> bool:
    """Return whether stems should keep the resolution of such images."""
    return min(image.height, image.width) <= SMALL


@dataclass(frozen=True)
class Chain:
    """How a model is run: names of its modules, each of which takes what the one before returned.

    Args:
        stages: Modules of each stage, stem first.
        final: Modules between the deepest stage and the mean pooling.
        neck: Modules between the pooled vector (N, D, 1, 1) and the classifier.
        head: The linear classifier.
        blocks: Modules of each block that partial freezing counts, shallow to deep; none given = the stages.
    """

    stages: tuple[tuple[str, ...], ...]
    final: tuple[str, ...] = ()
    neck: tuple[str, ...] = ()
    head: str = "fc"
    blocks: tuple[tuple[str, ...], ...] = ()

    def division(self) -> Division:
        """Return the model's parts for partial freezing; layers behind the pooling belong to its classifier."""
        return Division(self.blocks or self.stages, self.final, (*self.neck, self.head))


@dataclass
class Seen:
    """Inputs of activation modules by the identity of what they returned."""

    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def before(self, output: Tensor) -> Tensor:
        """Return what the activation that made ``output`` was given; ``output`` itself if none made it."""
        return next((given for given, returned in reversed(self.calls) if returned is output), output)


@contextlib.contextmanager
def watched(module: nn.Module) -> Iterator[Seen]:
    """Note what the activations inside a module are given and return."""
    seen = Seen()

    def note(_module: nn.Module, given: tuple[Tensor, ...], returned: Tensor) -> None:
        seen.calls.append((given[0], returned))

    handles = [part.register_forward_hook(note) for part in module.modules() if isinstance(part, ACTIVATIONS)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class ChainNetwork(Network):
    """A library's model, run module by module, so that it can be tapped and continued at every stage.

    A stage's pre-activation is what its last activation was given, if that activation is the stage's last operation;
    else the stage has none, and its output stands for it. The stem's value counts as its own.

    Args:
        model: The library's model; its own forward is not used.
        chain: How it is run.
        in_channels: Channels of the images.
    """

    recomputes_blocks = True

    def __init__(self, model: nn.Module, chain: Chain, in_channels: int) -> None:
        super().__init__(in_channels)
        self.model, self.chain = model, chain
        self.stage_count = len(chain.stages)
        self.embedding_dim = int(self.head.in_features)
        self.drop_rate = 0.0  # dropout in front of the classifier
        # Sequences of blocks are run block by block, so that each can be recomputed on its own.
        self.steps = tuple(tuple(name for part in stage for name in self._blocks(part)) for stage in chain.stages)
        for stage in self.steps[1:]:
            for part in self.model.get_submodule(stage[-1]).modules():
                if isinstance(part, ACTIVATIONS):
                    setattr(part, "inplace", False)  # noqa: B010  (what an activation was given must outlive it)

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The linear classifier."""
        found = self.model.get_submodule(self.chain.head)
        assert isinstance(found, nn.Linear)
        return found

    def _blocks(self, name: str) -> list[str]:
        module = self.model.get_submodule(name)
        if type(module) is not nn.Sequential or not len(module):
            return [name]
        return [f"{name}.{child}" for child, _ in module.named_children()]

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        *blocks, last = (self.model.get_submodule(name) for name in self.steps[index])
        for block in blocks:
            x = self.run_block(block, x)
        if not pre or index == 0:
            x = self.run_block(last, x)
            return (x if pre else None), x
        with watched(last) as seen:
            x = last(x)
        return seen.before(x), x

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one module, with checkpointing if it is switched on and there is a backward pass."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(block, block, x)
        output: Tensor = block(x)
        return output

    def freeze_blocks(self) -> tuple[Names, ...]:
        return self.chain.division().inside("model").blocks

    def freeze_division(self) -> Division:
        return replace(self.chain.division().inside("model"), always=super().freeze_division().always)

    def final_layers(self) -> Sequence[nn.Module]:
        return [self.model.get_submodule(name) for name in self.chain.final]

    def embed(self, x: Tensor) -> Tensor:
        x = super().embed(x)
        if not self.chain.neck:
            return x
        x = x[:, :, None, None]
        for name in self.chain.neck:
            module = self.model.get_submodule(name)
            x = module(x if not isinstance(module, nn.Linear) else x.flatten(1))
        return x.flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        return super().classify(F.dropout(embedding, self.drop_rate, self.training))

    def tail(self) -> tuple[nn.Sequential, nn.Module]:
        neck = [self.model.get_submodule(name) for name in self.chain.neck]
        if any(not isinstance(module, nn.Dropout) for module in neck):
            raise NotImplementedError(f"{type(self.model).__name__} has layers between mean pooling and classifier")
        return nn.Sequential(*self.final_layers()), self.head


class EvenConv2d(nn.Conv2d):
    """A convolution with an even kernel and stride 1 that keeps height and width: one more pixel behind than before."""

    def forward(self, x: Tensor) -> Tensor:
        before = (int(self.kernel_size[0]) - 1) // 2
        return super().forward(F.pad(x, (before, before + 1, before, before + 1)))


def first_conv_for_small(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a stem convolution that keeps the resolution: stride 1, a 7x7 kernel cut to its centre of 3x3.

    Weights are kept where the kernel stays, and its centre where it is cut.
    """
    size = int(conv.kernel_size[0])
    kept = 3 if size == 7 else size
    kind = nn.Conv2d if kept % 2 else EvenConv2d
    padding = kept // 2 if kept % 2 else 0
    new = kind(conv.in_channels, conv.out_channels, kept, 1, padding, groups=conv.groups, bias=conv.bias is not None)
    cut = (size - kept) // 2
    with torch.no_grad():
        new.weight.copy_(conv.weight[:, :, cut : cut + kept, cut : cut + kept])
        if new.bias is not None and conv.bias is not None:
            new.bias.copy_(conv.bias)
    return new


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of the one called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
