"""What autograd keeps for a backward pass, counted by storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Kept:
    """Counts, as a context manager, the memory that operations inside it keep for their backward pass.

    Counted by storage, in bytes of its own type: a view keeps all it is a view of, an activation that two layers need
    is kept once, and so is one that was changed in place.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}  # holds on to what it counts, so that no address is used twice
        self._hooks = saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def bytes_without(self, known: Iterable[Tensor]) -> int:
        """Return the bytes that were kept, those of tensors counted elsewhere apart."""
        others = set(storages(known))
        return sum(tensor.untyped_storage().nbytes() for key, tensor in self._kept.items() if key not in others)

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.setdefault(storages([tensor])[0], tensor.detach())
        return tensor


def storages(tensors: Iterable[Tensor]) -> list[int]:
    """Return the identity of each tensor's storage; it is nobody else's while the tensor lives."""
    return [int(tensor.untyped_storage()._cdata) for tensor in tensors]
