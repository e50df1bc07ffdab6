"""What a board costs in lanes: steps of 1, 2, 4, 8 and 16, interleaved, and how far they are from a straight line.

python tests/bench/lanes.py [--rounds N] [--batch-size N] [PAIR ...]
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from boards import ABOUT_ROWS, PAIRS, ROWS, place
from report_lines import Sheet
from workbench import Cohort, interleaved

from kdbench.registry import Registry, load

LANES = (1, 2, 4, 8, 16)
ROUNDS = 3
FARTHEST = 10  # percent off the line


def timed(registry: Registry, pair: str, rounds: int, batch_size: int | None) -> dict[int, list[float]]:
    """Return the seconds of a step by the number of lanes, in every round."""
    cohort = Cohort(place(registry, pair, batch_size=batch_size), ROWS * 2)
    steps = {str(count): ((lambda index, n=count: cohort.step(index, n)), max(1, 4 // count)) for count in LANES}
    return {int(count): found for count, found in interleaved(steps, rounds).items()}


def off_the_line(times: dict[int, float]) -> float:
    """Return in percent how far times are at most from the line fitted to them, in proportion to the line."""
    counts, found = np.array(list(times)), np.array(list(times.values()))
    # Relative errors are what is read off the table, so they are what is fitted.
    slope, base = np.polyfit(counts, found, 1, w=1 / found)
    return float(100 * np.abs(found / (base + slope * counts) - 1).max())


def report(sheet: Sheet, pair: str, times: dict[int, list[float]]) -> None:
    """Add the lines of a pair: what n lanes cost next to one, which has the teacher to itself."""
    for count, found in times.items():
        costs = [many / one for many, one in zip(found, times[1], strict=True)]
        sheet.add(f"{count} lane{'s' if count > 1 else ''}", costs, subject=pair)
    medians = {count: statistics.median(found) for count, found in times.items()}
    sheet.add("farthest off a straight line", off_the_line(medians), subject=pair, unit="%", at_most=FARTHEST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", default=PAIRS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch-size", type=int, default=None, help="default: the anchor's")
    asked = parser.parse_args()
    registry = load()
    about = f"Time of a step of n lanes next to one lane's, fp32; {ABOUT_ROWS}, twice for 16 lanes."
    with Sheet("lanes", "Lanes", about) as sheet:
        for pair in asked.pairs:
            report(sheet, pair, timed(registry, pair, asked.rounds, asked.batch_size))


if __name__ == "__main__":
    main()
