"""Which test images each run had right: read from its predictions, and turned into SE_test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdbench.archives import read_arrays
from kdbench.errors import StoreError
from kdbench.leaderboard.model import Cell, Row
from kdbench.stats import Arm, Bits, crossed_error_of_arms
from kdbench.stats.answers import right
from kdbench.store import PREDICTIONS

CLOSE = 1e-6  # percent; both come from the same integers


@dataclass(frozen=True, eq=False)
class Answers:
    """Of one run.

    Args:
        bits: One bit per test image, packed: whether it was right.
        images: How many there are.
    """

    bits: Bits
    images: int


Reader = Callable[[Cell], Answers | None]  # None = not known


@dataclass(frozen=True, eq=False)
class TableAnswers:
    """Those of the runs of one table, as far as they are known.

    Args:
        by_row: Of each row, by seed.
    """

    by_row: dict[str, dict[int, Answers]] = field(default_factory=dict)
    _arms: dict[tuple[str, tuple[int, ...]], Arm | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def sizes(self) -> set[int]:
        """The numbers of test images that occur."""
        return {one.images for runs in self.by_row.values() for one in runs.values()}

    def arm(self, row: str, seeds: Sequence[int]) -> Arm | None:
        """Return the answers of a row with these seeds; None if one is not known, or is of other images."""
        key = (row, tuple(seeds))
        if key not in self._arms:
            known = self.by_row.get(row, {})
            runs = [known[seed] for seed in seeds if seed in known]
            alike = len(runs) == len(seeds) and len({run.images for run in runs}) == 1
            self._arms[key] = Arm(tuple(run.bits for run in runs), runs[0].images) if alike else None
        return self._arms[key]


def read_answers(cell: Cell) -> Answers | None:
    """Return the answers of a run that is ok, from the file beside its record; None if there is none.

    Raises:
        StoreError: If the file is damaged, foreign, or not that of the record.
    """
    if not cell.path or cell.status != "ok":
        return None
    path = Path(cell.path) / PREDICTIONS
    try:
        bits, count = read_arrays(path, ("correct", "count")).values()
        images = int(count)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise StoreError(f"{path}: not the predictions of a run ({error}); {_REMEDY}") from error
    if bits.dtype != np.uint8 or bits.shape != (-(-images // 8),):
        raise StoreError(f"{path}: {bits.shape} {bits.dtype} are not one bit for each of {images} images; {_REMEDY}")
    correct = right(bits)
    if images % 8 and bits[-1] & (0xFF >> images % 8):
        raise StoreError(f"{path}: bits beyond its {images} images; {_REMEDY}")
    recorded = cell.record.accuracy.last if cell.record and cell.record.accuracy else float("nan")
    if not abs(100 * correct / max(images, 1) - recorded) <= CLOSE:
        raise StoreError(f"{path}: {correct} of {images} right, but the record says {recorded} %; {_REMEDY}")
    return Answers(bits, images)


_REMEDY = "restore it, or remove it to do without SE_test"


def answers_of(cells: Iterable[Cell], reader: Reader | None) -> TableAnswers:
    """Return the known answers of runs; none without a reader."""
    found = TableAnswers()
    for cell in cells if reader else ():
        if reader and (answers := reader(cell)) is not None:
            found.by_row.setdefault(cell.spec.row, {})[cell.spec.seed] = answers
    return found


def se_test(row: Row, baseline: str, seeds: Sequence[int], ours: TableAnswers, theirs: TableAnswers) -> float | None:
    """Return the crossed standard error of a gain in points.

    Args:
        row: The method.
        baseline: What it is compared with.
        seeds: Those that both have.
        ours: Answers of the row's table.
        theirs: Answers of the baselines' table.

    Returns:
        None for fewer than two seeds, or if a seed's answers are not known on either side.

    Source:
        Statistics specification, section 6.
    """
    if len(seeds) < 2:
        return None
    first, second = ours.arm(row.method, seeds), theirs.arm(baseline, seeds)
    if first is None or second is None or first.images != second.images or first.images < 2:
        return None  # other images cannot be set against each other
    return 100 * crossed_error_of_arms(first, second).se_crossed
