"""kdbench runs in Weights & Biases: one of theirs for each of ours, switched on by KDBENCH_WANDB=PROJECT."""

from __future__ import annotations

import hashlib
import math
import os
import time
from functools import cache
from typing import TYPE_CHECKING

import kdbench

if TYPE_CHECKING:
    import wandb

    from kdbench.records import EpochReport, Record

SWITCH = "KDBENCH_WANDB"
FLUSH_SECONDS = 0.1  # by default a killed worker loses up to 15 seconds of what it logged
PARTS = ("anchor", "dataset", "pair", "method", "seed")


class Project:
    """The runs this process has open; one worker trains several at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: dict[str, wandb.Run] = {}
        self.failure: Exception | None = None

    def run(self, run_id: str, *, fresh: bool) -> wandb.Run:
        """Return the open run; a fresh one replaces an older one of its name, any other goes on with it."""
        if fresh and run_id in self.runs:
            self.runs.pop(run_id).finish(exit_code=1)
            time.sleep(1)  # a folder's name is the second it was made in: the new run needs one of its own
        if run_id not in self.runs:
            if self.failure:
                raise self.failure  # finding out again every epoch that there is no network takes too long
            try:
                self.runs[run_id] = self._open(run_id, fresh=fresh)
            except Exception as error:
                self.failure = error
                raise
        return self.runs[run_id]

    def _open(self, run_id: str, *, fresh: bool) -> wandb.Run:
        import wandb

        # A worker's standard output belongs to kdbench.
        settings = wandb.Settings(console="off", silent=True, x_transaction_log_flush_interval=FLUSH_SECONDS)
        return wandb.init(
            project=self.name,
            id=identifier(run_id),
            name=run_id,
            group=run_id.rpartition("/")[0],
            config={"run_id": run_id, **dict(zip(PARTS, run_id.split("/"), strict=False))},
            resume=None if fresh else "allow",
            reinit="create_new",
            settings=settings,
        )

    def end(self, record: Record) -> None:
        """Write the final numbers and finish the run."""
        run = self.run(record.run_id, fresh=False)
        about = {"options": record.options, "method_version": record.method_version}
        run.config.update(about, allow_val_change=True)  # type: ignore[no-untyped-call]
        run.summary.update({f"final/{name}": value for name, value in record.numbers().items()})
        run.summary.update({"final/status": record.status, "final/reason": record.reason})
        del self.runs[record.run_id]
        run.finish(exit_code=int(record.status != "ok"))


def identifier(run_id: str) -> str:
    """Return the run's id there: the same for every worker of the run, of letters they allow."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:16]


@cache
def project(name: str) -> Project:
    """Return the project as this process knows it."""
    return Project(name)


@kdbench.hookimpl
def kdbench_epoch_ended(report: EpochReport) -> None:
    """Log an epoch; its step is its number in the run, so one that was done again is not a new one."""
    if name := os.environ.get(SWITCH):
        values = {key.replace(".", "/", 1): value for key, value in report.named().items() if value is not None}
        shown = {key: value for key, value in values.items() if isinstance(value, str) or math.isfinite(value)}
        run = project(name).run(report.run_id, fresh=report.number == 0)
        run.log({"phase": report.phase, **shown}, step=report.number, commit=True)


@kdbench.hookimpl
def kdbench_run_finished(record: Record) -> None:
    """Log the result."""
    if name := os.environ.get(SWITCH):
        project(name).end(record)
