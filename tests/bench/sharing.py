"""What sharing saves: a cohort of eight against eight runs, and against the loop of the field.

All contenders of a pair take turns in one process, in float32 first; the medians of paired ratios count. ``t`` is the
bare teacher's pass over a batch and ``s`` a bare training step of the student, so that nothing of kdbench is in the
ideal.

    python tests/bench/sharing.py [--rounds N] [--batch-size N] [PAIR ...]
"""

from __future__ import annotations

import argparse

import torch
from bare import Step, bare_student, bare_teacher
from boards import ABOUT_ROWS, PAIRS, ROWS, place
from conventional import ConventionalRun, plain
from report_lines import Sheet
from workbench import Cohort, interleaved, ratios

from kdbench.registry import Registry, load

ROUNDS = 5
SHARE_OF_IDEAL = 90  # percent
TARGETS = dict.fromkeys(PAIRS, 2.0) | {"wrn40_2_wrn16_2": 1.6}  # there the teacher is the smallest part of a step
M = len(ROWS)


def in_turn(steps: list[Step]) -> Step:
    """Return a step of each."""

    def step(index: int) -> None:
        for one in steps:
            one(index)

    return step


def timed(registry: Registry, pair: str, rounds: int, batch_size: int | None) -> dict[str, list[float]]:
    """Return the seconds of every contender in every round; those of a board are for a step of all its rows.

    Raises:
        ValueError: If a lane of the cohort is not, bit by bit, what the same run became alone.
    """
    full, half = (place(registry, pair, precision=key, batch_size=batch_size) for key in ("fp32", "bf16"))
    cohort, separate = Cohort(full, ROWS), [Cohort(full, [row]) for row in ROWS]
    teacher = plain(full, full.pair.teachers[0]).eval().requires_grad_(requires_grad=False)
    loops = [ConventionalRun(full, row, teacher) for row in ROWS]
    contenders: dict[str, tuple[Step, int]] = {
        "t": (bare_teacher(full), 2),
        "s": (bare_student(full), M),
        "cohort": (cohort.step, 1),
        "separate": (in_turn([alone.step for alone in separate]), 1),
        "loop": (in_turn([loop.step for loop in loops]), 1),
        "run": (Cohort(full, ROWS[:1]).step, 2),
        "run bf16": (Cohort(half, ROWS[:1]).step, 2),
        "cohort bf16": (Cohort(half, ROWS).step, 1),
    }
    times = interleaved(contenders, rounds)
    for shared, alone in zip(cohort.lanes, separate, strict=True):
        weights = alone.lanes[0].student.state_dict()
        if any(not torch.equal(value, weights[key]) for key, value in shared.student.state_dict().items()):
            raise ValueError(f"{pair}, {shared.spec.method}: other weights in the cohort than alone")
    return times


def report(sheet: Sheet, pair: str, times: dict[str, list[float]]) -> None:
    """Add the lines of a pair."""
    for name, key in (("t, the teacher's pass", "t"), ("s, a step of the student", "s")):
        sheet.add(name, [1000 * value for value in times[key]], subject=pair, unit="ms")
    ideals = [M * (t + s) / (t + M * s) for t, s in zip(times["t"], times["s"], strict=True)]
    gains = ratios(times, "separate", "cohort")
    shares = [100 * gain / ideal for gain, ideal in zip(gains, ideals, strict=True)]
    sheet.add(f"ideal of a cohort of {M}: {M}(t+s)/(t+{M}s)", ideals, subject=pair)
    sheet.add(f"cohort of {M} against {M} separate runs, fp32", gains, subject=pair)
    sheet.add("share of the ideal", shares, subject=pair, unit="%", at_least=SHARE_OF_IDEAL)
    board = ratios(times, "loop", "cohort")
    sheet.add(f"board of {M} against the conventional loop, fp32", board, subject=pair, at_least=TARGETS.get(pair))
    sheet.add(f"{M} separate runs against the conventional loop, fp32", ratios(times, "loop", "separate"), subject=pair)
    sheet.add("one run: bf16 against fp32", ratios(times, "run", "run bf16"), subject=pair)
    best = ratios(times, "separate", "cohort bf16")
    sheet.add(f"cohort of {M} in bf16 against {M} separate runs in fp32", best, subject=pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", default=PAIRS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch-size", type=int, default=None, help="default: the anchor's")
    asked = parser.parse_args()
    registry = load()
    size = asked.batch_size or place(registry, PAIRS[0]).anchor.data.batch_size
    about = f"Training steps of {ABOUT_ROWS}; batch {size}, medians of {asked.rounds} interleaved rounds."
    with Sheet("sharing", "Sharing", about) as sheet:
        for pair in asked.pairs:
            report(sheet, pair, timed(registry, pair, asked.rounds, asked.batch_size))


if __name__ == "__main__":
    main()
