"""What a lane does with its team: random numbers, batches, gradients and means that belong to all members."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kdbench.errors import PluginError
from kdbench.method import Batch
from kdbench.seeds import stream
from kdbench.training.meters import Meters
from kdbench.training.team.batch_norm import JointBatchNorm
from kdbench.training.team.batches import whole
from kdbench.training.team.members import Team

T = TypeVar("T")


class Together:
    """A lane's part in its team; with a team of one nothing is done but what is done without any.

    Args:
        team: The members.
        seed: Of the run.
        distributed: What the method's losses are computed of, see ``Method.distributed``.
        batch_norm: The anchor's ``step.batch_norm``.
    """

    def __init__(
        self,
        team: Team,
        seed: int,
        distributed: Literal["slices", "gathered"] | None,
        batch_norm: Literal["sync", "local"],
    ) -> None:
        self.team, self._seed = team, seed
        self.gathers = not team.alone and distributed == "gathered"
        self._joint = JointBatchNorm(team) if not team.alone and batch_norm == "sync" else None
        self._local_norms = batch_norm == "local"

    # --- one step ------------------------------------------------------------------------------------------------

    def seed(self, *place: int | str) -> None:
        """Seed the generators for a step.

        Every step starts its own stream, so dropout needs no saved state and is the same alone and in a cohort. Members
        that have their own images draw their own numbers; for losses of the whole batch all draw the same ones.

        Args:
            place: Key of the epoch's data order, and the step in it.
        """
        torch.manual_seed(self._key(*place) if self.team.alone or self.gathers else self._own_key(*place))

    @contextlib.contextmanager
    def student_runs(self, device: torch.device, *place: int | str) -> Iterator[None]:
        """Let the student run on this member's images, with dropout of its own and BatchNorm as the anchor says.

        Args:
            device: Where.
            place: Key of the epoch's data order, the step in it, and the part of its batch.
        """
        with contextlib.ExitStack() as stack:
            if self.gathers:  # what losses draw must not depend on what the student drew here
                stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
                torch.manual_seed(self._own_key(*place))
            stack.enter_context(self._norms())
            yield

    def losses_run(self) -> AbstractContextManager[object]:
        """Return the context in which losses are computed; a gathered batch is whole already."""
        return contextlib.nullcontext() if self.gathers else self._norms()

    def _norms(self) -> AbstractContextManager[object]:
        return self._joint or contextlib.nullcontext()

    def _key(self, *place: int | str) -> int:
        return stream(self._seed, "dropout", *place)

    def _own_key(self, *place: int | str) -> int:
        return self._key(*place, f"device{self.team.rank}")

    def seen(self, batch: Batch) -> Batch:
        """Return what the method sees of a batch: this member's share, or all of it."""
        return whole(batch, self.team) if self.gathers else batch

    def averaged(self, optimizer: torch.optim.Optimizer, sound: Tensor) -> Tensor:
        """Make the gradients that an optimizer is about to use those of the whole batch.

        Args:
            optimizer: It names them.
            sound: Whether this member's loss is finite, bool ().

        Returns:
            Whether that of every member is.
        """
        self.team.average_gradients([p for group in optimizer.param_groups for p in group["params"]])
        return self.team.everywhere(sound)

    # --- an epoch ------------------------------------------------------------------------------------------------

    def by_leader(self, call: Callable[[], T]) -> T:
        """Return what a call returns that only the leader makes."""
        return self.team.told(call() if self.team.leads else None)  # type: ignore[return-value]

    def joined(self, meters: Meters) -> Meters:
        """Return meters with the sums of all members, of which each has seen its own images."""
        if self.team.alone:
            return meters
        first, *others = (Meters.of(state, torch.device("cpu")) for state in self.team.everyones(meters.on_host()))
        for other in others:
            first.losses.include(other.losses)
            first.notes.include(other.notes)
        return first

    def kept(self, meters: Meters) -> Any:
        """Return what a checkpoint holds of the meters: of a team's, a state for each member."""
        return meters.state() if self.team.alone else self.team.everyones(meters.on_host())

    def own(self, kept: Any) -> Any:
        """Return this member's state of what a checkpoint holds of the meters."""
        return kept if self.team.alone else kept[self.team.rank]

    def agree(self, modules: Iterable[nn.Module]) -> None:
        """See that all members hold the same values; running statistics of local BatchNorms become the leader's.

        Raises:
            PluginError: If others differ: what a method keeps depends on the member, or kernels are not deterministic.
        """
        if self.team.alone:
            return
        named = [item for module in modules for item in _tensors(module)]
        moved = self.team.follow_leader([tensor for _, tensor in named])
        drifted = [named[place] for place in moved]
        if wrong := [name for name, tensor in drifted if not (self._local_norms and not _is_parameter(tensor))]:
            raise PluginError(
                f"'{wrong[0]}' is not the same on all {self.team.size} devices after an epoch; what a method keeps may "
                "depend on whole batches only (distributed = 'gathered'), and the kernels must be deterministic"
            )


def _tensors(module: nn.Module) -> Sequence[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)
