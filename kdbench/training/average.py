"""The moving average of a lane's weights, which is scored where the anchor says so."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdbench.method import AnyMethod


class Average:
    """An exponential moving average of student and method; following costs no wait for the device.

    Args:
        student: The student.
        method: Its method, whose helpers may be deployed with it.
        decay: Share of the old value in each step, in (0, 1).
    """

    def __init__(self, student: nn.Module, method: AnyMethod, decay: float) -> None:
        self._followed = nn.ModuleList([student, method])
        self.model = copy.deepcopy(self._followed)
        self.decay = decay
        # On the host, unlike the counter of torch's AveragedModel, which is copied to the device in every step.
        self._begun = False

    @torch.no_grad()
    def follow(self, *, trained: bool) -> None:
        """Bring the average up to date; where the student is not ``trained``, the method's part alone, as it is."""
        if not trained:
            _, method = self.modules()
            method.load_state_dict(self._followed[1].state_dict())
            return
        pairs = list(zip(_tensors(self.model), _tensors(self._followed), strict=True))
        # Counters of BatchNorm are whole numbers and nothing to average.
        averaged = [(mean, now) for mean, now in pairs if self._begun and mean.is_floating_point()]
        copied = [(mean, now) for mean, now in pairs if not (self._begun and mean.is_floating_point())]
        if averaged:
            means, values = map(list, zip(*averaged, strict=True))
            torch._foreach_lerp_(means, values, 1 - self.decay)
        for mean, now in copied:
            mean.copy_(now)
        self._begun = True

    def restart(self) -> None:
        """Forget what was averaged so far."""
        self._begun = False

    def modules(self) -> tuple[nn.Module, AnyMethod]:
        """Return the averaged student and method."""
        student, method = self.model
        return student, cast("AnyMethod", method)

    def state(self) -> dict[str, Any]:
        """Return everything it depends on."""
        return {"model": self.model.state_dict(), "begun": self._begun}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.model.load_state_dict(state["model"])
        self._begun = state["begun"]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
