"""BatchNorm over the batch of all members, in whatever module it is: the call is intercepted, no network is changed.

Torch's SyncBatchNorm replaces modules, runs on GPUs alone, and does not know the BatchNorms of other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdbench.losses import wide
from kdbench.training.team.members import Team


class JointBatchNorm(TorchFunctionMode):
    """While it is entered, BatchNorm in training normalises by the images of all members.

    Args:
        team: The members; each has as many images.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func is F.batch_norm and named.get("training", False):
            settings = {key: value for key, value in named.items() if key != "training"}
            return batch_norm(self.team, *args, **settings)
        return func(*args, **named)


def batch_norm(
    team: Team,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what ``torch.nn.functional.batch_norm`` returns in training for this member's part of a batch.

    Args:
        team: The members.
        x: This member's values (N, C, ...).
        running_mean: (C,), moved towards the mean of all; None = there is none.
        running_var: (C,), moved towards the unbiased variance of all; None = there is none.
        weight: (C,), or None.
        bias: (C,), or None.
        momentum: Share of the new value in the running ones, in [0, 1].
        eps: Added to the variance, > 0.
    """
    values = wide(x)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    own_var, own_mean = torch.var_mean(values, axes, correction=0)
    # One exchange for both; the variance of all is that within the members and that between their means.
    means, variances = team.gathered(torch.stack([own_mean, own_var])[None]).unbind(1)
    mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
    count = team.size * (x.numel() // x.shape[1])
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    factor = torch.rsqrt(var + eps)
    factor = factor if weight is None else factor * weight
    normal = (values - mean.view(shape)) * factor.view(shape)
    return (normal if bias is None else normal + bias.view(shape)).to(x.dtype)
