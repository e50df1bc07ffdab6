"""A board's work and memory grow with its records, not with their square."""

from __future__ import annotations

import cProfile
import pstats
import tracemalloc
from collections.abc import Callable

import pytest
from judged_boards import BASELINES, arm

from kdbench.leaderboard import Cell, build, to_csv, to_json, to_markdown

SMALL, LARGE = 12, 48  # pairs of 12 methods and 5 seeds; from 10 pairs on a board has tests that smaller ones lack
GROWTH = LARGE / SMALL


def made_up(pairs: int) -> list[Cell]:
    names = [*BASELINES, *(f"m{index}" for index in range(10))]
    return [
        cell
        for pair in range(pairs)
        for place, name in enumerate(names)
        for cell in arm(
            name, *(70 + place + 0.01 * ((seed * 7 + place * 3 + pair) % 11) for seed in range(5)), pair=f"p{pair:02}"
        )
    ]


def work(cells: list[Cell]) -> None:
    board = build(cells, BASELINES, claims=())
    for write in (to_markdown, to_json, to_csv):
        write(board)


def calls(cells: list[Cell]) -> float:
    profile = cProfile.Profile()
    profile.runcall(work, cells)
    return float(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def peak(cells: list[Cell]) -> float:
    tracemalloc.start()
    try:
        work(cells)
        return float(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("measure", [calls, peak])
def test_four_times_the_records_take_about_four_times_as_much(measure: Callable[[list[Cell]], float]) -> None:
    work(made_up(2))  # what is imported or kept from call to call is not measured
    assert measure(made_up(LARGE)) < 1.2 * GROWTH * measure(made_up(SMALL))
