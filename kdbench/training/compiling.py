"""Networks compiled by torch.compile: the forward pass alone, so that modules and their state stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.types import Features, Taps

Forward = Callable[[Tensor, Taps], Features]
# Lanes of a cohort may ask for other taps each, and each choice needs a graph of its own. Beyond torch's limit of 8 it
# would run networks uncompiled without a word, with other bits.
GRAPHS = 256


def compiled(network: nn.Module) -> Forward:
    """Return the compiled forward pass of a network, which shares its weights and modes; copies are not compiled.

    It is compiled when it first runs, once for each shape, precision, mode and choice of taps.
    """
    # Fixed shapes: graphs for any shape would depend on which shapes came before, and a resumed run has seen others.
    return cast("Forward", torch.compile(network.forward, dynamic=False))


def prepare_compiler(device: torch.device) -> None:
    """See that this machine can compile, before anything else is done.

    Raises:
        ConfigError: If it cannot: there is no compiler, or it lacks what it needs.
    """
    settings = torch._dynamo.config
    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"  # its name before 2.7
    setattr(settings, name, max(GRAPHS, getattr(settings, name)))
    try:
        torch.compile(_probe, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:  # compilers fail in ways of their own
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"step.compile: this machine cannot compile for {device.type}: {type(error).__name__}: {said}; install a "
            "C++ compiler (g++) and Python's headers, or use an anchor without step.compile"
        ) from error


def _probe(x: Tensor) -> Tensor:
    return x * 2 + 1
