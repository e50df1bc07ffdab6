"""What training will need, counted before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from kdbench.backbones.base import Backbone
from kdbench.backbones.cost import NetworkCost, cost_of
from kdbench.plan import Plan
from kdbench.registry import Registry
from kdbench.spec import RunSpec
from kdbench.types import StageShape


def student_costs(plan: Plan, registry: Registry) -> dict[str, NetworkCost]:
    """Return the cost of each pair's student, by pair name, counted on the meta device."""
    return {
        name: _cost(registry.backbones[info.student.name], info.student.classes, info.image)
        for name, info in plan.infos.items()
    }


def teacher_flops(plan: Plan, registry: Registry) -> dict[str, int]:
    """Return the forward FLOPs per image of each pair's teachers together, by pair name."""
    return {
        name: sum(_cost(registry.backbones[t.name], t.classes, info.image).flops for t in info.teachers)
        for name, info in plan.infos.items()
    }


@cache
def _cost(backbone: Backbone, classes: int, image: StageShape) -> NetworkCost:
    with torch.device("meta"):
        network = backbone.build(classes, image)
    return cost_of(network, image)


def too_large(plan: Plan, registry: Registry, available: int) -> list[str]:
    """Return a message for each student that cannot be trained in the memory there is.

    Args:
        plan: The plan.
        registry: Where backbones come from.
        available: Bytes of the device.
    """
    needed: dict[tuple[str, str], int] = {}
    costs = student_costs(plan, registry)
    for spec in plan.runs:
        size = costs[spec.pair].training_bytes(_images_at_once(spec, plan))
        needed[spec.pair, spec.student] = max(size, needed.get((spec.pair, spec.student), 0))
    return [
        f"pair '{pair}': training student '{student}' needs at least {size / 2**30:.1f} GiB, this device has "
        f"{available / 2**30:.1f}; choose a smaller student, an anchor with step.accumulate, or another --device"
        for (pair, student), size in needed.items()
        if size > available
    ]


def _images_at_once(spec: RunSpec, plan: Plan) -> int:
    """Return how many images, views included, the student sees in one forward pass."""
    return spec.anchor.data.batch_size // spec.anchor.step.accumulate * plan.passes[spec.pair, spec.method].inputs


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost.

    Args:
        images: Images that students are trained on, views included, over all runs to do.
        petaflops: Floating-point operations of it, teachers' passes included, in 1e15.
        memory_bytes: Of the largest student in training.
    """

    images: int
    petaflops: float
    memory_bytes: int


def estimate(plan: Plan, todo: Sequence[RunSpec], registry: Registry) -> Estimate:
    """Return the cost of the runs to do; a backward pass counts as two forward passes."""
    students, teachers = student_costs(plan, registry), teacher_flops(plan, registry)
    images, flops, largest = 0, 0, 0
    for spec in todo:
        passes, size = plan.passes[spec.pair, spec.method], plan.train_sizes[spec.pair]
        images += size * passes.student
        flops += size * (3 * passes.student * students[spec.pair].flops + passes.teacher * teachers[spec.pair])
        largest = max(largest, students[spec.pair].training_bytes(_images_at_once(spec, plan)))
    return Estimate(images, flops / 1e15, largest)
