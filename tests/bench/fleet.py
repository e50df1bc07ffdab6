"""A fleet of workers in virtual time, against the driver's own loop and the store's own files.

The workers do not train: each waits as long as its job takes by the clock of the simulation, and then claims its runs
and writes their records, as a worker does. Some crash, some are stopped, some nodes take their jobs along, some jobs
take twenty times as long, and some runs bring down every worker that tries them. What is measured is all the rest:
planning, registering, handing out, claiming, finishing, and starting the same command again when everything is done.

    python tests/bench/fleet.py [--runs N] [--workers N] [--lanes N] [--store FOLDER | --memory]

``--memory`` keeps what the store holds in a dictionary instead, for more runs than a disk has room or time for.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fleet_store import MemoryStore, patched

from kdbench.execution import driver
from kdbench.execution.driver import Order, carry_out
from kdbench.execution.grouping import Cohort, cohorts_of
from kdbench.execution.jobs import DONE, STOPPED, Ended, Job, Settings
from kdbench.plan import Request, make_plan
from kdbench.records import Accuracy, Cost, Environment, Record
from kdbench.registry import load
from kdbench.spec import RunSpec
from kdbench.store import RunStore
from kdbench.training.attempts import now
from kdbench.training.runs import identity_of

METHODS = ("student", "vanilla_kd", "dkd", "at")
HOUR = 3600.0
# Share of starts that end so, drawn anew at every start.
CRASHED, STOPPED_EARLY, LOST, STRAGGLING = 0.02, 0.03, 0.005, 0.01
DEADLY = 0.0002  # share of runs that no worker survives
STRAGGLERS_TAKE = 20


class Clock:
    """Seconds of the simulation, and those of them that the driver slept through; sleeping takes no time."""

    def __init__(self) -> None:
        self.now = self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.slept += seconds


class Watch:
    """Seconds of real time, and those of the processor, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.processor: Counter[str] = Counter()

    @contextmanager
    def on(self, what: str, *instead_of: str) -> Iterator[None]:
        """Count what passes meanwhile, without what is counted as something else at the same time."""
        clocks = ((self.seconds, time.perf_counter), (self.processor, time.process_time))
        before = [clock() - sum(counter[other] for other in instead_of) for counter, clock in clocks]
        try:
            yield
        finally:
            for (counter, clock), started in zip(clocks, before, strict=True):
                counter[what] += clock() - sum(counter[other] for other in instead_of) - started


class Fleet:
    """An engine whose workers live in virtual time.

    Args:
        store: Where they claim runs and write records.
        specs: All runs, by id.
        clock: The virtual time.
        watch: Counts what workers spend on the store.
        seed: Of who fails when.
    """

    def __init__(self, store: Any, specs: dict[str, RunSpec], clock: Clock, watch: Watch, seed: int = 0) -> None:
        self.store, self.specs, self.clock, self.watch = store, specs, clock, watch
        self.ends: Counter[str] = Counter()
        self._record = record_of(next(iter(specs.values())))
        self.busy = 0.0
        self.failed: set[str] = set()
        self._draws = random.Random(seed)
        self._order = itertools.count()
        self._under_way: list[tuple[float, int, float, str, Job]] = []
        every = sorted(specs)
        self.deadly = set(random.Random(seed + 1).sample(every, round(DEADLY * len(every))))

    def submit(self, job: Job) -> None:
        """Draw how the job will end, and when."""
        seconds = self._draws.lognormvariate(0.0, 0.4) * HOUR * len(job.run_ids) / 2
        fate, draw = "done", self._draws.random()
        if self.deadly & set(job.run_ids):
            fate, seconds = "crashed", seconds / 10
        elif draw < CRASHED + STOPPED_EARLY + LOST:
            fate = "crashed" if draw < CRASHED else "stopped" if draw < CRASHED + STOPPED_EARLY else "lost"
            seconds *= self._draws.random()
        elif draw > 1 - STRAGGLING:
            seconds *= STRAGGLERS_TAKE
        self.ends[fate] += 1
        heapq.heappush(self._under_way, (self.clock.now + seconds, next(self._order), seconds, fate, job))

    def knows(self, _job: Job) -> bool:
        """Return False: there is no other command."""
        return False

    @property
    def running(self) -> int:
        """Number of jobs under way."""
        return len(self._under_way)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """Pass the time until the next job ends, or for so long."""
        if seconds is not None and self._under_way[0][0] > self.clock.now + seconds:
            self.clock.now += seconds
            return None
        at, _, took, fate, job = heapq.heappop(self._under_way)
        self.clock.now, self.busy = max(self.clock.now, at), self.busy + took
        if fate == "done":
            for run_id in job.run_ids:
                self._finish(run_id)
        code = {"done": DONE, "stopped": STOPPED, "crashed": -11, "lost": -9}[fate]
        return Ended(job, code, "")

    def cancel(self) -> None:
        """Forget everything."""
        self._under_way.clear()

    def close(self) -> None:
        """Nothing is held."""

    def _finish(self, run_id: str) -> None:
        folder = self.store.folder(run_id)
        with self.watch.on("claiming"):
            claim = folder.claimed()
            claim.__enter__()
        with self.watch.on("writing the record"):
            folder.write_record(self._record.model_copy(update={"run_id": run_id}))
        with self.watch.on("claiming"):
            claim.__exit__(None, None, None)


