"""Partial freezing: which parameters of a network train at a level, and what becomes of its norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdbench.backbones.base import Network
from kdbench.backbones.division import Division, lies_in
from kdbench.errors import ConfigError

EVERYTHING = -1


@dataclass(frozen=True)
class FreezeLevel:
    """How much of a network trains.

    Args:
        level: -1 = everything, whatever ``freeze_bn`` says; 0 = the head; L >= 1 = the last L blocks as well, and what
            lies behind them. Adapters inside the network and LayerNorms train at every level.
        freeze_bn: From level 0 on, whether BatchNorms keep scale, shift and running statistics everywhere; if not,
            scale and shift train everywhere.

    Raises:
        ConfigError: If the level is none.
    """

    level: int = EVERYTHING
    freeze_bn: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.level, bool) or not isinstance(self.level, int) or self.level < EVERYTHING:
            raise ConfigError(
                f"freeze level: {self.level!r} is none; allowed are -1 (everything trains), 0 (the head), 1 (and the "
                "last block), 2, ...; choose one of them"
            )

    @property
    def keeps_statistics(self) -> bool:
        """Whether BatchNorms run in eval mode."""
        return self.freeze_bn and self.level > EVERYTHING


@dataclass(frozen=True)
class TensorCount:
    """How many of a network's parameter tensors train, and how many numbers they hold."""

    trainable: int
    total: int
    trainable_numbers: int
    total_numbers: int

    def __str__(self) -> str:
        return f"{self.trainable}/{self.total} tensors"


def trainable_names(model: nn.Module, division: Division, policy: FreezeLevel) -> tuple[str, ...]:
    """Return the names of the parameters that train, in the model's order.

    Args:
        model: Any model; its flags and modes are neither read nor changed.
        division: Its parts.
        policy: How much of it trains.

    Raises:
        Unsupported: If the division is not the model's, or has fewer blocks than the level asks for.
    """
    names = [name for name, _ in model.named_parameters()]
    if policy.level == EVERYTHING:
        return tuple(names)
    division.check(model)
    parts = division.open_at(policy.level)
    ruled = {name: trains for name, trains in _norms(model, policy) if not lies_in(name, division.always)}
    return tuple(name for name in names if ruled.get(name, lies_in(name, parts)))


def _norms(model: nn.Module, policy: FreezeLevel) -> Iterator[tuple[str, bool]]:
    """Yield (parameter, trains) of the norms that follow a rule of their own; GroupNorm follows its block."""
    for path, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | _BatchNorm):
            trains = isinstance(module, nn.LayerNorm) or not policy.freeze_bn
            for name, _ in module.named_parameters(path, recurse=False):
                yield name, trains


def apply(network: Network, policy: FreezeLevel) -> TensorCount:
    """Let a network train as the policy says; to be called again after every ``network.train()``.

    What a new network holds fixed by itself is noted at the first call and never trains, at no level. A network whose
    parameters are all fixed by then was frozen as a whole: of such a one all may train.

    Returns:
        How much trains now.

    Raises:
        Unsupported: If the network does not publish its blocks, or has fewer than the level asks for.
    """
    division = Division(()) if policy.level == EVERYTHING else network.freeze_division()
    wanted = set(trainable_names(network, division, policy))
    if network.never_trained is None:
        fixed = frozenset(name for name, parameter in network.named_parameters() if not parameter.requires_grad)
        network.never_trained = frozenset() if len(fixed) == len(list(network.parameters())) else fixed
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in wanted and name not in network.never_trained)
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            # Adapters start from random weights: their statistics must be allowed to move.
            kept = policy.keeps_statistics and not lies_in(name, division.always)
            module.training = network.training and not kept  # alone: some hold an activation or dropout
    return count(network)


def count(network: nn.Module) -> TensorCount:
    """Return how many parameter tensors of a network train, from their flags."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    open_ = [size for size, trains in sizes if trains]
    return TensorCount(len(open_), len(sizes), sum(open_), sum(size for size, _ in sizes))
