"""From parsed options to a plan that fits this machine; shared by run and plan."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdbench.cli.arguments import names, seeds_of
from kdbench.errors import ConfigError, ProblemList
from kdbench.memory import too_large
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.training.environment import resolve_device


@dataclass(frozen=True)
class Asked:
    """The options of run and plan, as parsed."""

    method: str
    pair: str
    seeds: int | None
    seed_list: str | None
    dataset: str | None
    per_class: int | None
    anchor: str
    settings: tuple[str, ...]
    teacher: str | None
    out: Path
    teachers: Path
    data: Path
    device: str

    def request(self) -> Request:
        """Return them as a request."""
        return Request(
            methods=names(self.method),
            pairs=names(self.pair),
            seeds=seeds_of(self.seeds, self.seed_list),
            anchor=self.anchor,
            dataset=self.dataset,
            per_class=self.per_class,
            settings=self.settings,
            teacher_names=names(self.teacher or ""),
            data_root=self.data,
        )


def plan_for(asked: Asked, registry: Registry) -> Plan:
    """Return the plan of a command.

    Raises:
        ConfigError: With everything that is wrong with it, memory and named teachers included.
    """
    from kdbench.artefacts import TeacherStore

    problems: list[str] = []
    try:
        device = resolve_device(asked.device)
    except ConfigError as error:
        device = torch.device("cpu")
        problems.append(str(error))
    try:
        plan = make_plan(asked.request(), registry)
    except ConfigError as error:
        raise ProblemList([*getattr(error, "problems", [str(error)]), *problems]) from error
    problems += too_large(plan, registry, memory_of(device))
    store = TeacherStore(asked.teachers)
    for spec in {(s.pair, s.dataset.label): s for s in plan.runs if s.teacher_names}.values():
        problems += _teacher_problems(spec, store, plan)
    if problems:
        raise ProblemList(problems)
    return plan


def _teacher_problems(spec: Any, store: Any, plan: Plan) -> list[str]:
    problems = []
    wanted = zip(spec.teacher_names, spec.teachers, spec.taught_on, plan.infos[spec.pair].teachers, strict=True)
    for name, backbone, dataset, info in wanted:
        try:
            manifest = store.manifest(dataset, name)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if manifest.backbone != backbone:
            problems.append(f"--teacher {name}: is a {manifest.backbone}, pair '{spec.pair}' needs a {backbone}")
        if len(manifest.classes) != info.classes:
            problems.append(
                f"--teacher {name}: has {len(manifest.classes)} classes, dataset '{dataset.name}' has {info.classes}"
            )
    return problems


def memory_of(device: torch.device) -> int:
    """Return the memory of a device in bytes (of the machine, for the CPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
