"""Several processes at once: on one run, on one board, and workers that are killed beside others."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace

from board import Workshop, guarded
from engine import ForkExecutor
from table import EQUAL, Row

from kdbench.execution.driver import carry_out
from kdbench.execution.grouping import Cohort
from kdbench.spec import RunSpec

BUSY = 75


def company(shop: Workshop, rounds: int) -> Iterator[Row]:
    """Let processes meet, so often each."""
    cases = (
        ("three processes on one run at once", f"one trains, two exit {BUSY}; {EQUAL}", _three),
        ("the holder of a run killed, the next one goes on", EQUAL, _holder_killed),
        ("two commands on one board at once", EQUAL, _two_boards),
        ("a worker of --jobs 2 killed", EQUAL, _worker_killed),
    )
    for fault, outcome, work in cases:
        row = Row(fault)
        for number in range(rounds):
            row.add(outcome, work(shop, random.Random(number)))
        yield row


def _three(shop: Workshop, _draws: random.Random) -> str:
    place = shop.place(taught=True)
    place.register()
    children = [place.start(place.run_one) for _ in range(3)]
    codes = sorted(child.wait().code for child in children)
    if codes != [0, BUSY, BUSY]:
        return f"exit codes {codes}"
    ended = place.finish()
    return ended.said[-300:] if ended.code else place.problems(shop.expected)


def _holder_killed(shop: Workshop, draws: random.Random) -> str:
    place = shop.place(taught=True)
    place.register()
    holder = place.start(place.run_one)
    holder.reach("training", draws.randint(2, 30))
    holder.signal(signal.SIGSTOP)  # or it would be done before the second one gives up
    if (code := place.finish(place.run_one).code) != BUSY:
        return f"the second one ended with {code}"
    holder.signal(signal.SIGKILL)
    holder.wait()
    if (ended := place.finish(place.run_one)).code:
        return f"the third one ended with {ended.code}: {ended.said[-300:]}"
    ended = place.finish()
    return ended.said[-300:] if ended.code else place.problems(shop.expected)


def one_by_one(specs: Sequence[RunSpec]) -> list[Cohort]:
    """Return cohorts of a single run each."""
    return [(spec,) for spec in specs]


def _two_boards(shop: Workshop, _draws: random.Random) -> str:
    place = shop.place(taught=True)
    children = [place.start() for _ in range(2)]
    ends = [child.wait() for child in children]
    if bad := [end for end in ends if end.code not in {0, BUSY}]:
        return f"exit {bad[0].code}: {bad[0].said[-300:]}"
    ended = place.finish()
    return ended.said[-300:] if ended.code else place.problems(shop.expected)


def _worker_killed(shop: Workshop, draws: random.Random) -> str:
    """Kill one of two workers, which have a method each."""
    place = shop.place(taught=True)
    engine = ForkExecutor(place, kills=1, draws=draws)
    guarded(lambda: carry_out(replace(place.order, jobs=2, cohorts=one_by_one), engine))
    if not engine.killed:
        return "no worker was killed"
    ended = place.finish()
    return ended.said[-300:] if ended.code else place.problems(shop.expected)
