"""Seeing a lane through one short epoch of each of its phases, and what each of them showed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from kdbench.method import Phase
from kdbench.records import EpochReport
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.lane import Lane

Lap = tuple[float, Mapping[str, float]]  # seconds since the lap before, and all seconds by part so far


@dataclass(frozen=True)
class Ending:
    """Seconds of the end of an epoch: in evaluation, in what the method does, and in all else."""

    evaluation: float
    method: float
    rest: float


@dataclass
class Seen:
    """What one phase showed.

    Args:
        index: Its place.
        phase: The phase.
        epochs: Its epochs.
        steps: A lap of each step; the first one includes the phase's beginning.
        end: The lap of the epoch's end.
        saving: Seconds of writing a checkpoint.
    """

    index: int
    phase: Phase
    epochs: int
    steps: list[Lap] = field(default_factory=list)
    end: Lap = (0.0, {})
    saving: float = 0.0

    def step(self, inputs: int) -> tuple[float, float]:
        """Return the seconds of a usual step, and those of them that the lanes of a cohort share.

        Args:
            inputs: Images the student sees for each one of the batch; the passes of views are not shared.
        """
        pairs = list(zip(self.steps, self.steps[1:], strict=False))
        return statistics.median_low(
            (now[0], (_since(before, now, "data") + _since(before, now, "teacher")) / inputs) for before, now in pairs
        )

    @property
    def opening(self) -> float:
        """Seconds of the phase's beginning, and of what only a first step does."""
        return max(0.0, self.steps[0][0] - self.step(1)[0])

    @property
    def ending(self) -> Ending:
        """Where the time of the epoch's end went."""
        evaluation, own = (_since(self.steps[-1], self.end, part) for part in ("evaluation", "method"))
        return Ending(evaluation, own, max(0.0, self.end[0] - evaluation - own) + self.saving)


def _since(before: Lap, now: Lap, part: str) -> float:
    return now[1].get(part, 0.0) - before[1].get(part, 0.0)


@dataclass
class Watch:
    """Keeps the time of a lane, and takes it on to the next phase after each epoch.

    Args:
        lane: The lane.
        checkpoints: Where it is saved, which is part of an epoch's time.
    """

    lane: Lane
    checkpoints: CheckpointFolder
    seen: list[Seen] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        """Begin the first lap."""
        self._last = time.perf_counter()

    def step(self) -> bool:
        """Note a step; the trainer asks whether to stop, which it must not."""
        self.lane.settle()  # waits for the device, so that the time is that of the step
        if not self.seen or self.seen[-1].index != self.lane.position.phase:
            self.seen.append(Seen(self.lane.position.phase, self.lane.phase, self.lane.epochs))
        self.seen[-1].steps.append(self._lap())
        return False

    def epoch(self, _report: EpochReport) -> None:
        """Note the end of an epoch."""
        self.seen[-1].end = self._lap()

    def save(self, lane: Lane) -> None:
        """Save the lane, and leave its phase."""
        self.checkpoints.save(lane.state(), lane.position.as_tuple())
        self.seen[-1].saving, _ = self._lap()
        lane.diverged = ""  # what is learned of random images does not matter
        if not lane.finished and lane.position.phase == self.seen[-1].index:
            lane.next_phase()

    def _lap(self) -> Lap:
        before, self._last = self._last, time.perf_counter()
        return self._last - before, dict(self.lane.counters.seconds)
