"""The moving average of a lane's weights, which is scored where the anchor says so."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from kdbench.method import AnyMethod


class Average:
    """An exponential moving average of student and method.

    Args:
        student: The student.
        method: Its method, whose helpers may be deployed with it.
        decay: Share of the old value in each step, in (0, 1).
    """

    def __init__(self, student: nn.Module, method: AnyMethod, decay: float) -> None:
        self._followed = nn.ModuleList([student, method])
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.model = torch.optim.swa_utils.AveragedModel(self._followed, multi_avg_fn=average, use_buffers=True)

    def follow(self, *, trained: bool) -> None:
        """Bring the average up to date; where the student is not ``trained``, the method's part alone, as it is."""
        if trained:
            self.model.update_parameters(self._followed)
        else:
            self.modules()[1].load_state_dict(self._followed[1].state_dict())

    def restart(self) -> None:
        """Forget what was averaged so far."""
        self.model.n_averaged.zero_()

    def modules(self) -> tuple[nn.Module, AnyMethod]:
        """Return the averaged student and method."""
        student, method = cast("nn.ModuleList", self.model.module)
        return student, cast("AnyMethod", method)
