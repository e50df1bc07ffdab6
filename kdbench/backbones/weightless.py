"""Networks without memory for their weights, for whoever asks for their shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)

# What initial weights are made with: most of the time of a build goes into it.
FILLS = frozenset(
    {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.erfinv_}
    | {function for name, function in vars(nn.init).items() if name.endswith("_") and callable(function)}
)


def weightless(build: Callable[[], Module]) -> Module:
    """Return the module on the meta device, leaving the random state alone.

    One that cannot be built there is built on the CPU, and its weights are thrown away.

    Args:
        build: Makes it.
    """
    try:
        with torch.device("meta"), _Unfilled():
            return build()
    except RuntimeError:  # it computes its widths with tensors, in operations that need their values
        with torch.random.fork_rng(devices=()), _Unfilled():
            return build().to("meta")


class _Unfilled(TorchFunctionMode):
    """Leaves weights as they are where they would be given initial values."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function in FILLS:
            tensor = args[0] if args else named["tensor"]
            if tensor.is_meta or isinstance(tensor, nn.Parameter):
                return tensor
        return function(*args, **named)
