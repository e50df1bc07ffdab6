"""Networks without memory for their weights, for whoever asks for their shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Module = TypeVar("Module", bound=nn.Module)

# What random initial weights are made with: it changes nothing on the meta device, and takes most of a build's time.
FILLS = frozenset({torch.ops.aten.normal_, torch.ops.aten.uniform_, torch.ops.aten.erfinv_})


def weightless(build: Callable[[], Module]) -> Module:
    """Return the module on the meta device, leaving the CPU's random state alone.

    One that cannot be built there is built on the CPU, and its weights are thrown away; an error is that of the CPU.

    Args:
        build: Makes it.
    """
    with torch.random.fork_rng(devices=()):
        try:
            with torch.device("meta"), _Unfilled():  # type: ignore[no-untyped-call]
                return build()
        except (RuntimeError, TypeError):  # it computes its widths with tensors, in operations that need their values
            return build().to("meta")


class _Unfilled(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves tensors that have no values as they are where they would be given random ones."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in FILLS and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))
