"""Trial runs: what is made of what they see, by hand, and real ones of which only the order is certain."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.datasets.digits import Digits
from kdbench.phases import Phase
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.training import work
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.environment import set_up
from kdbench.training.forecast import forecast, works_of
from kdbench.training.runtime import PhaseTime, RunTime
from kdbench.training.standins import Noise, filled, noise
from kdbench.training.teachers import recipes_of
from kdbench.training.trainer import epochs_tested
from kdbench.training.trial import Trial, time_run
from kdbench.training.watch import Ending, Seen
from kdbench.training.work import Work
from kdbench.types import StageShape

CPU = torch.device("cpu")
IMAGE = StageShape((3, 32, 32))
METHODS = ("vanilla_kd", "student", "ft", "sskd")


@pytest.fixture(scope="module")
def plan(registry: Registry) -> Plan:
    """180 of 200 images for two epochs; batches of 128."""
    return make_plan(Request(METHODS, ("tiny",), (0,), "fair_baseline_smoke", per_class=20), registry)


@pytest.fixture(scope="module")
def works(plan: Plan, registry: Registry) -> dict[str, Work]:
    return {row: found for (_, row), found in works_of(plan, recipes_of(plan.runs), registry).items()}


# --- what a run is ----------------------------------------------------------------------------------------------------


def test_a_run_as_work_by_hand(works: dict[str, Work]) -> None:
    student, taught = works["student"], works["vanilla_kd"]
    assert (taught.train, taught.validation, taught.epoch_images) == (180, 20, 128)
    own = student.flops // 3
    assert student.run_flops == 180 * 2 * 3 * own
    teacher = taught.flops - student.flops
    assert teacher > own
    assert taught.run_flops == student.run_flops + 180 * 2 * teacher
    assert works["sskd"].flops == 4 * taught.flops, "three views besides the images"
    (recipe,) = (found for row, found in works.items() if row not in METHODS)
    assert recipe.flops == 3 * teacher
    assert recipe.passes.phases == (("main", 2),)


def test_images_of_a_measured_step(works: dict[str, Work], monkeypatch: pytest.MonkeyPatch) -> None:
    taught = works["vanilla_kd"]
    monkeypatch.setitem(work.STEP_FLOPS, "cpu", 30.5 * taught.flops)
    assert taught.step_images(CPU) == 30
    assert taught.evaluated_images(CPU, 20) == 20
    monkeypatch.setitem(work.STEP_FLOPS, "cpu", 1.0)
    assert (taught.step_images(CPU), taught.evaluated_images(CPU, 20), taught.evaluated_images(CPU, 0)) == (4, 4, 0)
    monkeypatch.setitem(work.STEP_FLOPS, "cpu", 1e18)
    assert taught.step_images(CPU) == 128


# --- what a trial saw -------------------------------------------------------------------------------------------------


def seen(phase: Phase, epochs: int = 2) -> Seen:
    """Return a phase of a second's opening, steps of 2 seconds, and an epoch's end of 4.5 seconds."""
    parts = [{"data": 0.25 * n, "teacher": 0.5 * n, "student": 1.0 * n, "method": 0.25 * n} for n in range(1, 5)]
    steps = list(zip((3.0, 2.0, 7.0, 2.0), parts, strict=True))
    end = {**parts[-1], "method": parts[-1]["method"] + 1.0, "evaluation": 3.0}
    return Seen(0, phase, epochs, steps, (4.25, end), 0.25)


def test_what_a_phase_showed_by_hand() -> None:
    found = seen(Phase())
    assert found.step(inputs=1) == (2.0, 0.75), "the median, so that a step that was held up does not count"
    assert found.step(inputs=3) == (2.0, 0.25)
    assert found.opening == 1.0
    assert found.ending == Ending(evaluation=3.0, method=1.0, rest=0.5)


@pytest.fixture
def tried(works: dict[str, Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Return a trial of steps of 32 images that evaluates 4 of 20 and 6 of 599 images."""
    monkeypatch.setattr(Work, "step_images", lambda _self, _device: 32)
    monkeypatch.setattr(Work, "evaluated_images", lambda _self, _device, size: 4 if size == 20 else 6)
    return Trial(works["vanilla_kd"], CPU, CheckpointFolder(tmp_path))


def test_a_whole_phase_by_hand(tried: Trial) -> None:
    tests = Digits().info.test_size
    assert epochs_tested(tried.work.anchor) == 2
    # Each of 2 epochs: 4 steps of 32 of its 128 images; 20 looks for 4, and 0.3 seconds for each evaluated image.
    end = 0.5 + 1.0 * 5 + 0.3 * (20 + tests)
    assert tried._phase(seen(Phase())) == PhaseTime("main", pytest.approx(1.0 + 8 * 1.25 + 2 * end), 8 * 0.75)
    # In another phase lanes go one by one, and share nothing.
    other = tried._phase(seen(Phase("helper", epochs=2)))
    assert (other.name, other.shared) == ("helper", 0.0)
    assert other.own == pytest.approx(1.0 + 8 * 2.0 + 2 * end)