def record_of(spec: RunSpec) -> Record:
    """Return a record like that of a finished run."""
    ones: dict[str, Any] = dict.fromkeys(Cost.model_fields, 1)
    return Record(
        **identity_of(spec), classes=10, status="ok", cost=Cost(**ones), started_at=now(), ended_at=now(),
        accuracy=Accuracy(last=90.0, best=91.0, last5_mean=90.5, top5=99.0), nll=0.5, ece=0.05,
        environment=Environment(python="3.11", torch="2.14", device="cpu", threads=1, commit="", machine="fleet"),
    )  # fmt: skip


def planned(runs: int) -> tuple[RunSpec, ...]:
    """Return that many runs, rounded up to whole seeds; their teachers are given, so that none has to be trained."""
    seeds = tuple(range(-(-runs // len(METHODS))))
    request = Request(METHODS, ("tiny",), seeds, "crd_smoke", per_class=20, teacher_names=("given",))
    return make_plan(request, load()).runs


def simulate(specs: tuple[RunSpec, ...], store: Any, root: Path, workers: int, lanes: int, watch: Watch) -> Fleet:
    """Carry out the runs, and then the same command once more."""
    clock, by_id = Clock(), {spec.run_id: spec for spec in specs}
    settings = Settings(root, root / "teachers", root, ("cpu",), 1)
    order = Order(
        specs,
        "crd_smoke",
        {"tiny": 10},
        settings,
        lambda todo: cohorts_of(todo, workers, lambda _group: lanes),
        workers,
    )
    fleet = Fleet(store, by_id, clock, watch)
    with watch.on("registering"):
        store.register(specs)
    with mock.patch.object(driver.time, "sleep", clock.sleep):
        with watch.on("driving", "claiming", "writing the record"):
            records = carry_out(order, fleet)
        with watch.on("finding all done"):
            carry_out(order, fleet)
    assert len(records) == len(specs)
    fleet.failed = {record.run_id for record in records if record.status != "ok"}
    assert fleet.failed >= fleet.deadly
    with watch.on("listing"):
        assert len(store.runs()) == len(specs)
    return fleet


def _cut(workers: int, lanes: int) -> Callable[[Sequence[RunSpec]], list[Cohort]]:
    return lambda todo: cohorts_of(todo, workers, lambda _group: lanes)


def report(say: Callable[[str], None], fleet: Fleet, watch: Watch, runs: int, workers: int) -> None:
    """Say what was measured."""
    for what, seconds in watch.seconds.items():
        each, computed = 1e6 * seconds / runs, 1e6 * watch.processor[what] / runs
        say(f"{what:>20}: {seconds:8.1f} s  {each:8.0f} us per run, {computed:8.0f} of the processor's")
    used = fleet.busy / (fleet.clock.now * workers)
    say(
        f"{'virtual time':>20}: {fleet.clock.now / HOUR:8.1f} h, workers busy {100 * used:.1f} %, driver asleep "
        f"{fleet.clock.slept:.0f} s"
    )
    say(f"{'starts':>20}: {sum(fleet.ends.values())} ({', '.join(f'{n} {end}' for end, n in fleet.ends.items())})")
    say(f"{'failed':>20}: {len(fleet.failed)}, of which {len(fleet.deadly)} bring down every worker")
    say(f"{'memory':>20}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB at most")


def main() -> None:
    """Simulate one fleet and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--lanes", type=int, default=len(METHODS))
    parser.add_argument("--store", type=Path, help="folder to make the store in [default: a temporary one]")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    watch = Watch()
    with watch.on("planning"):
        specs = planned(options.runs)
    print(f"{len(specs)} runs, {options.workers} workers", flush=True)
    with tempfile.TemporaryDirectory(dir=options.store) as folder:
        root = Path(folder)
        store: Any = MemoryStore(root) if options.memory else RunStore(root)
        with patched(store):
            fleet = simulate(specs, store, root, options.workers, options.lanes, watch)
        report(print, fleet, watch, len(specs), options.workers)


if __name__ == "__main__":
    main()
