"""How long the runs of a plan will take on this machine, and what memory they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdbench.memory import run_memory
from kdbench.method import Phase, Supervised
from kdbench.plan import Plan
from kdbench.registry import Registry
from kdbench.rehearsal import Passes
from kdbench.spec import RunSpec
from kdbench.training.budget import times_of
from kdbench.training.environment import Machine
from kdbench.training.runtime import RunTime, spoken
from kdbench.training.teachers import Recipe
from kdbench.training.trial import time_run
from kdbench.training.work import Work
from kdbench.types import PairInfo

BUDGET = 60.0  # seconds for the measurements of a command
Cell = tuple[str, str]  # pair and row of a plan; a recipe's is "" and the name of its artefact


@dataclass(frozen=True)
class Duration:
    """Seconds, and whether every part of them was measured."""

    seconds: float
    measured: bool = True

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.seconds + other.seconds, self.measured and other.measured)

    def __str__(self) -> str:
        """As people say it: ``~3 min``; the mark is for what was partly calculated."""
        return ("" if self.measured else "~") + spoken(self.seconds)


def said(run: RunTime) -> str:
    """Return the time of a run alone as people say it."""
    return str(Duration(run.alone, run.measured))


@dataclass(frozen=True)
class Forecast:
    """Times and memory of a plan.

    Args:
        runs: Time of one run, by pair and row; empty if nothing was measured.
        recipes: Time of training each missing teacher, by name of its artefact.
        memory: Bytes of one run, by pair and row.
        machine: Where it holds.
        base: Bytes in use before there is a network.
    """

    runs: Mapping[Cell, RunTime]
    recipes: Mapping[str, RunTime]
    memory: Mapping[Cell, int]
    machine: Machine
    base: int


def forecast(
    plan: Plan,
    recipes: Sequence[Recipe],
    registry: Registry,
    machine: Machine,
    measuring: Callable[[Work], RunTime] | None = None,
    budget: float | None = None,
) -> Forecast:
    """Return what a plan will take.

    Args:
        plan: The plan; all its runs have one anchor.
        recipes: Teachers that will be trained first.
        registry: Where backbones come from.
        machine: Where it will run.
        measuring: Returns the time of a run; None = find out no times.
        budget: Seconds for the measurements; None = a minute.
    """
    base = machine.base_memory()
    cells = {(spec.pair, spec.row): spec for spec in plan.runs}
    memory = {cell: run_memory(spec, plan, registry, base) for cell, spec in cells.items()}
    if measuring is None:
        return Forecast({}, {}, memory, machine, base)
    works = works_of(plan, recipes, registry)
    times = times_of(works, measuring, BUDGET if budget is None else budget, machine.device)
    runs = {cell: times[cell] for cell in cells if times}
    made = {recipe.name: times["", recipe.name] for recipe in recipes if times}
    return Forecast(runs, made, memory, machine, base)


def measurer(machine: Machine) -> Callable[[Work], RunTime]:
    """Return what measures a run on a machine."""
    return lambda work: time_run(work, machine.device)


def works_of(plan: Plan, recipes: Sequence[Recipe], registry: Registry) -> dict[Cell, Work]:
    """Return what there is to do: one run of each cell of a plan, and the training of each missing teacher."""
    runs = {(spec.pair, spec.row): _run(spec, plan, registry) for spec in plan.runs}
    return runs | {("", recipe.name): _recipe(recipe, plan, registry) for recipe in recipes}


def _run(spec: RunSpec, plan: Plan, registry: Registry) -> Work:
    info = plan.infos[spec.pair]
    info = info if spec.teachers else PairInfo(info.name, info.student, (), info.image)
    passes = plan.passes[spec.pair, spec.row]
    return _work(spec, info, passes, plan, registry, spec.pair, registry.methods[spec.method])


def _recipe(recipe: Recipe, plan: Plan, registry: Registry) -> Work:
    """Return the training of a teacher; if its dataset is not that of its student, it is one of about the same size."""
    student = next(
        spec
        for spec in plan.runs
        if (recipe.backbone, recipe.dataset) in zip(spec.teachers, spec.taught_on, strict=True)
    )
    info, spec, epochs = plan.infos[student.pair], recipe.spec(), recipe.anchor.schedule.epochs
    own = next(teacher for teacher in info.teachers if teacher.name == recipe.backbone)
    alone = PairInfo(spec.pair, own, (), info.image)
    passes = Passes(epochs, 0, phases=((Phase().name, epochs),))
    return _work(spec, alone, passes, plan, registry, student.pair, Supervised)


def _work(
    spec: RunSpec, info: PairInfo, passes: Passes, plan: Plan, registry: Registry, pair: str, method: type
) -> Work:
    train, validation = plan.train_sizes[pair], plan.validation_sizes[pair]
    networks = tuple(registry.backbones[name] for name in (spec.student, *spec.teachers))
    return Work(spec, method, info, networks, plan.datasets[pair], train, validation, passes)
