"""Between epochs: a lane's method looks at the validation split, keeps and restores, and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
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
    """Let the method of a lane begin its phase.

    Raises:
        ValueError: If the method changes the student once its last epoch is over, which is the one that is scored.
    """
    interlude = Interlude(lane.phase, 0, lane.student, _look(lane, onlooker), {})
    with _scored(lane, "before_phase", over=lane.student_epoch >= lane.anchor.schedule.epochs):
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
    done = lane.student_epoch + lane.phase.is_main
    with _scored(lane, "after_epoch", over=done >= lane.anchor.schedule.epochs):
        own = _ask(lane, "after", lambda: lane.method.after_epoch(interlude))
    return {name: value if isinstance(value, str) else finite(value) for name, value in own.items()}


def _ask(lane: Lane, when: str, call: Callable[[], T]) -> T:
    """Call the method without gradients, in eval mode and float32, and with random numbers of its own.

    The modes hold for the whole call, so that it does not matter how a method ends a look, or how many it has at once.
    The time is part of the run's cost, not of an epoch's speed.
    """
    lane.settle()
    lane.clock.start()
    torch.manual_seed(stream(lane.spec.seed, "dropout", lane.stream_key, when))
    lane.looking = True
    try:
        with torch.no_grad(), evaluating(lane.student, lane.method):
            return call()
    finally:
        lane.looking = False
        lane.clock.lap("method")
        lane.settle(steps=False)


@contextmanager
def _scored(lane: Lane, hook: str, *, over: bool) -> Iterator[None]:
    """Refuse changes of the student where its training is ``over``."""
    before = _changes(lane.student)
    yield
    if over and _changes(lane.student) != before:
        raise ValueError(f"{hook} changed the student after its last epoch, which is the one that is scored")


def _look(lane: Lane, onlooker: Onlooker) -> Callable[[int | None], Iterator[Batch]]:
    def look(first: int | None = None) -> Iterator[Batch]:
        counters, phase = lane.counters, lane.phase
        for sight in onlooker.sights(lane.teacher_taps if lane.taught else (), first):
            if not lane.looking:
                raise ValueError("look() was used in training; it is for before_phase and after_epoch")
            count = len(sight.labels)
            counters.student_forwards += count if phase.runs_student else 0
            counters.teacher_forwards += count * (len(sight.teachers) + phase.own_forwards)
            (said,) = lane.run_student(sight.images, ())
            batch = lane.batch_of(Inputs(sight.images, sight.labels, sight.index, None), said, sight.teachers)
            yield replace(batch, notes=lambda *_: None)

    return look


def _changes(module: nn.Module) -> int:
    """Return how often a module's tensors were changed in place."""
    return sum(tensor._version for tensor in (*module.parameters(), *module.buffers()))
