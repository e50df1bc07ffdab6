"""What a network costs, counted on the meta device: no weights, no memory, where it can be built so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kdbench.kept import Kept, storages
from kdbench.types import StageShape


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one network at one input size.

    Args:
        parameters: All scalars, trained or not.
        flops: Floating-point operations of one image's forward pass (a multiply-add counts as two).
        activation_bytes: Bytes per image kept for the backward pass in float32.
        forward_bytes: Most bytes per image that live at once in a forward pass without gradients, in float32.
    """

    parameters: int
    flops: int
    activation_bytes: int
    forward_bytes: int

    def training_bytes(self, batch_size: int, *, moments: int = 1) -> int:
        """Return a lower bound of the memory of training in float32.

        Args:
            batch_size: Images in one forward pass.
            moments: Scalars kept per weight beside the weight and its gradient: 1 for SGD's momentum.
        """
        return (2 + moments) * 4 * self.parameters + batch_size * self.activation_bytes


def flops_of(module: nn.Module, image: StageShape) -> int:
    """Return the floating-point operations of ``module`` on one image; the module must live on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.empty(1, *image.dims))
    return int(counter.get_total_flops())


def cost_of(network: nn.Module, image: StageShape) -> NetworkCost:
    """Return the cost of a network on the meta device."""
    parameters = sum(p.numel() for p in network.parameters())
    # The difference between two batches: what does not grow with the batch, such as BN's statistics, is none of it.
    activations = (_kept_bytes(network, image, 4) - _kept_bytes(network, image, 2)) // 2
    return NetworkCost(parameters, flops_of(network, image), activations, _forward_bytes(network, image))


def _kept_bytes(network: nn.Module, image: StageShape, batch: int) -> int:
    """Return the bytes that a forward pass in training mode keeps for the backward pass, the network's own apart."""
    own = [*network.parameters(), *network.buffers()]
    with torch.device("meta"), Kept() as kept:
        features = network.train()(torch.empty(batch, *image.dims))
    del features
    return kept.bytes_without(own)


def _forward_bytes(network: nn.Module, image: StageShape) -> int:
    own = storages([*network.parameters(), *network.buffers()])
    with torch.device("meta"), torch.no_grad(), _Living(own) as living:
        network.eval()(torch.empty(1, *image.dims))
    return int(living.most)


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what each operation returns, and how much of it lives at the same time.

    Args:
        own: Storages that are not counted: the network's weights.
    """

    def __init__(self, own: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own, self._living = set(own), dict[int, tuple[StorageWeakRef, int]]()
        self.most = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        result = func(*args, **(kwargs or {}))
        ended = [key for key, (storage, _) in self._living.items() if storage.expired()]  # type: ignore[no-untyped-call]
        for key in ended:
            del self._living[key]
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := storages([tensor])[0]) not in self._own:
                storage = tensor.untyped_storage()
                self._living.setdefault(key, (StorageWeakRef(storage), storage.nbytes()))  # type: ignore[no-untyped-call]
        self.most = max(self.most, sum(size for _, size in self._living.values()))
        return result
