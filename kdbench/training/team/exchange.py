"""All members' rows in one tensor, with the gradient that belongs to it; and what is said when a member is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed

from kdbench.errors import KdbenchError


class PeerLost(KdbenchError):
    """Another process of the team ended, or did not answer; what happened to it, it has said itself."""

    exit_code = 74


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn what torch says of a member that is gone into an error of ours."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise PeerLost(f"lost another device's process ({said}); it has said why, or was killed") from error


class _Gathered(torch.autograd.Function):
    """Concatenation over the members.

    A member's rows are in the losses of all members, so their gradient is the sum of what each member's loss says.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size = rank, size
        own = tensor.contiguous()
        parts = [torch.empty_like(own) for _ in range(size)]
        with listening():
            distributed.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        with listening():
            distributed.all_reduce(summed)
        return summed.chunk(ctx.size)[ctx.rank], None, None


def gathered(tensor: Tensor, rank: int, size: int) -> Tensor:
    """Return the rows (size * N, ...) of all members' tensors (N, ...), member after member.

    Args:
        tensor: This member's; N and the other axes are the same everywhere.
        rank: This member's place.
        size: Number of members.
    """
    if not tensor.numel():  # of a network that does not run
        return tensor.new_empty(size * len(tensor), *tensor.shape[1:])
    whole: Tensor = _Gathered.apply(tensor, rank, size)
    return whole
