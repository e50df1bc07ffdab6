"""How long the runs of a plan will take on this machine, and what memory they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdbench.memory import run_memory
from kdbench.plan import Plan
from kdbench.registry import Registry
from kdbench.rehearsal import Passes
from kdbench.spec import RunSpec
from kdbench.training.environment import Machine
from kdbench.training.speed import Speed, Work, measure, speeds_of
from kdbench.training.teachers import Recipe

BUDGET = 60.0  # seconds for the measurements of a command


@dataclass(frozen=True)
class Duration:
    """Seconds, and whether every part of them was measured."""

    seconds: float
    measured: bool = True

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.seconds + other.seconds, self.measured and other.measured)

    def __str__(self) -> str:
        """As people say it: ``~3 min``; the mark is for what was partly calculated."""
        return ("" if self.measured else "~") + _spoken(self.seconds)


def _spoken(seconds: float) -> str:
    if seconds < 1:
        return "<1 s"
    for unit, size, most in (("s", 1, 90), ("min", 60, 90)):
        if round(seconds / size) < most:
            return f"{seconds / size:.0f} {unit}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def duration_of(images: int, passes: Passes, student: Speed, teachers: Sequence[Speed]) -> Duration:
    """Return the time of one run alone.

    Args:
        images: Training images of an epoch.
        passes: How often each goes through the networks, over all epochs.
        student: Of a training step.
        teachers: Of each teacher's forward pass.
    """
    asked = list(teachers) if passes.teacher else []
    per_image = passes.student * student.seconds + passes.teacher * sum(speed.seconds for speed in asked)
    return Duration(images * per_image, student.measured and all(speed.measured for speed in asked))


@dataclass(frozen=True)
class Forecast:
    """Durations and memory of a plan.

    Args:
        runs: Time of one run, by pair and method name; empty if nothing was measured.
        recipes: Time of training each missing teacher, by name of its artefact.
        memory: Bytes of one run, by pair and method name.
        machine: Where it holds.
        base: Bytes in use before there is a network.
    """

    runs: Mapping[tuple[str, str], Duration]
    recipes: Mapping[str, Duration]
    memory: Mapping[tuple[str, str], int]
    machine: Machine
    base: int


def forecast(
    plan: Plan,
    recipes: Sequence[Recipe],
    registry: Registry,
    machine: Machine,
    measuring: Callable[[Work], float] | None = None,
) -> Forecast:
    """Return what a plan will take.

    Args:
        plan: The plan; all its runs have one anchor.
        recipes: Teachers that will be trained first.
        registry: Where backbones come from.
        machine: Where it will run.
        measuring: Returns seconds per image of a network; None = calculate no times.
    """
    base = machine.base_memory()
    cells = {(spec.pair, spec.row): spec for spec in plan.runs}
    memory = {cell: run_memory(spec, plan, registry, base) for cell, spec in cells.items()}
    works = {cell: _works(spec, plan, registry) for cell, spec in cells.items()}
    speeds = {} if measuring is None else speeds_of((w for found in works.values() for w in found), measuring, BUDGET)
    if not speeds:
        return Forecast({}, {}, memory, machine, base)
    runs = {}
    for (pair, method), (student, *teachers) in works.items():
        found = speeds[student], [speeds[teacher] for teacher in teachers]
        runs[pair, method] = duration_of(plan.train_sizes[pair], plan.passes[pair, method], *found)
    made = {recipe.name: _making(recipe, plan, registry, speeds) for recipe in recipes}
    return Forecast(runs, made, memory, machine, base)


def measurer(plan: Plan, machine: Machine) -> Callable[[Work], float]:
    """Return what measures a network under the plan's anchor on a machine."""
    anchor = plan.runs[0].anchor
    return lambda work: measure(work, anchor, machine.device)


def _works(spec: RunSpec, plan: Plan, registry: Registry) -> tuple[Work, ...]:
    """Return what a run does: its student's training, then its teachers' passes."""
    info = plan.infos[spec.pair]
    student = Work(registry.backbones[info.student.name], info.student.classes, info.image, trains=True)
    asked = info.teachers if spec.teachers else ()
    return student, *(Work(registry.backbones[t.name], t.classes, info.image, trains=False) for t in asked)


def _making(recipe: Recipe, plan: Plan, registry: Registry, speeds: Mapping[Work, Speed]) -> Duration:
    """Return the time of training a teacher; where its steps were not measured, three times its forward passes."""
    spec = next(s for s in plan.runs if recipe.backbone in s.teachers and s.dataset.label == recipe.dataset.label)
    info = plan.infos[spec.pair]
    teacher = next(t for t in info.teachers if t.name == recipe.backbone)
    step, forward = (
        Work(registry.backbones[teacher.name], teacher.classes, info.image, trains=trains) for trains in (True, False)
    )
    speed = speeds[step] if step in speeds else Speed(3 * speeds[forward].seconds, measured=False)
    return duration_of(plan.train_sizes[spec.pair], Passes(recipe.anchor.schedule.epochs, 0), speed, ())
