"""Between epochs: a lane's method looks at the validation split, keeps and restores, and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from kdbench.method import Batch, Interlude
from kdbench.modes import evaluating
from kdbench.seeds import stream
from kdbench.training.inputs import Inputs
from kdbench.training.looking import Onlooker
from kdbench.training.meters import finite

if TYPE_CHECKING:
    from kdbench.training.lane import Lane

T = TypeVar("T")


def before_phase(lane: Lane, onlooker: Onlooker) -> None:
    """Let the method of a lane begin its phase."""
    interlude = Interlude(lane.phase, 0, lane.student, _look(lane, onlooker), {})
    _ask(lane, "before", lambda: lane.method.before_phase(interlude))


def after_epoch(
    lane: Lane, onlooker: Onlooker, means: Mapping[str, float], accuracy: float | None
) -> dict[str, float | str | None]:
    """Let the method of a lane end its epoch, and return what it reports.

    Args:
        lane: The lane, still at the epoch.
        onlooker: The validation split.
        means: What the epoch showed.
        accuracy: Validation accuracy in percent, if it was measured.

    Raises:
        ValueError: If the method changes the student once its last epoch is over, which is the one that is scored.
    """
    interlude = Interlude(lane.phase, lane.position.epoch + 1, lane.student, _look(lane, onlooker), means, accuracy)
    scored = lane.phase.is_main and lane.student_epoch + 1 >= lane.anchor.schedule.epochs
    before = _changes(lane.student)
    own = _ask(lane, "after", lambda: lane.method.after_epoch(interlude))
    if scored and _changes(lane.student) != before:
        raise ValueError("after_epoch changed the student after its last epoch, which is the one that is scored")
    return {name: value if isinstance(value, str) else finite(value) for name, value in own.items()}


def _ask(lane: Lane, when: str, call: Callable[[], T]) -> T:
    """Call the method without gradients and with random numbers of its own; the time is part of the run's cost."""
    started = time.perf_counter()
    torch.manual_seed(stream(lane.spec.seed, "dropout", lane.stream_key, when))
    with torch.no_grad():
        said = call()
    lane.counters.train_seconds += time.perf_counter() - started
    return said


def _look(lane: Lane, onlooker: Onlooker) -> Callable[[int | None], Iterator[Batch]]:
    def look(first: int | None = None) -> Iterator[Batch]:
        counters, phase = lane.counters, lane.phase
        with evaluating(lane.student, lane.method):
            lane.looking = True
            try:
                for sight in onlooker.sights(lane.teacher_taps if lane.taught else (), first):
                    count = len(sight.labels)
                    counters.student_forwards += count if phase.runs_student else 0
                    counters.teacher_forwards += count * (len(sight.teachers) + phase.own_forwards)
                    (said,) = lane.run_student(sight.images, ())
                    yield lane.batch_of(Inputs(sight.images, sight.labels, sight.index, None), said, sight.teachers)
            finally:
                lane.looking = False

    return look


def _changes(module: nn.Module) -> int:
    """Return how often a module's tensors were changed in place."""
    return sum(tensor._version for tensor in (*module.parameters(), *module.buffers()))
