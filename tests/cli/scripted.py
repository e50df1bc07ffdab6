"""An engine that follows a script, and plans for it whose runs are written, not trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from commandline import Place

from kdbench.execution.driver import Order
from kdbench.execution.grouping import groups_of
from kdbench.execution.jobs import Ended, Job, Settings
from kdbench.plan import Request, make_plan
from kdbench.records import Record
from kdbench.registry import load
from kdbench.seal import unsealed
from kdbench.spec import RunSpec
from kdbench.store import RunStore

Act = Callable[[Job, int], tuple[int, str]]


class Scripted:
    """An engine whose workers do what ``act(job, start)`` says: it returns exit code and standard error."""

    def __init__(self, act: Act) -> None:
        self.act = act
        self.started: list[tuple[str, ...]] = []
        self.most = 0
        self.cancelled = False
        self.looks: list[Callable[[], None]] = []  # what happens while the driver waits for a while only
        self._waiting: list[Job] = []

    def submit(self, job: Job) -> None:
        self.started.append(tuple(run_id.rpartition("tiny/")[2] for run_id in job.run_ids))
        self._waiting.append(job)
        self.most = max(self.most, len(self._waiting))

    def knows(self, job: Job) -> bool:  # noqa: ARG002
        return False

    @property
    def running(self) -> int:
        return len(self._waiting)

    def wait(self, seconds: float | None = None) -> Ended | None:
        if seconds is not None and self.looks:
            self.looks.pop(0)()
            return None
        job = self._waiting.pop(0)
        if self.cancelled:
            return Ended(job, 75, "")
        code, error = self.act(job, len(self.started))
        return Ended(job, code, error)

    def cancel(self) -> None:
        self.cancelled = True


def planned() -> tuple[RunSpec, ...]:
    """Return two methods with two seeds each."""
    request = Request(("student", "vanilla_kd"), ("tiny",), (0, 1), "fair_baseline_smoke", per_class=20)
    return make_plan(request, load()).runs


def order_of(specs: tuple[RunSpec, ...], folder: Path) -> Order:
    """Return the order to carry runs out in a folder."""
    named = tuple(replace_teacher(spec) for spec in specs)  # no teacher has to be made
    settings = Settings(folder / "runs", folder / "teachers", folder, ("cpu",), 1)
    return Order(named, "fair_baseline_smoke", {"tiny": 10}, settings, groups_of)


def replace_teacher(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"teacher_names": ("given",)}) if spec.teachers else spec


def write(order: Order, job: Job, source: Place, *, but: str = "nothing") -> None:
    """Leave records, as a worker would."""
    model = Record.model_validate(unsealed(source.record("student"))[0])
    for run_id in job.run_ids:
        if but not in run_id:
            RunStore(order.settings.store).folder(run_id).write_record(model.model_copy(update={"run_id": run_id}))
