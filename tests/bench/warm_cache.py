"""What a run costs when everything its teacher will be asked is in the cache, as it is once the cache is filled.

The seed's crops are put into the cache by a run of it that is not timed; then a run with a live teacher and one with
the cache take turns, in float32 under the published protocol. The ideal is (t + s) / s of the bare teacher's pass and
the bare student's step.

    python tests/bench/warm_cache.py [--rounds N] [--batch-size N] [PAIR ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from bare import bare_student, bare_teacher
from boards import PAIRS, ROWS, place
from report_lines import Sheet
from workbench import CPU, Cohort, Place, interleaved, ratios

from kdbench.registry import Registry, load
from kdbench.spec import DatasetRef
from kdbench.training.environment import Machine
from kdbench.training.teacher_cache import CachePlace, TeacherCache
from kdbench.training.teacher_cache.subjects import subject_of

ROUNDS = 5
STEPS, QUICK_STEPS = 4, 16  # timed in a round: with the teacher, and without, where a step is too short to tell
SEED = 1
SHARE_OF_IDEAL = 90  # percent
LIMIT = 2**32  # bytes: the file is as long as if all crops were in it, but has holes


def recalling(where: Place, folder: Path) -> Cohort:
    """Return a run that looks up in a cache what its teacher says."""
    cohort = Cohort(where, ROWS[:1], SEED)
    batches, info, teacher = cohort.trainer.batches, where.context().pair.teachers[0], where.teacher
    mean, std = (tuple(part.flatten().tolist()) for part in (teacher.mean, teacher.std))
    artefact = SimpleNamespace(sha256="0" * 64, name="bench", backbone=info.name, mean=mean, std=std)
    dataset = DatasetRef(name="bench", slug="bench", fingerprint="0")
    layout = teacher.memory_format is torch.channels_last
    subject = subject_of(artefact, info, batches, dataset, where.anchor.data, channels_last=layout)
    machine = Machine(CPU, torch.get_num_threads())
    cohort.trainer.cache = TeacherCache(batches, [subject], where.anchor, machine, CachePlace(folder, LIMIT))
    cohort.teach = cohort.trainer._teacher_pass(cohort.lanes)
    return cohort


def timed(where: Place, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of every contender in every round, and the images that the teacher was run on in spite of it.

    Raises:
        ValueError: If the run with the cache is not, bit by bit, the one without.
    """
    with tempfile.TemporaryDirectory() as folder:
        first = recalling(where, Path(folder))
        for index in range(QUICK_STEPS):
            first.step(index)
        live, warm = Cohort(where, ROWS[:1], SEED), recalling(where, Path(folder))
        for index in range(STEPS):
            live.step(index)
            warm.step(index)
        _check_equal(live, warm, where.pair.name)
        times = interleaved(
            {
                "t": (bare_teacher(where), STEPS),
                "s": (bare_student(where), QUICK_STEPS),
                "live": (live.step, STEPS),
                "warm": (warm.step, QUICK_STEPS),
            },
            rounds,
        )
    counters = warm.lanes[0].counters
    assert counters.teacher_cached + counters.teacher_forwards == counters.images
    return times, counters.teacher_forwards


def _check_equal(live: Cohort, warm: Cohort, pair: str) -> None:
    weights = live.lanes[0].student.state_dict()
    if any(not torch.equal(value, weights[key]) for key, value in warm.lanes[0].student.state_dict().items()):
        raise ValueError(f"{pair}: other weights with the cache than without")


def report(sheet: Sheet, registry: Registry, pair: str, rounds: int, batch_size: int | None) -> None:
    """Add the lines of a pair."""
    times, run = timed(place(registry, pair, batch_size=batch_size), rounds)
    sheet.add("images the teacher was run on", run, subject=pair, unit="images", at_most=0)
    ideals = [(t + s) / s for t, s in zip(times["t"], times["s"], strict=True)]
    gains = ratios(times, "live", "warm")
    sheet.add("ideal of a warm cache: (t+s)/s", ideals, subject=pair)
    sheet.add("run with a warm cache against a live teacher", gains, subject=pair)
    shares = [100 * gain / ideal for gain, ideal in zip(gains, ideals, strict=True)]
    sheet.add("share of the ideal", shares, subject=pair, unit="%", at_least=SHARE_OF_IDEAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", default=PAIRS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch-size", type=int, default=None, help="default: the anchor's")
    asked = parser.parse_args()
    registry = load()
    about = f"Steps of one run whose seed's crops are all in the cache, anchor crd, fp32; {asked.rounds} rounds."
    with Sheet("warm_cache", "Teacher cache", about) as sheet:
        for pair in asked.pairs:
            report(sheet, registry, pair, asked.rounds, asked.batch_size)


if __name__ == "__main__":
    main()
