"""Where time goes: clocks of both devices by hand, and the parts of real runs against each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kdbench.records import PARTS, Cost
from kdbench.training import clock
from kdbench.training.clock import Clock, CudaClock, clock_of
from kdbench.training.meters import Counters


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the host's clock finds it a second later than the one before."""
    ticks: Iterator[float] = iter(float(second) for second in range(1000))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(ticks))


@pytest.mark.usefixtures("ticking")
def test_laps_and_shares_by_hand() -> None:
    watch = Clock()
    watch.start()
    watch.lap("student")
    watch.lap("method")
    watch.lap("student")
    assert watch.timed("evaluation", lambda: 7) == 7
    begin, end = watch.now(), watch.now()
    watch.charge("teacher", begin, end, 0.25)
    assert watch.settled() == {"student": 2.0, "method": 1.0, "evaluation": 1.0, "teacher": 0.25}
    assert watch.settled() == {}


class Event:
    """A GPU's event that passes when the host waits for it or for a later one."""

    recorded = passed = waits = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.number = -1

    def record(self, _stream: object) -> None:
        self.number = Event.recorded = Event.recorded + 1

    def query(self) -> bool:
        return self.number <= Event.passed

    def synchronize(self) -> None:
        Event.waits += self.number > Event.passed
        Event.passed = max(Event.passed, self.number)

    def elapsed_time(self, end: Event) -> float:
        assert end.query(), "read before it has passed"
        return 1000.0 * (end.number - self.number)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CudaClock:
    Event.recorded = Event.passed = Event.waits = 0
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: None)
    watch = clock_of(torch.device("cuda"))
    assert isinstance(watch, CudaClock)
    return watch


def test_a_gpu_is_waited_for_only_when_its_time_is_asked_for(gpu: CudaClock) -> None:
    gpu.start()
    for _ in range(10):
        gpu.lap("student")
    begin, end = gpu.now(), gpu.now()
    for share in (0.5, 0.25):
        gpu.charge("teacher", begin, end, share)
    assert Event.waits == 0
    assert gpu.settled() == {"student": 10.0, "teacher": 0.75}
    assert gpu.settled() == {}


def test_charges_of_a_long_epoch_are_read_as_they_pass(gpu: CudaClock) -> None:
    gpu.MOST = 4  # type: ignore[misc]
    gpu.start()
    for _ in range(6):
        gpu.lap("student")
    assert len(gpu._open) == 6, "none has passed"
    Event.passed = 5
    gpu.lap("student")
    assert len(gpu._open) == 4
    assert Event.waits == 0
    assert gpu.settled() == {"student": 7.0}


def test_evaluation_is_no_training() -> None:
    counters = Counters()
    assert counters.spend({"student": 3.0, "data": 1.0, "evaluation": 5.0}) == 4.0
    assert counters.spend({"student": 0.5}) == 0.5
    assert counters.train_seconds == 4.5
    assert counters.seconds == {"student": 3.5, "data": 1.0, "evaluation": 5.0}


def test_parts_make_up_the_time_of_a_run(lab: Any) -> None:
    started = time.perf_counter()
    records = lab.run([lab.spec(method) for method in ("student", "vanilla_kd", "sskd")], "runs")
    passed = time.perf_counter() - started
    costs: list[Cost] = [record.cost for record in records]
    for cost in costs:
        assert set(cost.parts) == set(PARTS)
        training = sum(seconds for part, seconds in cost.parts.items() if part != "evaluation")
        assert cost.train_seconds == pytest.approx(training)
        assert all(seconds > 0 for part, seconds in cost.parts.items() if part != "teacher")
    assert [cost.parts["teacher"] > 0 for cost in costs] == [False, True, True]
    assert sum(sum(cost.parts.values()) for cost in costs) < passed, "nothing is counted twice"


def test_the_epochs_of_a_run_make_up_its_steps(lab: Any) -> None:
    (entry,) = lab.train([lab.spec("student")], "runs")
    counters = entry.lane.counters
    steps = sum(report.seconds for report in entry.lane.history)
    between = counters.train_seconds - steps  # what the method did between epochs
    assert 0 <= between <= counters.seconds["method"]


def test_phases_that_leave_the_student_alone_are_the_methods_time(lab: Any) -> None:
    state = lab.stopped(lab.spec("ft"), "runs", steps=3)
    assert state["position"][0] == 0, "its paraphraser's phase"
    seconds = state["counters"]["seconds"]
    assert "student" not in seconds
    assert seconds["method"] > 0
