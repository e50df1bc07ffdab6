"""The pass of a cohort's teachers over a batch, with what is remembered of each of them."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.training.inputs import Inputs
from kdbench.training.networks import Taught, TeacherPass
from kdbench.training.teacher_cache.memory import Memory


class RecallingPass(TeacherPass):
    """A teacher pass that looks up first; views of a lane's own are always computed.

    Args:
        live: What is asked for the rest.
        memories: Of each teacher.
    """

    def __init__(self, live: TeacherPass, memories: Sequence[Memory]) -> None:
        super().__init__(live.teachers, live.taps, live.precision, live.device)
        self.memories = tuple(memories)

    def of_batch(self, inputs: Inputs) -> Taught:
        """Return each teacher's features of a batch, and what they cost."""
        if inputs.entries is None:
            return super().of_batch(inputs)
        said = [memory.of_batch(self.alone(place), inputs) for place, memory in enumerate(self.memories)]
        features = tuple(one.features[0] for one in said)
        return Taught(features, sum(one.run for one in said), sum(one.recalled for one in said))
