"""What jobs ask of other machines, from what a plan knows of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.cli.needing import HALF_AN_HOUR, OVERHEAD, Needing
from kdbench.cli.workers import Workers, room_for
from kdbench.engine import GIB
from kdbench.execution.jobs import Job, runs_job, teacher_job
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.training.teachers import recipes_of


@pytest.fixture(scope="module")
def plan(registry: Registry) -> Plan:
    return make_plan(Request(("student", "vanilla_kd"), ("tiny",), (0,), "fair_baseline", per_class=20), registry)


def needing(plan: Plan, registry: Registry, device: str) -> tuple[Needing, Any]:
    workers = Workers((torch.device(device),), 2, 3, None, None, "cluster")
    room = room_for(workers, plan, registry)
    return Needing(plan, workers, room, registry), room


def jobs(plan: Plan, tmp_path: Any) -> tuple[Job, Job, Job]:
    """Return the job of one run, of both, and of their teacher."""
    ids = [spec.run_id for spec in plan.runs]
    (recipe,) = recipes_of(plan.runs)
    return runs_job(ids[:1], tmp_path), runs_job(ids, tmp_path), teacher_job(recipe, "fair_baseline")


def test_on_a_cpu_memory_is_that_of_the_cohort(plan: Plan, registry: Registry, tmp_path: Any) -> None:
    needs, room = needing(plan, registry, "cpu")
    one, both, teacher = map(needs, jobs(plan, tmp_path))
    for found in (one, both, teacher):
        assert (found.gpus, found.cpus) == (0, 3)
        assert found.memory % GIB == 0
        assert found.seconds % HALF_AN_HOUR == 0
        assert found.seconds >= HALF_AN_HOUR
    assert 0 <= both.memory - OVERHEAD - room.estimator.cohort(plan.runs) < GIB
    assert one.memory <= both.memory
    assert teacher.memory >= OVERHEAD


def test_beside_a_gpu_only_the_images_are_in_main_memory(plan: Plan, registry: Registry, tmp_path: Any) -> None:
    needs, _ = needing(plan, registry, "cuda")
    one, both, teacher = map(needs, jobs(plan, tmp_path))
    assert {(found.gpus, found.cpus, found.memory) for found in (one, both, teacher)} == {(1, 3, OVERHEAD + GIB)}


def test_more_runs_take_more_time(registry: Registry, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.cli.needing.NOMINAL_FLOPS", {"cpu": 1e5})
    plan = make_plan(Request(("student", "vanilla_kd"), ("tiny",), (0,), "fair_baseline", per_class=20), registry)
    needs, _ = needing(plan, registry, "cpu")
    one, both, _ = map(needs, jobs(plan, tmp_path))
    assert both.seconds > one.seconds > HALF_AN_HOUR
