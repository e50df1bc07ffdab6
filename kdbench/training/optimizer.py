"""The optimizers of a lane: the anchor's over student and helpers, and those that phases bring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.config.schema import Optimizer
from kdbench.phases import Group, Phase

FACTOR = "factor"  # key of a parameter group: its learning rate is so many times the phase's


def make_optimizer(config: Optimizer, groups: Sequence[Any], rate: float) -> torch.optim.Optimizer:
    """Return the optimizer; fused kernels, since they do the same arithmetic in one pass over the weights.

    Args:
        config: Kind and settings; its ``lr`` is not read.
        groups: Parameters, or groups of them in torch's form.
        rate: Initial learning rate.
    """
    decay = config.weight_decay
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=config.betas, weight_decay=decay, fused=True)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=config.betas, weight_decay=decay, fused=True)
    nesterov, momentum = config.nesterov, config.momentum
    sgd = torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=True)
    for parameter in [p for group in sgd.param_groups for p in group["params"] if momentum]:
        # From the start: torch's fused kernel cannot take parameters whose first gradient comes later than that of
        # others, and where it leaves out the first step of all it leaves memory in the buffers as it found it.
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


class Optimizers:
    """The optimizers of a lane; parts of the main phase share one, and so do phases that continue another.

    Args:
        config: The anchor's optimizer section.
        student: The student's parameters that are trained at all, frozen for a while or not.
    """

    def __init__(self, config: Optimizer, student: Sequence[nn.Parameter]) -> None:
        self.config = config
        self._student = tuple(student)
        self._made: dict[str, torch.optim.Optimizer] = {}

    def of(self, phase: Phase, everything: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        """Return the optimizer of a phase, a new one if the phase is the first that uses it.

        Args:
            phase: The phase.
            everything: What is trained if the phase does not say.
            rate: Its learning rate.

        Raises:
            ValueError: If the main phase trains the student otherwise than the anchor says, or if a phase that goes on
                with an optimizer trains anything else than the one that began it.
        """
        key, groups = phase.optimizer_key, self._groups(phase, everything)
        if key not in self._made:
            self._made[key] = make_optimizer(phase.optimizer or self.config, groups, rate)
        elif not _alike(self._made[key], groups):
            raise ValueError(
                f"phase '{phase.name}': goes on with an optimizer, but trains other parameters, or other groups of "
                "them, than the phase that began it; give both the same (frozen ones among them), or let it begin its "
                "own"
            )
        return self._made[key]

    def _groups(self, phase: Phase, everything: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        chosen = phase.parameters or (lambda: everything)
        groups = phase.groups() if phase.groups else [Group(chosen)]
        decays = [{} if group.weight_decay is None else {"weight_decay": group.weight_decay} for group in groups]
        made: list[dict[str, Any]] = [
            {"params": list(group.parameters()), FACTOR: group.rate, **decay}
            for group, decay in zip(groups, decays, strict=True)
        ]
        if phase.is_main:
            self._keep_the_anchor(phase, groups)
            named = {id(parameter) for group in made for parameter in group["params"]}
            # A method can name its own parameters alone; the student is trained whatever it names.
            made.insert(0, {"params": [p for p in self._student if id(p) not in named], FACTOR: 1.0})
        return [group for group in made if group["params"]]

    def _keep_the_anchor(self, phase: Phase, groups: Sequence[Group]) -> None:
        of_student = {id(parameter) for parameter in self._student}
        for group in groups:
            own = group.rate == 1 and group.weight_decay is None
            if not own and any(id(parameter) in of_student for parameter in group.parameters()):
                raise ValueError(
                    f"phase '{phase.name}': a group gives parameters of the student a rate factor {group.rate:g} or a "
                    "weight decay of their own; the anchor has both, so declare a Deviation"
                )

    def forget(self, done: Sequence[Phase], left: Sequence[Phase]) -> None:
        """Let go of optimizers that no phase still to come uses."""
        wanted = {phase.optimizer_key for phase in left}
        for phase in done:
            if phase.optimizer_key not in wanted:
                self._made.pop(phase.optimizer_key, None)

    def state(self) -> dict[str, Any]:
        """Return the state of every optimizer in use."""
        return {key: optimizer.state_dict() for key, optimizer in self._made.items()}

    def load(
        self, state: dict[str, Any], phases: Sequence[Phase], running: int, everything: Sequence[nn.Parameter]
    ) -> None:
        """Continue from a state.

        Args:
            state: What :meth:`state` returned.
            phases: All phases of the lane.
            running: Index of the running one.
            everything: What phases train that do not say.

        Raises:
            ValueError: If the state lacks an optimizer that was begun and is still needed.
        """
        begun = [phase.optimizer_key for phase in phases[: running + 1] if phase.epochs != 0]
        needed = {phase.optimizer_key for phase in phases[running:] if phase.epochs != 0}
        if lost := [key for key in begun if key in needed and key not in state]:
            raise ValueError(f"the checkpoint has no optimizer '{lost[0]}'; remove it to start the run anew")
        self._made.clear()
        for key, saved in state.items():
            first = next(phase for phase in phases if phase.optimizer_key == key)
            self.of(first, everything, 0.0).load_state_dict(saved)


def _alike(optimizer: torch.optim.Optimizer, groups: Sequence[dict[str, Any]]) -> bool:
    """Return whether an optimizer trains these groups, in this order and with their factors and decays."""

    def content(group: dict[str, Any]) -> tuple[object, ...]:
        decay = group.get("weight_decay", optimizer.defaults["weight_decay"])
        return group[FACTOR], decay, [id(parameter) for parameter in group["params"]]

    return [content(group) for group in optimizer.param_groups] == [content(group) for group in groups]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, times its factor in each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR]


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float, sound: Tensor | None) -> None:
    """Do one step of an optimizer on the gradients there are, without waiting for the device.

    Args:
        optimizer: A fused one.
        scaler: Scaled the loss.
        clip: Greatest norm of the whole gradient; 0 = any.
        sound: Whether the loss was finite, bool (); where it was not, nothing changes. None = change it all the same.
    """
    if clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    ruled = sound is not None and not scaler.is_enabled()
    if sound is not None and ruled:
        # What fused optimizers look at before they change anything: nothing waits for the device.
        optimizer.found_inf, optimizer.grad_scale = (~sound).float(), None  # type: ignore[attr-defined]
    scaler.step(optimizer)
    scaler.update()
    if ruled:  # a phase that goes on with this optimizer may do every step
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
