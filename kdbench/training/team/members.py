"""The processes that train one run together, each on a device of its own. Most runs have a team of one.

What lies on devices goes through torch's default group; flags and objects in main memory have a group of their own, so
that telling them waits for no device. A team of one does nothing at all: its runs have the bits of any other run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from kdbench.errors import KdbenchError
from kdbench.training.team.exchange import PeerLost, gathered, listening

T = TypeVar("T")
PATIENCE = timedelta(minutes=20)  # for one that is late, e.g. because it writes a large checkpoint
_FAULT = "kdbench/fault"


class Fallen(KdbenchError):
    """A member's part of a run failed; the leader records the run."""

    exit_code = 65


@dataclass(frozen=True)
class Team:
    """A member's view of its team; member 0 leads: it alone writes.

    Every member calls the same methods in the same order; whoever does not, keeps the others waiting.

    Args:
        rank: Its place, in [0, size).
        size: Number of members.
        hosts: Group for what is in main memory.
        store: Where a member leaves word for the others even as it falls.
    """

    rank: int = 0
    size: int = 1
    hosts: Any = field(default=None, repr=False, compare=False)
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def leads(self) -> bool:
        """Whether this member does the writing."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.size == 1

    # --- in main memory ------------------------------------------------------------------------------------------

    def anyone(self, flag: bool) -> bool:
        """Return whether any member says yes."""
        if self.alone:
            return flag
        said = torch.tensor(int(flag))
        with listening():
            distributed.all_reduce(said, distributed.ReduceOp.MAX, group=self.hosts)
        return bool(said)

    def told(self, value: T) -> T:
        """Return what the leader says; what others say does not matter."""
        if self.alone:
            return value
        said: list[Any] = [value]
        with listening():
            distributed.broadcast_object_list(said, src=0, group=self.hosts)
        return said[0]  # type: ignore[no-any-return]

    def everyones(self, value: T) -> list[T]:
        """Return what each member says, in the order of their ranks; tensors must be in main memory."""
        if self.alone:
            return [value]
        said: list[Any] = [None] * self.size
        with listening():
            distributed.all_gather_object(said, value, group=self.hosts)
        return said

    def wait(self) -> None:
        """Wait until every member is here."""
        if not self.alone:
            with listening():
                distributed.barrier(group=self.hosts)

    def leader_first(self, call: Callable[[], T]) -> T:
        """Return what a call returns, which the leader makes before the others do: it may put files in order."""
        if not self.leads:
            self.wait()
        result = call()
        if self.leads:
            self.wait()
        return result

    # --- on devices ----------------------------------------------------------------------------------------------

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return the rows (size * N, ...) of all members' tensors (N, ...); its gradient is summed over all losses."""
        if self.alone:
            return tensor
        return gathered(tensor, self.rank, self.size)

    def everywhere(self, flag: Tensor) -> Tensor:
        """Return whether a flag, bool () on the device, is set at every member."""
        if self.alone:
            return flag
        said = flag.int()
        with listening():
            distributed.all_reduce(said, distributed.ReduceOp.MIN)
        return said.bool()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the members.

        Not by DistributedDataParallel: phases train other parameters, losses of gathered batches talk while it would,
        and a loss is not one module's output. Parameters without a gradient have none anywhere (what a step trains
        depends on no image); their places are filled, so that a member that differs after all keeps nobody waiting,
        and is found at the end of the epoch.
        """
        if self.alone:
            return
        for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
            alike = [parameter for parameter in parameters if parameter.dtype is dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in alike])
            with listening():
                distributed.all_reduce(flat)
            flat /= self.size
            for parameter, mean in zip(alike, torch.split(flat, [p.numel() for p in alike]), strict=True):
                if parameter.grad is not None:
                    parameter.grad.copy_(mean.view_as(parameter))

    @torch.no_grad()
    def follow_leader(self, tensors: Sequence[Tensor]) -> list[int]:
        """Give every member the leader's values; return the places of tensors that were others at any member."""
        if self.alone:
            return []
        moved = torch.zeros(len(tensors), dtype=torch.int32, device=tensors[0].device)
        for place, tensor in enumerate(tensors):
            leaders = tensor.detach().clone().contiguous()
            with listening():
                distributed.broadcast(leaders, src=0)
            # NaN is the mark of what is not set yet, in some buffers.
            moved[place] = ((tensor != leaders) & ~(tensor.isnan() & leaders.isnan())).any()
            tensor.copy_(leaders)
        with listening():
            distributed.all_reduce(moved, distributed.ReduceOp.MAX)
        return moved.nonzero().flatten().tolist()

    # --- when something goes wrong -------------------------------------------------------------------------------

    def blamed(self, error: BaseException) -> BaseException:
        """Return what went wrong first, and leave word of it: after one member's fault the others lose it.

        Args:
            error: What went wrong here.

        Raises:
            PeerLost: If a member was lost that has left no word.
        """
        if self.alone:
            return error
        if isinstance(error, PeerLost):
            if not self.store.check([_FAULT]):
                raise error
            first = self.store.get(_FAULT)
        else:
            first = self.store.compare_set(_FAULT, "", f"{self.rank}:{type(error).__name__}: {error}")
        rank, words = first.decode(errors="replace").split(":", 1)
        return error if int(rank) == self.rank else RuntimeError(f"on device {rank} of {self.size}: {words}")

    def leave(self) -> None:
        """Take leave of the others, at the end of all work."""
        if not self.alone:
            distributed.destroy_process_group()


ALONE = Team()


def join(device: torch.device, store: Any, rank: int, size: int) -> Team:
    """Return the team of ``size`` processes that share a store, as member ``rank``; waits for all of them.

    Args:
        device: Where this member trains.
        store: A store of torch.distributed.
        rank: This member's place.
        size: Number of members.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    with listening():
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        return Team(rank, size, distributed.new_group(backend="gloo", timeout=PATIENCE), store)
