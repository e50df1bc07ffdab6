"""Times of runs by hand: alone, together, calculated from others, within a budget."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from kdbench.training.budget import nominal, times_of
from kdbench.training.forecast import Duration
from kdbench.training.runtime import PhaseTime, RunTime, calculated, together
from kdbench.training.work import Work

CPU = torch.device("cpu")


def test_a_run_alone_and_in_company_by_hand() -> None:
    one = RunTime((PhaseTime("helper", 2.0), PhaseTime("main", 10.0, 4.0)), around=1.0)
    other = RunTime((PhaseTime("main", 5.0, 6.0),), around=0.5)
    assert (one.own, one.shared, one.alone) == (13.0, 4.0, 17.0)
    assert together([one]) == 17.0
    assert together([one, other]) == 13.0 + 5.5 + 6.0, "one pass of batches and teachers serves both"


def test_a_calculated_run_is_spread_over_its_epochs() -> None:
    found = calculated(40.0, [("helper", 1), ("none", 0), ("main", 3)], shared=0.25)
    assert found == RunTime((PhaseTime("helper", 7.5, 2.5), PhaseTime("main", 22.5, 7.5)), measured=False)
    assert found.alone == 40.0


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


# --- which runs are measured ------------------------------------------------------------------------------------------


def made_up(flops: int, pair: str = "p", runs: int = 10) -> Work:
    """Return a run of so many operations a step, and ten times as many in all."""
    work: Any = SimpleNamespace(
        flops=flops, run_flops=runs * flops, spec=SimpleNamespace(pair=pair), step_images=lambda _device: 1,
        passes=SimpleNamespace(phases=(("main", 2),)),
    )  # fmt: skip
    return cast("Work", work)


def taking(seconds: float, shared: float = 0.0) -> RunTime:
    return RunTime((PhaseTime("main", seconds - shared, shared),))


@pytest.fixture
def measuring() -> tuple[Callable[[Work], RunTime], Callable[[], float], list[int]]:
    """Every operation takes a second to measure; a run takes a tenth of it. Says what was asked."""
    now, asked = [0.0], list[int]()

    def measure(work: Work) -> RunTime:
        now[0] += work.flops
        asked.append(work.flops)
        return taking(work.flops / 10, shared=work.flops / 40)

    return measure, lambda: now[0], asked


def test_the_cheapest_are_measured_and_the_others_calculated_from_the_nearest_of_their_pair(
    measuring: tuple[Callable[[Work], RunTime], Callable[[], float], list[int]],
) -> None:
    measure, clock, asked = measuring
    works = {"large": made_up(100), "middle": made_up(20), "small": made_up(10), "other": made_up(19, "q", runs=20)}
    times = times_of(works, measure, 60.0, CPU, clock)
    assert asked == [10, 19, 20], "the next one would end after 149 seconds"
    assert times["middle"] == taking(2.0, 0.5)
    large = times["large"]
    assert not large.measured
    assert large.alone == pytest.approx(2.0 * 1000 / 200)
    assert large.shared == pytest.approx(large.alone / 4)


def test_one_is_always_measured(
    measuring: tuple[Callable[[Work], RunTime], Callable[[], float], list[int]],
) -> None:
    measure, clock, asked = measuring
    times = times_of({"a": made_up(10), "b": made_up(20)}, measure, 0.0, CPU, clock)
    assert asked == [10]
    assert [times[name].measured for name in "ab"] == [True, False]


def test_what_cannot_be_measured_is_calculated() -> None:
    def measure(work: Work) -> RunTime:
        if work.flops == 10:
            raise RuntimeError("not enough memory")
        return taking(8.0)

    times = times_of({"small": made_up(10), "large": made_up(20)}, measure, 60.0, CPU)
    assert times["small"] == RunTime((PhaseTime("main", 4.0),), measured=False)

    def refuse(_work: Work) -> RunTime:
        raise RuntimeError

    assert times_of({"small": made_up(10)}, refuse, 60.0, CPU) == {}


def test_nominal_times_are_right_in_proportion() -> None:
    times = nominal({"a": made_up(10), "b": made_up(30)}, 50.0)
    assert [times[name].alone for name in "ab"] == [2.0, 6.0]
    assert not times["a"].measured
