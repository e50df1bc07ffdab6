"""kdbench runs in MLflow: one of theirs for each of ours, switched on by KDBENCH_MLFLOW=EXPERIMENT."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

from filelock import FileLock

import kdbench
from kdbench.records import EpochReport, Record

SWITCH, TAG = "KDBENCH_MLFLOW", "kdbench_run"
PARTS = ("anchor", "dataset", "pair", "method", "seed")


class Experiment:
    """The runs this process writes; one worker trains several at a time."""

    def __init__(self, name: str) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").absolute().as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # or a folder is refused; servers do not care
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default minutes, and training waits
        # Workers start together, and a store of files would make the experiment twice.
        with FileLock(Path(tempfile.gettempdir()) / f"kdbench-mlflow-{getattr(os, 'getuid', int)()}", timeout=60):
            self.client = MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(name)
            self.id = found.experiment_id if found else self.client.create_experiment(name)
        self.runs: dict[str, str] = {}
        self.steps: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # of each run's metrics

    def run(self, run_id: str, step: int | None) -> str:
        if step == 0:
            self.runs.pop(run_id, None)
        if run_id in self.runs:
            return self.runs[run_id]
        for old in self.client.search_runs([self.id], f"tags.{TAG} = '{run_id}'", max_results=1):  # the newest
            there: str = old.info.run_id
            if step != 0:
                self.client.update_run(there, status="RUNNING")
                history = self.client.get_metric_history
                self.steps.update({(there, key): {m.step for m in history(there, key)} for key in old.data.metrics})
                return self.runs.setdefault(run_id, there)
            if old.info.status == "RUNNING":  # replaced: killed in its first epoch, or begun again with other settings
                self.client.set_terminated(there, "KILLED")
        tags = {TAG: run_id, **dict(zip(PARTS, run_id.split("/"), strict=False))}
        return self.runs.setdefault(run_id, self.client.create_run(self.id, tags=tags, run_name=run_id).info.run_id)

    def log(self, run: str, values: dict[str, float | str | None], step: int) -> None:
        from mlflow.entities import Metric, RunTag

        metrics, tags, now = [], [], int(time.time() * 1000)
        for name, value in values.items():
            key = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)  # what MLflow forbids
            if isinstance(value, str):
                tags.append(RunTag(key, value))
            elif value is not None and math.isfinite(value) and step not in self.steps[run, key]:
                metrics.append(Metric(key, value, now, step))
        self.client.log_batch(run, metrics=metrics, tags=tags)
        for metric in metrics:
            self.steps[run, metric.key].add(step)


@cache
def experiment(name: str) -> Experiment:
    """Return the experiment as this process knows it."""
    try:
        return Experiment(name)
    except Exception:
        os.environ[SWITCH] = ""  # finding out again every epoch that there is no server takes long
        raise


@kdbench.hookimpl
def kdbench_epoch_ended(report: EpochReport) -> None:
    """Log an epoch; its step is its number in the run."""
    if name := os.environ.get(SWITCH):
        there, values = experiment(name), {"phase": report.phase, **report.named()}
        run = there.run(report.run_id, report.number)
        there.log(run, {key.replace(".", "/", 1): value for key, value in values.items()}, report.number)


@kdbench.hookimpl
def kdbench_run_finished(record: Record) -> None:
    """Log the result and end the run."""
    if name := os.environ.get(SWITCH):
        run = (there := experiment(name)).run(record.run_id, None)
        numbers = {f"final/{key}": value for key, value in record.numbers().items()}
        there.log(run, {**numbers, "final/status": record.status, "final/reason": record.reason}, 0)
        there.client.set_terminated(run, "FINISHED" if record.status == "ok" else "FAILED")
        del there.runs[record.run_id]
