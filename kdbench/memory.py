"""What training will need, counted before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from kdbench.backbones.base import Backbone
from kdbench.backbones.cost import NetworkCost, cost_of
from kdbench.config.schema import Anchor
from kdbench.plan import Plan
from kdbench.registry import Registry
from kdbench.spec import RunSpec
from kdbench.types import StageShape


def spoken_size(count: int) -> str:
    """Return bytes as people say them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def student_costs(plan: Plan, registry: Registry) -> dict[str, NetworkCost]:
    """Return the cost of each pair's student, by pair name, counted on the meta device."""
    return {
        name: network_cost(registry.backbones[info.student.name], info.student.classes, info.image)
        for name, info in plan.infos.items()
    }


def teacher_flops(plan: Plan, registry: Registry) -> dict[str, int]:
    """Return the forward FLOPs per image of each pair's teachers together, by pair name."""
    return {
        name: sum(network_cost(registry.backbones[t.name], t.classes, info.image).flops for t in info.teachers)
        for name, info in plan.infos.items()
    }


@cache
def network_cost(backbone: Backbone, classes: int, image: StageShape) -> NetworkCost:
    """Return the cost of a network, counted on the meta device once per process."""
    return cost_of(backbone.on_meta(classes, image), image)


def teacher_costs(plan: Plan, registry: Registry) -> dict[str, tuple[NetworkCost, ...]]:
    """Return the cost of each pair's teachers, by pair name."""
    return {
        name: tuple(network_cost(registry.backbones[t.name], t.classes, info.image) for t in info.teachers)
        for name, info in plan.infos.items()
    }


def training_memory(
    student: NetworkCost, teachers: Sequence[NetworkCost], anchor: Anchor, inputs: int = 1, base: int = 0
) -> int:
    """Return a lower bound of the memory of one run in bytes, all numbers in float32.

    Weights of all networks, the student's gradients, what the optimizer and the moving average keep per weight, and
    the larger of the student's activations and one teacher's: teachers run one after another and before the student.

    Args:
        student: Cost of the student.
        teachers: Costs of the teachers; empty for a method that asks none.
        anchor: The protocol.
        inputs: Images the student sees at once for each one of the batch: itself and its views.
        base: Bytes that are in use before there is any network.
    """
    batch = anchor.data.batch_size
    at_once = batch // anchor.step.accumulate * inputs
    weights = student.training_bytes(0, moments=per_weight(anchor) - 1) + 4 * sum(t.parameters for t in teachers)
    forward = max((batch * teacher.forward_bytes for teacher in teachers), default=0)
    return base + weights + max(at_once * student.activation_bytes, forward)


def per_weight(anchor: Anchor) -> int:
    """Return how many numbers a run keeps per weight: itself, the optimizer's moments, and the moving average."""
    return 2 + (anchor.optimizer.name in {"adam", "adamw"}) + (anchor.step.ema_decay > 0)


def run_memory(spec: RunSpec, plan: Plan, registry: Registry, base: int = 0) -> int:
    """Return a lower bound of the memory of a run of the plan in bytes, with ``base`` bytes in use before it."""
    info = plan.infos[spec.pair]
    student = network_cost(registry.backbones[info.student.name], info.student.classes, info.image)
    teachers = teacher_costs(plan, registry)[spec.pair] if spec.teachers else ()
    return training_memory(student, teachers, spec.anchor, plan.passes[spec.pair, spec.row].inputs, base)


def too_large(plan: Plan, registry: Registry, available: int) -> list[str]:
    """Return a message for each student that cannot be trained in the memory there is, its teachers beside it.

    Args:
        plan: The plan.
        registry: Where backbones come from.
        available: Bytes of the device.
    """
    needed: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}
    for spec in plan.runs:
        entry = run_memory(spec, plan, registry), spec.teachers
        needed[spec.pair, spec.student] = max(entry, needed.get((spec.pair, spec.student), (0, ())))
    return [
        f"pair '{pair}': training student '{student}'{f' beside {_quoted(teachers)}' if teachers else ''} needs at "
        f"least {size / 2**30:.1f} GiB, this device has {available / 2**30:.1f}; choose a smaller pair, an anchor with "
        "step.accumulate, or another --device"
        for (pair, student), (size, teachers) in needed.items()
        if size > available
    ]


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost.

    Args:
        images: Images that students are trained on, views included, over all runs to do.
        petaflops: Floating-point operations of it, teachers' passes included, in 1e15.
        memory_bytes: Of the largest run, its teachers included.
    """

    images: int
    petaflops: float
    memory_bytes: int


def estimate(plan: Plan, todo: Sequence[RunSpec], registry: Registry, base: int = 0) -> Estimate:
    """Return the cost of the runs to do; a backward pass counts as two forward passes, ``base`` bytes are in use."""
    students, teachers = student_costs(plan, registry), teacher_flops(plan, registry)
    images, flops, largest = 0, 0, 0
    for spec in todo:
        passes, size = plan.passes[spec.pair, spec.row], plan.train_sizes[spec.pair]
        images += size * passes.student
        flops += size * (3 * passes.student * students[spec.pair].flops + passes.teacher * teachers[spec.pair])
        largest = max(largest, run_memory(spec, plan, registry, base))
    return Estimate(images, flops / 1e15, largest)
