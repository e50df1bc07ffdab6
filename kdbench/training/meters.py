"""What a lane counts: where it stands, the sums of the running epoch, the cost of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdbench.types import Features


@dataclass
class Position:
    """Where a lane stands: the next step to do."""

    phase: int = 0
    epoch: int = 0
    step: int = 0

    def as_tuple(self) -> tuple[int, int, int]:
        """Return (phase, epoch, step)."""
        return self.phase, self.epoch, self.step


@dataclass(frozen=True)
class Glimpse:
    """One view of a batch before the student: its images, and what the teachers say of them."""

    images: Tensor
    teachers: tuple[Features, ...]


@dataclass
class Meters:
    """Sums over the running epoch; they stay on the device, so that no step waits for it."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0

    def add(self, name: str, value: Tensor, times: int = 1) -> None:
        """Add ``times * value`` of a scalar, without its gradient."""
        if name not in self.sums:
            self.sums[name] = torch.zeros((), dtype=torch.float64, device=value.device)
        self.sums[name].add_(value.detach(), alpha=times)

    def means(self) -> dict[str, float]:
        """Return every sum divided by the images seen."""
        return {name: float(value) / max(1, self.images) for name, value in self.sums.items()}


@dataclass
class Counters:
    """Cost of the run so far, over all attempts."""

    train_seconds: float = 0.0
    images: int = 0
    student_forwards: int = 0
    teacher_forwards: float = 0.0
