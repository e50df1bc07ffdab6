"""What a lane counts: where it stands, the sums of the running epoch, the cost of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from kdbench.records import StepReport
from kdbench.training.clock import Part
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


class Averages:
    """Weighted means by name; the sums stay on the device, so that no step waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}

    def add(self, name: str, value: Tensor | float, weight: float | Tensor) -> None:
        """Add a scalar, without its gradient; where the weight is 0 the value does not matter, even if it is NaN."""
        number = torch.as_tensor(value).detach()
        if isinstance(weight, Tensor):
            weight = weight.detach().double()
            number = torch.where(weight > 0, number, torch.zeros_like(number))
        elif weight == 0:
            return
        self._open(name, number.device)
        if isinstance(weight, Tensor):
            self._sums[name].add_(number * weight)
        else:
            self._sums[name].add_(number, alpha=weight)
        self._weights[name] = self._weights[name] + weight

    def count(self, name: str, found: Tensor, of: int) -> None:
        """Add an exact count of things found among so many."""
        self._open(name, found.device)
        self._sums[name].add_(found)
        self._weights[name] = self._weights[name] + of

    def _open(self, name: str, device: torch.device) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros((), dtype=torch.float64, device=device)
            self._weights[name] = 0.0

    def means(self) -> dict[str, float]:
        """Return sums divided by weights, of what has any."""
        return {name: float(self._sums[name]) / w for name, weight in self._weights.items() if (w := float(weight)) > 0}

    def include(self, other: Averages) -> None:
        """Add the sums and weights of another one on the same device."""
        for name, total in other._sums.items():
            self._open(name, total.device)
            self._sums[name].add_(total)
            self._weights[name] = self._weights[name] + other._weights[name]

    def state(self) -> dict[str, list[float | Tensor]]:
        """Return sum and weight of each name."""
        return {name: [value, self._weights[name]] for name, value in self._sums.items()}

    def load(self, state: dict[str, list[float | Tensor]], device: torch.device) -> None:
        """Continue from a state."""
        moved = {name: [p.to(device) if isinstance(p, Tensor) else p for p in pair] for name, pair in state.items()}
        self._sums = {name: torch.as_tensor(pair[0]).clone() for name, pair in moved.items()}
        self._weights = {name: pair[1] for name, pair in moved.items()}


@dataclass
class Meters:
    """What the running epoch has shown: means of the loss terms and of the method's notes, images, seconds."""

    losses: Averages = field(default_factory=Averages)
    notes: Averages = field(default_factory=Averages)
    images: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "losses": self.losses.state(),
            "notes": self.notes.state(),
            "images": self.images,
            "seconds": self.seconds,
        }

    def on_host(self) -> dict[str, Any]:
        """Return the state in main memory."""
        return self.of(self.state(), torch.device("cpu")).state()

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device) -> Self:
        """Return the meters of a state."""
        meters = cls(images=state["images"], seconds=state["seconds"])
        meters.losses.load(state["losses"], device)
        meters.notes.load(state["notes"], device)
        return meters


@dataclass
class Counters:
    """Cost of the run so far, over all attempts; ``seconds`` by part."""

    train_seconds: float = 0.0
    images: int = 0
    student_forwards: int = 0
    teacher_forwards: float = 0.0
    teacher_cached: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, seconds: Mapping[Part, float]) -> float:
        """Add the seconds of parts, and return those of training: evaluation is no part of it."""
        for part, more in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + more
        training = sum(more for part, more in seconds.items() if part != "evaluation")
        self.train_seconds += training
        return training


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def reportable(means: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers as JSON can hold them."""
    return {name: finite(value) for name, value in means.items()}


def first_step(run_id: str, phase: str, shown: Meters, weights: Mapping[str, float | Tensor]) -> StepReport:
    """Return what the first step of a phase showed; reading it waits for the device, once a phase.

    Args:
        run_id: The run.
        phase: Name of the phase.
        shown: Its meters, which hold no other step.
        weights: Of the loss terms.
    """
    means = shown.losses.means()
    means.pop("correct", None)
    return StepReport(
        run_id=run_id,
        phase=phase,
        losses=reportable(means),
        weights=reportable({name: float(weight) for name, weight in weights.items()}),
        metrics=reportable(shown.notes.means()),
    )
