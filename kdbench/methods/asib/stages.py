"""The course of a run: stages of A- and B-Steps, with the counters that go on from one to the next (5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.schedules import Counters


@dataclass(frozen=True)
class Step:
    """One A- or B-Step.

    Args:
        kind: ``a`` trains bridge, head and what is trained of the teachers; ``b`` the student.
        stage: 0-based stage.
        turn: 0-based place among the steps of its kind in the stage.
        epochs: Its length.
        a: A-Step epochs before it.
        b: Student epochs before it.
        ends_stage: Whether it is the last step of its stage.
    """

    kind: Literal["a", "b"]
    stage: int
    turn: int
    epochs: int
    a: int
    b: int
    ends_stage: bool = False

    @property
    def name(self) -> str:
        """``a1``, ``b1``, ...: kind and 1-based stage, with a further number for a second turn."""
        return f"{self.kind}{self.stage + 1}" + (f"_{self.turn + 1}" if self.turn else "")

    def counters(self, epoch: int) -> Counters:
        """Return the counters in a 0-based epoch of the step."""
        a = self.a + (epoch if self.kind == "a" else 0)
        b = self.b + (epoch if self.kind == "b" else 0)
        return Counters(ep=epoch, a=a, b=b, g=a + b, a_epochs=self.epochs if self.kind == "a" else 0)


def adaptation_epochs(options: ASIBOptions) -> int:
    """Return the length of each A-Step; ``ib_epochs_per_stage`` stands in where there is none, but a bottleneck."""
    return options.teacher_adapt_epochs or (options.ib_epochs_per_stage if options.use_ib else 0)


def student_epochs(options: ASIBOptions, epochs: int) -> tuple[int, ...]:
    """Return the student's epochs of each stage: those given, or the anchor's in parts as equal as possible.

    Args:
        options: ``num_stages``, ``student_epochs_per_stage``.
        epochs: The anchor's.
    """
    if options.student_epochs_per_stage is not None:
        return options.student_epochs_per_stage
    return parts(epochs, options.num_stages)


def parts(whole: int, count: int) -> tuple[int, ...]:
    """Return ``whole`` cut into ``count`` parts that differ by one at most."""
    return tuple((place + 1) * whole // count - place * whole // count for place in range(count))


def steps(options: ASIBOptions, epochs: int) -> tuple[Step, ...]:
    """Return all steps in order.

    Args:
        options: Stages, lengths, and with ``use_cccp`` the number of turns (``cccp_nt``, ``cccp_ns``).
        epochs: The anchor's epochs; B-Steps of one stage share that stage's.

    Source:
        Specification of the ASIB benchmark, 4.3 (turns) and 5.
    """
    length = adaptation_epochs(options)
    turns = {"a": options.cccp_nt, "b": options.cccp_ns} if options.use_cccp else {"a": 1, "b": 1}
    found: list[Step] = []
    a = b = 0
    for stage, students in enumerate(student_epochs(options, epochs)):
        for turn in range(turns["a"] if length else 0):
            found.append(Step("a", stage, turn, length, a, b))
            a += length
        lengths = parts(students, turns["b"])
        for turn, own in enumerate(lengths):
            found.append(Step("b", stage, turn, own, a, b, ends_stage=turn == len(lengths) - 1))
            b += own
    return tuple(found)
