"""Gradient checkpointing that changes memory and time only: the second forward pass moves no statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers normalise by the batch as in training without moving their running statistics."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counters = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            if counter is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(counter)


def recomputed(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """Return ``run(x)`` and keep ``x`` alone for the backward pass, which runs it again with the same dropout.

    Args:
        run: What to run, e.g. a block.
        module: The module whose statistics must move once, not twice.
        x: Its input (N, ...).
    """
    contexts = lambda: (contextlib.nullcontext(), frozen_statistics(module))  # noqa: E731
    output: Tensor = checkpoint(run, x, use_reentrant=False, context_fn=contexts)
    return output
