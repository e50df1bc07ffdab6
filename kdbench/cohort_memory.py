"""What a cohort will need in memory, and how many runs of a group therefore go together.

Lanes share the process, the data, the teachers and what these say of a batch. Each keeps its weights, what the
optimizer and the moving average hold per weight, and its method's buffers. They step one after the other and hold
neither activations nor gradients in between, so of these there are one lane's, the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from kdbench.config.schema import Anchor
from kdbench.memory import network_cost, per_weight, teacher_costs
from kdbench.options import apply_deviations
from kdbench.plan import Plan
from kdbench.registry import Registry
from kdbench.spec import RunSpec

FLOAT = 4
COPIES = 2  # of a lane's state, while its checkpoint is written


@dataclass(frozen=True)
class LaneMemory:
    """Memory of one lane in bytes.

    Args:
        kept: What it holds from its first step to its last.
        passing: What it needs besides while it steps, is evaluated or saved.
    """

    kept: int
    passing: int


@dataclass(frozen=True)
class Estimator:
    """Estimates the memory of cohorts of a plan, all numbers in float32.

    Args:
        plan: The plan.
        registry: Where backbones come from.
        base: Bytes in use before there are data or networks.
    """

    plan: Plan
    registry: Registry
    base: int

    def cohort(self, specs: Sequence[RunSpec]) -> int:
        """Return the memory of runs that are trained together in bytes."""
        return self._around(specs) + sum(self._lane(spec).kept for spec in specs)

    def most_lanes(self, specs: Sequence[RunSpec], budget: int) -> int:
        """Return how many of these runs fit a budget in bytes, whichever they are; at least one, which must be run."""
        largest_first = sorted((self._lane(spec).kept for spec in specs), reverse=True)
        totals = accumulate(largest_first, initial=self._around(specs))
        return max(1, sum(total <= budget for total in islice(totals, 1, None)))

    def _around(self, specs: Sequence[RunSpec]) -> int:
        """Return what these runs share, and the most that any of them or a teacher needs in passing."""
        return self._shared(specs) + max([self._teaching(specs), *(self._lane(spec).passing for spec in specs)])

    def _lane(self, spec: RunSpec) -> LaneMemory:
        anchor, info = apply_deviations(spec.anchor, spec.deviations), self.plan.infos[spec.pair]
        student = network_cost(self.registry.backbones[info.student.name], info.student.classes, info.image)
        passes = self.plan.passes[spec.pair, spec.row]
        burden, batch = passes.burden, _batch(anchor, self.plan.train_sizes[spec.pair])
        scalars = FLOAT * (student.parameters + burden.parameters)
        averages = 1 + (anchor.step.ema_decay > 0)
        kept = scalars * per_weight(anchor) + burden.buffer_bytes * averages
        at_once = math.ceil(batch / anchor.step.accumulate)
        stepping = scalars + at_once * (passes.inputs * student.activation_bytes + burden.kept_bytes)
        pixels = FLOAT * math.prod(info.image.dims) * passes.inputs
        stepping += batch * (pixels + burden.taught_bytes)
        evaluating = anchor.evaluation.batch_size * student.forward_bytes
        return LaneMemory(kept, max(stepping, evaluating, COPIES * kept))

    def _teaching(self, specs: Sequence[RunSpec]) -> int:
        """Return the most that a teacher needs in passing, one after another and before any lane steps."""
        taught = [spec for spec in specs if spec.teachers]
        if not taught:
            return 0
        batch = _batch(taught[0].anchor, self.plan.train_sizes[taught[0].pair])
        return max(batch * cost.forward_bytes for cost in teacher_costs(self.plan, self.registry)[taught[0].pair])

    def _shared(self, specs: Sequence[RunSpec]) -> int:
        pair = specs[0].pair
        images = self.plan.train_sizes[pair] + self.plan.validation_sizes[pair]
        pixels = images * math.prod(self.plan.infos[pair].image.dims)
        asked = any(spec.teachers for spec in specs)
        teachers = teacher_costs(self.plan, self.registry)[pair] if asked else ()
        return self.base + pixels + FLOAT * sum(teacher.parameters for teacher in teachers)


def _batch(anchor: Anchor, images: int) -> int:
    return min(anchor.data.batch_size, images)