# --- real trials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_real_trial_goes_through_all_phases(works: dict[str, Work], method: str) -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    found = time_run(works[method], CPU)
    assert tuple(phase.name for phase in found.phases) == tuple(name for name, _ in works[method].passes.phases)
    assert all(math.isfinite(phase.own) and phase.own > 0 for phase in found.phases)
    assert [phase.shared > 0 for phase in found.phases] == [phase.name == "main" for phase in found.phases]
    assert (found.measured, found.around > 0) == (True, True)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2][1])


def test_a_run_of_a_hundred_times_the_epochs_takes_longer(works: dict[str, Work]) -> None:
    short = works["student"]
    schedule = short.spec.anchor.schedule.model_copy(update={"epochs": 200})
    anchor = short.spec.anchor.model_copy(update={"schedule": schedule})
    long = replace(short, spec=short.spec.model_copy(update={"anchor": anchor}))
    assert time_run(long, CPU).alone > time_run(short, CPU).alone


def test_a_method_that_fails_on_random_images_is_not_measured(works: dict[str, Work]) -> None:
    class Picky(works["student"].method):  # type: ignore[misc, name-defined]
        def losses(self, _batch: object) -> dict[str, object]:
            raise ValueError("no data of mine")

    with pytest.raises(RuntimeError, match="random images") as caught:
        time_run(replace(works["student"], method=Picky), CPU)
    assert str(caught.value.__cause__) == "no data of mine"


def test_random_images_of_any_size_take_the_memory_of_a_few() -> None:
    split = noise(Digits().info, 100_000)
    assert (len(split), len(split.store), split.gather(torch.tensor([99_999])).shape) == (100_000, 512, (1, 1, 8, 8))
    source = Noise(Digits().info, 7)
    assert (len(source.train()), len(source.test())) == (Digits().info.train_size, 7)


@pytest.mark.parametrize("name", ["resnet110", "vgg13", "ShuffleV2", "MobileNetV2", "ResNet50"])
def test_weights_that_are_not_drawn_keep_activations_normal(name: str, registry: Registry) -> None:
    """Numbers that overflow or are denormal would be faster or slower than those of a run."""
    backbone = registry.backbones[name]
    network = filled(backbone, 100, IMAGE, CPU).eval()
    with torch.no_grad():
        features = network(torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    for value in features.logits.abs().unique().tolist():
        assert value == 0 or 1e-20 < value < 1e20
    assert not any(p.is_meta for p in [*network.parameters(), *network.buffers()])
    assert [b.dtype for b in network.buffers()] == [b.dtype for b in backbone.on_meta(100, IMAGE).buffers()]


# --- a plan -----------------------------------------------------------------------------------------------------------


def by_flops(found: Work) -> RunTime:
    return RunTime((PhaseTime("main", float(found.run_flops)),))


def test_forecast_of_a_plan(plan: Plan, registry: Registry, works: dict[str, Work]) -> None:
    recipes = recipes_of(plan.runs)
    found = forecast(plan, recipes, registry, set_up("cpu", 1), by_flops)
    assert {row: time.alone for (_, row), time in found.runs.items()} == {m: works[m].run_flops for m in METHODS}
    (name,) = found.recipes
    assert name == "resnet14_w8-fair_baseline_smoke-v1-seed0"
    assert found.recipes[name].alone == works[name].run_flops
    assert found.memory["tiny", "vanilla_kd"] > found.memory["tiny", "student"] > found.base > 0


def test_without_a_measurement_there_is_memory_only(plan: Plan, registry: Registry) -> None:
    found = forecast(plan, recipes_of(plan.runs), registry, set_up("cpu", 1))
    assert (found.runs, found.recipes) == ({}, {})
    assert set(found.memory) == {("tiny", method) for method in METHODS}


PEAK = """
from dataclasses import replace
from kdbench.memory import network_cost, training_memory
from kdbench.plan import Request, make_plan
from kdbench.registry import load
from kdbench.training import trial, work
from kdbench.training.environment import set_up
from kdbench.training.forecast import works_of
from kdbench.types import PairInfo, StageShape

registry, machine, image = load(), set_up("cpu", 1), StageShape((3, 32, 32))
plan = make_plan(Request(("student",), ("tiny",), (0,), "fair_baseline_smoke", per_class=20), registry)
(small,) = works_of(plan, (), registry).values()
large = registry.backbones["resnet56"]
data = replace(small.data, image=image)
run = replace(small, networks=(large,), data=data, pair=PairInfo("p", large.info(10, image), (), image))
base = machine.base_memory()
work.STEP_FLOPS["cpu"], trial.STEPS = 1e18, 2
trial.time_run(run, machine.device)
expected = training_memory(network_cost(large, 10, image), (), run.anchor, base=base)
print(expected - base, machine.peak_memory() - base)
"""


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    held = torch.ones(3 * 2**27)  # 1.5 GiB, touched
    code = "from kdbench.training.environment import set_up; print(set_up('cpu', 1).peak_memory())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(held[-1]) == 1
    assert 2**26 < int(done.stdout) < 2**30


def test_memory_in_training_is_about_what_was_counted() -> None:
    """Half a gibibyte of activations in a process of its own, so that nothing else's peak is seen."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    counted, used = map(int, done.stdout.split())
    assert counted > 2**28
    assert 0.6 * counted < used < 1.7 * counted  # freed memory of before is used again; kernels need room to work
