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
        if uri.startswith("file:") or "://" not in uri:  # for these MLflow would have us install a database
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default minutes, and training waits
        # Workers start together, and a store of files would make the experiment twice.
        with FileLock(Path(tempfile.gettempdir()) / f"kdbench-mlflow-{getattr(os, 'getuid', int)()}", timeout=60):
            self.client = MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(name)
            self.id = found.experiment_id if found else self.client.create_experiment(name)
        self.runs: dict[str, str] = {}
        self.steps: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # of each run's metrics

    def run(self, run_id: str, step: int | None) -> str:
        if run_id not in self.runs:
            for old in self.client.search_runs([self.id], f"tags.{TAG} = '{run_id}'", max_results=1):  # the newest
                there = old.info.run_id
                known = {key: {m.step for m in self.client.get_metric_history(there, key)} for key in old.data.metrics}
                # At the first epoch it is an older run of that name, unless a worker was killed in just that epoch.
                if step != 0 or (old.info.status == "RUNNING" and not any(map(max, known.values()))):
                    self.client.update_run(there, status="RUNNING")
                    self.runs[run_id] = there
                    self.steps.update({(there, key): steps for key, steps in known.items()})
        if run_id not in self.runs:
            tags = {TAG: run_id, **dict(zip(PARTS, run_id.split("/"), strict=False))}
            self.runs[run_id] = self.client.create_run(self.id, tags=tags, run_name=run_id).info.run_id
        return self.runs[run_id]

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
        there = experiment(name)
        run = there.run(record.run_id, None)
        values = {**record.numbers(), "status": record.status, "reason": record.reason}
        there.log(run, {f"final/{key}": value for key, value in values.items()}, 0)
        there.client.set_terminated(run, "FINISHED" if record.status == "ok" else "FAILED")
        del there.runs[record.run_id]
