"""What a network costs, counted on the meta device: no weights, no memory, milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from kdbench.types import StageShape


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one network at one input size.

    Args:
        parameters: All scalars, trained or not.
        flops: Floating-point operations of one image's forward pass (a multiply-add counts as two).
        activation_bytes: Bytes per image kept for the backward pass in float32.
    """

    parameters: int
    flops: int
    activation_bytes: int

    def training_bytes(self, batch_size: int) -> int:
        """Return a lower bound of the memory of training: weights, gradients, momentum and activations in float32."""
        return 3 * 4 * self.parameters + batch_size * self.activation_bytes


def flops_of(module: nn.Module, image: StageShape) -> int:
    """Return the floating-point operations of ``module`` on one image; the module must live on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.empty(1, *image.dims))
    return int(counter.get_total_flops())


def cost_of(network: nn.Module, image: StageShape) -> NetworkCost:
    """Return the cost of a network on the meta device."""
    saved: dict[int, int] = {}
    probe = 2  # BatchNorm in training mode needs two images

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dim() and tensor.shape[0] == probe:
            saved[id(tensor)] = tensor.numel() * 4
        return tensor

    with torch.device("meta"), saved_tensors_hooks(keep, lambda tensor: tensor):
        features = network.train()(torch.empty(probe, *image.dims))
    del features
    parameters = sum(p.numel() for p in network.parameters())
    return NetworkCost(parameters, flops_of(network, image), sum(saved.values()) // probe)
