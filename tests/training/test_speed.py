"""Times of runs: by hand from given speeds, and one real measurement of which only the order is certain."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kdbench.backbones.cost import on_meta
from kdbench.config.schema import Anchor
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.rehearsal import Passes
from kdbench.training import speed
from kdbench.training.environment import set_up
from kdbench.training.forecast import Duration, duration_of, forecast
from kdbench.training.speed import Speed, Work, images_per_step, measure, speeds_of
from kdbench.training.teachers import recipes_of
from kdbench.types import StageShape

CPU = torch.device("cpu")
IMAGE = StageShape((3, 32, 32))


@pytest.fixture(scope="module")
def plan(registry: Registry) -> Plan:
    """90 of 100 images for two epochs; batches of 128."""
    return make_plan(Request(("vanilla_kd", "student"), ("tiny",), (0,), "fair_baseline_smoke", per_class=10), registry)


@pytest.fixture
def work(registry: Registry) -> Callable[..., Work]:
    return lambda name, trains=True, image=IMAGE: Work(registry.backbones[name], 10, image, trains)


def changed(anchor: Anchor, section: str, **values: object) -> Anchor:
    return anchor.model_copy(update={section: getattr(anchor, section).model_copy(update=values)})


# --- from speeds to durations -----------------------------------------------------------------------------------------


def test_duration_by_hand() -> None:
    student, teachers = Speed(0.5), [Speed(0.125), Speed(0.25)]
    # 100 images: 6 passes of half a second, 4 of three eighths.
    assert duration_of(100, Passes(6, 4), student, teachers) == Duration(450.0)
    assert duration_of(100, Passes(6, 0), student, teachers) == Duration(300.0)
    guess = Speed(0.25, measured=False)
    assert duration_of(100, Passes(6, 4), student, [Speed(0.125), guess]) == Duration(450.0, measured=False)
    assert duration_of(100, Passes(6, 0), student, [guess]) == Duration(300.0)  # which it never asks
    assert duration_of(1, Passes(2, 0), guess, []) == Duration(0.5, measured=False)


def test_sums_of_durations_keep_the_mark() -> None:
    assert Duration(1) + Duration(2) == Duration(3)
    assert Duration(1) + Duration(2, measured=False) == Duration(3, measured=False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "<1 s"), (1, "1 s"), (89.4, "89 s"), (89.6, "1 min"), (180, "3 min"), (89.4 * 60, "89 min"),
        (89.6 * 60, "1.5 h"), (4.24 * 3600, "4.2 h"), (47.9 * 3600, "47.9 h"), (48 * 3600, "2.0 days"),
        (86400 * 12.3, "12.3 days"),
    ],
)  # fmt: skip
def test_durations_are_said_in_units_people_use(seconds: float, text: str) -> None:
    assert str(Duration(seconds)) == text
    assert str(Duration(seconds, measured=False)) == "~" + text


def test_forecast_of_a_plan_by_hand(plan: Plan, registry: Registry) -> None:
    def seconds(work: Work) -> float:
        return {("resnet8_w4", True): 1.0, ("resnet14_w8", False): 0.5}[work.backbone.name, work.trains]

    machine = set_up("cpu", 1)
    found = forecast(plan, recipes_of(plan.runs), registry, machine, seconds)
    assert found.runs == {("tiny", "student"): Duration(180.0), ("tiny", "vanilla_kd"): Duration(270.0)}
    # Training a teacher is three of its forward passes where nobody measured it.
    assert found.recipes == {"resnet14_w8-fair_baseline_smoke-v1-seed0": Duration(270.0, measured=False)}
    assert found.memory["tiny", "vanilla_kd"] > found.memory["tiny", "student"] > found.base > 0


def test_a_teacher_that_is_another_pairs_student_is_measured_in_training(plan: Plan, registry: Registry) -> None:
    info = plan.infos["tiny"]
    both = replace(plan, infos={"tiny": replace(info, student=info.teachers[0])})
    found = forecast(both, recipes_of(plan.runs), registry, set_up("cpu", 1), lambda work: 2.0 if work.trains else 0.5)
    assert list(found.recipes.values()) == [Duration(360.0)]


def test_without_a_measurement_there_is_memory_only(plan: Plan, registry: Registry) -> None:
    found = forecast(plan, recipes_of(plan.runs), registry, set_up("cpu", 1))
    assert (found.runs, found.recipes) == ({}, {})
    assert set(found.memory) == {("tiny", "student"), ("tiny", "vanilla_kd")}


# --- which networks are measured --------------------------------------------------------------------------------------


def test_networks_beyond_the_budget_are_calculated_from_the_nearest_of_their_kind(work: Callable[..., Work]) -> None:
    small, middle, large = work("resnet8"), work("resnet20"), work("resnet110")
    small_pass, large_pass = work("resnet8", trains=False), work("resnet110", trains=False)
    now, asked = 0.0, []

    def measuring(which: Work) -> float:
        nonlocal now
        now += 10
        asked.append(which)
        return {small: 0.003, middle: 0.006, small_pass: 0.002}[which]

    speeds = speeds_of([large, middle, small, large_pass, small_pass, small], measuring, 35.0, lambda: now)
    assert asked == [small_pass, small, middle]  # the cheapest first, each once; the next would end after 40 s or more
    assert speeds[small] == Speed(0.003)
    assert speeds[large] == Speed(pytest.approx(0.006 * large.flops / middle.flops), measured=False)
    assert speeds[large_pass] == Speed(pytest.approx(0.002 * large_pass.flops / small_pass.flops), measured=False)


def test_a_network_too_slow_for_the_rest_of_the_budget_is_not_begun(work: Callable[..., Work]) -> None:
    small, large = work("resnet8"), work("resnet110")
    assert large.flops > 10 * small.flops
    # At a second per image, three steps of two images take a minute; the clock alone would allow it.
    speeds = speeds_of([small, large], lambda _work: 1.0, 59.0, lambda: 0.0)
    assert [speeds[which].measured for which in (small, large)] == [True, False]
    assert all(s.measured for s in speeds_of([small, large], lambda _work: 1.0, 1e6, lambda: 0.0).values())


def test_a_network_that_does_not_fit_is_calculated_and_one_is_always_tried(work: Callable[..., Work]) -> None:
    small, large = work("resnet8"), work("resnet20")

    def measuring(which: Work) -> float:
        if which == small:
            raise RuntimeError("not enough memory")
        return 8.0

    speeds = speeds_of([small, large], measuring, 0.0)
    assert speeds == {large: Speed(8.0), small: Speed(pytest.approx(8.0 * small.flops / large.flops), measured=False)}

    def refusing(_work: Work) -> float:
        raise RuntimeError

    assert speeds_of([small, large], refusing, 60.0) == {}


# --- the measurement --------------------------------------------------------------------------------------------------


def test_images_of_a_measured_step(plan: Plan, work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    anchor, training, teaching = plan.runs[0].anchor, work("resnet20"), work("resnet20", trains=False)
    assert training.flops == 3 * teaching.flops
    monkeypatch.setitem(speed.STEP_FLOPS, "cpu", 30 * teaching.flops)
    assert images_per_step(training, anchor, CPU) == 10
    assert images_per_step(teaching, anchor, CPU) == 30
    monkeypatch.setitem(speed.STEP_FLOPS, "cpu", 1.0)
    assert images_per_step(training, anchor, CPU) == 2
    monkeypatch.setitem(speed.STEP_FLOPS, "cpu", 1e18)
    assert images_per_step(training, anchor, CPU) == 128
    split = changed(anchor, "step", accumulate=4)
    assert images_per_step(training, split, CPU) == 32
    assert images_per_step(teaching, split, CPU) == 128


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_real_measurement(plan: Plan, work: Callable[..., Work], precision: str, optimizer: str) -> None:
    anchor = changed(changed(plan.runs[0].anchor, "step", precision=precision), "optimizer", name=optimizer)
    before = torch.random.get_rng_state()
    for which in (work("resnet8_w4"), work("resnet8_w4", trains=False)):
        seconds = measure(which, anchor, CPU)
        assert math.isfinite(seconds)
        assert seconds > 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_of_a_hundred_times_the_operations_takes_longer(plan: Plan, work: Callable[..., Work]) -> None:
    cheap, dear = work("resnet8_w4", trains=False), work("resnet110", trains=False)
    assert dear.flops > 100 * cheap.flops
    assert measure(dear, plan.runs[0].anchor, CPU) > measure(cheap, plan.runs[0].anchor, CPU)


@pytest.mark.parametrize("name", ["resnet110", "vgg13", "ShuffleV2", "MobileNetV2", "ResNet50"])
def test_weights_that_are_not_drawn_keep_activations_normal(name: str, registry: Registry) -> None:
    """Numbers that overflow or are denormal would be faster or slower than those of a run."""
    work = speed.Work(registry.backbones[name], 100, IMAGE, trains=False)
    network = speed._filled(work, CPU).eval()
    with torch.no_grad():
        features = network(torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    for value in features.logits.abs().unique().tolist():
        assert value == 0 or 1e-20 < value < 1e20
    assert not any(p.is_meta for p in [*network.parameters(), *network.buffers()])
    assert [b.dtype for b in network.buffers()] == [b.dtype for b in on_meta(work.backbone, 100, IMAGE).buffers()]


PEAK = """
import torch
from kdbench.backbones.cost import cost_of, on_meta
from kdbench.config.loading import load_anchor
from kdbench.memory import training_memory
from kdbench.registry import load
from kdbench.training.environment import set_up
from kdbench.training import speed
from kdbench.types import StageShape

registry, machine, image = load(), set_up("cpu", 1), StageShape((3, 32, 32))
anchor = load_anchor("fair_baseline_smoke", registry.anchors.as_mapping())
work = speed.Work(registry.backbones["resnet56"], 10, image, True)
base = machine.base_memory()
speed.STEP_FLOPS["cpu"], speed.MOST_STEPS = 1e18, 1
speed.measure(work, anchor, machine.device)
expected = training_memory(cost_of(on_meta(work.backbone, 10, image), image), (), anchor, base=base)
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
