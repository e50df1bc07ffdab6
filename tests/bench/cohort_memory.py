"""Memory of a cohort of 8 against 8 students and a teacher: ``python tests/bench/cohort_memory.py [PAIR ...]``.

Every figure is the peak of a process of its own above what it had with data and library in memory. Runs are real
ones: batches, teacher passes, steps, evaluations and checkpoints of the trainer, on random images of 32x32.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from report_lines import Sheet

from kdbench.artefacts import TeacherStore
from kdbench.cohort_memory import Estimator
from kdbench.datasets.base import Source
from kdbench.evaluation import TestSet
from kdbench.method import TapRequest
from kdbench.plan import Plan, Request, make_plan, open_source
from kdbench.registry import Registry, load
from kdbench.spec import RunSpec
from kdbench.store import RunStore
from kdbench.training.cohort import Workplace, train_cohort
from kdbench.training.environment import Machine
from kdbench.training.networks import new_network
from kdbench.training.teachers import write_artefact

PAIRS = ("res32x4_res8x4", "wrn40_2_wrn16_2", "res50_mbv2")
LANES, SLACK = 8, 1.15
CLASSES, TRAINED, TESTED = 100, 128, 100  # two steps an epoch: the peak is reached in the second
TEACHER = "untrained"
RUNS_WITHOUT_TEACHER = "student"


def logits_methods(registry: Registry) -> list[str]:
    """Return the methods that look at the teacher's logits alone."""
    return [m.name for m in registry.methods.values() if m.uses_teacher and m.taps == TapRequest()]


def write_images(path: Path) -> None:
    """Write random images with all classes."""
    draws = np.random.Generator(np.random.PCG64(0))
    parts = {}
    for part, count in (("train", TRAINED), ("test", TESTED)):
        parts[f"{part}_images"] = draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        parts[f"{part}_labels"] = np.arange(count) % CLASSES
    np.savez(path, **parts)


def planned(registry: Registry, pair: str, folder: Path, methods: Sequence[str], variants: int) -> Plan:
    """Return a plan of the methods in so many variants, all of one seed."""
    data, plans = f"npz:{folder / 'images.npz'}", []
    for variant in range(variants):
        request = Request(tuple(methods), (pair,), (0,), "crd_smoke", data, teacher_names=(TEACHER,),
                          variant=f"v{variant}")  # fmt: skip
        plans.append(make_plan(request, registry))
    runs = tuple(spec for plan in plans for spec in plan.runs)
    passes = {key: value for plan in plans for key, value in plan.passes.items()}
    return replace(plans[0], runs=runs, skipped=(), passes=passes)


def cohort_of(registry: Registry, pair: str, folder: Path, lanes: int) -> tuple[Plan, tuple[RunSpec, ...]]:
    """Return so many runs of methods on logits, and the plan they are part of."""
    methods = logits_methods(registry)
    plan = planned(registry, pair, folder, methods, -(-lanes // len(methods)))
    return plan, plan.runs[:lanes]


def measure(case: str, pair: str, folder: Path) -> dict[str, int]:
    """Return what a case took in this process, and what was estimated, in bytes; 0 lanes = a student alone."""
    registry, lanes = load(), int(case)
    if lanes:
        plan, specs = cohort_of(registry, pair, folder, lanes)
    else:
        plan = planned(registry, pair, folder, [RUNS_WITHOUT_TEACHER], 1)
        specs = plan.runs
    machine = Machine(torch.device("cpu"), torch.get_num_threads())
    place = Workplace(registry, machine, TeacherStore(folder / "teachers"), folder)
    source = open_source(specs[0].dataset.name, registry, folder)
    folders = [RunStore(folder / f"runs{case}").folder(spec.run_id) for spec in specs]
    base = settled(machine)
    if any(spec.teachers for spec in specs):
        make_teacher(plan, registry, source, place.teachers, specs[0])
        base = settled(machine)
    train_cohort(specs, folders, place, lambda spec: registry.methods[spec.method])
    return {"bytes": machine.peak_memory() - base, "estimated": Estimator(plan, registry, 0).cohort(specs)}


def measure_teacher(pair: str, folder: Path) -> dict[str, int]:
    """Return what the teachers alone take, their weights and their passes over batches."""
    registry = load()
    plan, (spec,) = cohort_of(registry, pair, folder, 1)
    info = plan.infos[pair]
    images = torch.rand(spec.anchor.data.batch_size, *info.image.dims)
    machine = Machine(torch.device("cpu"), torch.get_num_threads())
    base = settled(machine)
    with torch.no_grad():
        networks = [new_network(registry.backbones[t.name], t.classes, info.image, 0).eval() for t in info.teachers]
        for _ in range(3):
            for network in networks:
                network(images)
    return {"bytes": machine.peak_memory() - base}


def make_teacher(plan: Plan, registry: Registry, source: Source, store: TeacherStore, spec: RunSpec) -> None:
    """Write the pair's teacher with random weights."""
    (teacher,) = plan.infos[spec.pair].teachers
    network = new_network(registry.backbones[teacher.name], teacher.classes, plan.infos[spec.pair].image, 0)
    predictions = TestSet(source, torch.device("cpu"), TESTED).predict(network)
    about = {"name": TEACHER, "backbone": teacher.name, "origin": "imported", "recipe": "", "recipe_sha256": "0" * 64}
    write_artefact(store, network, predictions, source.info, spec.dataset, **about)


def settled(machine: Machine) -> int:
    """Forget the peak so far and return what is in use now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return machine.base_memory()


def measured(case: str, pair: str) -> dict[str, int]:
    """Return what a case takes in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images.npz")
        command = [sys.executable, __file__, "--case", case, pair, folder]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, int] = json.loads(out.splitlines()[-1])
    return found


def report(sheet: Sheet, pair: str) -> None:
    """Add a pair's figures, and whether the cohort keeps within its limit."""
    student, teacher, cohort = (measured(case, pair) for case in ("0", "teacher", str(LANES)))
    parts = {"a run without teacher": student, "teacher": teacher, f"cohort of {LANES}": cohort}
    for name, part in parts.items():
        sheet.add(name, part["bytes"] / 2**20, subject=pair, unit="MiB")
    sheet.add(f"estimate of the cohort of {LANES}", cohort["estimated"] / 2**20, subject=pair, unit="MiB")
    share = cohort["bytes"] / (LANES * student["bytes"] + teacher["bytes"])
    sheet.add(f"cohort against {LANES} runs and 1 teacher", share, subject=pair, at_most=SLACK)


def main() -> None:
    """Measure the pairs of the command line, or one case for the process that asks."""
    if sys.argv[1:2] == ["--case"]:
        case, pair, folder = sys.argv[2:]
        found = measure_teacher(pair, Path(folder)) if case == "teacher" else measure(case, pair, Path(folder))
        print(json.dumps(found))
        return
    with Sheet("cohort_memory", "Memory of a cohort", "Above what any process needs, each in a fresh one.") as sheet:
        for pair in sys.argv[1:] or PAIRS:
            report(sheet, pair)


if __name__ == "__main__":
    main()
