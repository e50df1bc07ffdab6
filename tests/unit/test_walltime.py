"""A command's time by hand: cohorts on workers, and what is left while it goes on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kdbench.execution.grouping import groups_of
from kdbench.execution.remaining import TimeLeft
from kdbench.execution.walltime import makespan, start_seconds, wall_time
from kdbench.spec import RunSpec
from kdbench.training.environment import Machine
from kdbench.training.forecast import Duration, Forecast
from kdbench.training.runtime import PhaseTime, RunTime


def run(own: float, shared: float = 0.0, *, measured: bool = True) -> RunTime:
    return RunTime((PhaseTime("main", own, shared),), measured=measured)


def test_each_job_goes_to_the_first_free_worker() -> None:
    assert makespan([], 3) == 0.0
    assert makespan([4.0, 3.0, 2.0, 2.0], 1) == 11.0
    assert makespan([4.0, 3.0, 2.0, 2.0], 2) == 6.0, "4 + 2 beside 3 + 2"
    assert makespan([1.0, 1.0, 9.0], 2) == 10.0, "the plan's order is kept"


def test_runs_of_a_seed_share_their_batches_and_teachers(spec: RunSpec) -> None:
    specs = [spec.model_copy(update={"seed": seed, "variant": variant}) for variant in ("a", "b") for seed in range(2)]
    times = {(spec.pair, each.row): run(own, 3.0) for each, own in zip(specs, (10.0, 10.0, 20.0, 20.0), strict=True)}
    machine = Machine(torch.device("cpu"), 1)
    found = Forecast(times, {"t": run(7.0, measured=False)}, {}, machine, 0)
    # Two cohorts, one for each seed, of 10 + 20 + 3 seconds and a second's start.
    cohorts = groups_of(specs)
    assert wall_time(cohorts, found, 1, 1.0) == (Duration(8.0, measured=False), Duration(68.0))
    assert wall_time(cohorts, found, 2, 1.0)[1] == Duration(34.0)
    assert wall_time([(spec,) for spec in specs], found, 1, 0.0)[1] == Duration(2 * 13.0 + 2 * 23.0)


def test_a_worker_takes_time_to_start() -> None:
    assert start_seconds() > 0


# --- the time left ----------------------------------------------------------------------------------------------------


@dataclass
class Now:
    """A clock that is set."""

    seconds: float = 100.0

    def __call__(self) -> float:
        return self.seconds


TWO_PHASES = RunTime((PhaseTime("helper", 20.0), PhaseTime("main", 60.0, 20.0)))


def test_what_was_expected_is_corrected_by_what_was_seen() -> None:
    now = Now()
    left = TimeLeft({"a": TWO_PHASES, "b": TWO_PHASES}, 200.0, now)
    assert (left.share, left.seconds) == (0.0, 200.0)
    left.reached("a", "helper", 0, 2, 0.0)
    left.reached("a", "main", 0, 2, 1.0)  # the helper's 20 seconds, and half of 80
    assert left.share == pytest.approx(0.3)
    now.seconds += 60.0
    assert left.seconds == pytest.approx(140.0), "as expected"
    now.seconds += 60.0
    # 120 seconds where 60 were expected; 10 more are trusted to be as expected.
    assert left.seconds == pytest.approx((120 + 10) / 0.35 * 0.7)
    left.ended("a")
    left.ended("b")
    assert (left.share, left.seconds) == (1.0, 0.0)


def test_without_a_measurement_time_is_known_when_some_has_passed() -> None:
    now = Now()
    left = TimeLeft({"a": TWO_PHASES}, None, now)
    assert left.seconds is None
    left.reached("a", "helper", 0, 2, 0.0)
    assert left.seconds is None
    now.seconds += 30.0
    left.reached("a", "helper", 1, 2, 1.0)
    assert left.seconds == pytest.approx(30.0 / 0.2 * 0.8)


def test_what_an_earlier_start_has_done_is_no_part_of_this_ones_pace() -> None:
    now = Now()
    left = TimeLeft({"a": TWO_PHASES}, 100.0, now)
    left.reached("a", "main", 1, 2, 0.0)  # 60 of 100 were done before
    assert (left.share, left.seconds) == (0.0, 40.0)
    now.seconds += 20.0
    left.reached("a", "main", 1, 2, 0.4)
    assert left.share == pytest.approx(16 / 40)


def test_events_of_runs_that_are_not_expected_change_nothing() -> None:
    left = TimeLeft({}, None)
    left.reached("stranger", "main", 0, 2, 0.2)
    left.ended("stranger")
    assert (left.share, left.seconds) == (1.0, None)
