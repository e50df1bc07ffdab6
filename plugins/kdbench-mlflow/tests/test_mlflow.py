"""Runs in MLflow's file store, read back with its client: numbers, steps, restarts, and trouble."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kdbench_mlflow as plugin
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from kdbench.records import Accuracy, Environment, EpochReport, Record
from kdbench.spec import DatasetRef, PluginRef

DATASET = DatasetRef(name="digits", slug="digits", fingerprint="f")
RUN, OTHER = "anchor-v1/digits/tiny/method/seed0", "anchor-v1/digits/tiny/method/seed1"


def report(number: int, run_id: str = RUN, phase: str = "main", **changes: object) -> EpochReport:
    fields = {
        "run_id": run_id, "phase": phase, "epoch": number, "epochs": 9, "number": number,
        "learning_rate": 0.1 / (number + 1), "losses": {"ce": 2.0 - number, "kd": None}, "test_accuracy": 50.0 + number,
        "images_per_second": 10.0, "seconds": 1.0,
    } | changes  # fmt: skip
    return EpochReport.model_validate(fields)


def record(run_id: str = RUN, **changes: object) -> Record:
    anchor, dataset, pair, method, seed = run_id.split("/")
    fields = {
        "kdbench_version": "0", "run_id": run_id, "config_sha256": "0" * 64, "status": "ok", "method": method,
        "method_version": 1, "plugin": PluginRef(distribution="d", version="1"), "options": {}, "division": "closed",
        "pair": pair, "student": "s", "dataset": dataset, "dataset_ref": DATASET,
        "classes": 10, "anchor": anchor, "anchor_sha256": "0" * 64, "seed": int(seed.removeprefix("seed")),
        "accuracy": Accuracy(last=51.5, best=52.5, last5_mean=50.5, top5=99.0), "nll": 1.25,
        "environment": Environment(python="3", torch="2", device="cpu", threads=1, commit=""),
        "started_at": "", "ended_at": "",
    } | changes  # fmt: skip
    return Record.model_validate(fields)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Run]]:
    """Switch the plugin on; return what reads the runs of the store, oldest first."""
    monkeypatch.setenv(plugin.SWITCH, "tests")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # so that what the plugin sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    plugin.experiment.cache_clear()

    def read() -> list[Run]:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
        (found,) = [e for e in client.search_experiments() if e.name == "tests"]
        return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))

    return read


def restart() -> None:
    """Forget everything a new worker would not know."""
    plugin.experiment.cache_clear()


def curve(run: Run, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=Path("mlruns").absolute().as_uri())
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]


def test_numbers_words_and_what_is_left_out(store: Callable[[], list[Run]]) -> None:
    metrics = {"gap": 0.25, "odd*name": 3.0, "chosen": "b", "none": None, "bad": float("nan")}
    plugin.kdbench_epoch_ended(report(0, phase="init", metrics=metrics))
    plugin.kdbench_epoch_ended(report(1, epoch=0))
    assert store()[0].info.status == "RUNNING"
    plugin.kdbench_run_finished(record())
    (run,) = store()
    assert (run.info.run_name, run.info.status) == (RUN, "FINISHED")
    assert curve(run, "learning_rate") == [(0, 0.1), (1, 0.05)]
    assert curve(run, "losses/ce") == [(0, 2.0), (1, 1.0)]
    assert curve(run, "metrics/gap") == [(0, 0.25)]
    assert curve(run, "metrics/odd_name") == [(0, 3.0)]
    assert curve(run, "test_accuracy") == [(0, 50.0), (1, 51.0)]
    assert curve(run, "final/accuracy.last") == [(0, 51.5)]
    assert curve(run, "final/nll") == [(0, 1.25)]
    assert not {"losses/kd", "metrics/none", "metrics/bad", "train_accuracy", "final/ece"} & run.data.metrics.keys()
    told = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert told == {
        "kdbench_run": RUN, "anchor": "anchor-v1", "dataset": "digits", "pair": "tiny", "method": "method",
        "seed": "seed0", "phase": "main", "metrics/chosen": "b", "final/status": "ok", "final/reason": "",
    }  # fmt: skip


def test_runs_of_a_cohort_are_runs_of_their_own(store: Callable[[], list[Run]]) -> None:
    for number in (0, 1):
        for run_id, loss in ((RUN, 1.0), (OTHER, 2.0)):
            plugin.kdbench_epoch_ended(report(number, run_id, losses={"ce": loss + number}))
    plugin.kdbench_run_finished(record(OTHER))
    one, two = sorted(store(), key=lambda run: run.info.run_name)
    assert [run.info.status for run in (one, two)] == ["RUNNING", "FINISHED"]
    assert curve(one, "losses/ce") == [(0, 1.0), (1, 2.0)]
    assert curve(two, "losses/ce") == [(0, 2.0), (1, 3.0)]


def test_an_epoch_done_again_is_logged_once(store: Callable[[], list[Run]]) -> None:
    for number in (0, 1, 2):
        plugin.kdbench_epoch_ended(report(number))
    restart()
    for number in (2, 3):
        plugin.kdbench_epoch_ended(report(number, losses={"ce": 2.0 - number, "new": 1.0}))
    restart()  # killed between the last checkpoint and the record
    plugin.kdbench_run_finished(record())
    (run,) = store()
    assert curve(run, "losses/ce") == [(0, 2.0), (1, 1.0), (2, 0.0), (3, -1.0)]
    assert curve(run, "losses/new") == [(2, 1.0), (3, 1.0)]  # a batch that was cut short is completed
    assert run.info.status == "FINISHED"


def test_a_run_that_is_taken_up_again_in_the_same_process(store: Callable[[], list[Run]]) -> None:
    for number in (0, 1, 1, 2):
        plugin.kdbench_epoch_ended(report(number))
    (run,) = store()
    assert curve(run, "losses/ce") == [(0, 2.0), (1, 1.0), (2, 0.0)]


def test_a_failed_run_that_is_tried_again_goes_on(store: Callable[[], list[Run]]) -> None:
    plugin.kdbench_epoch_ended(report(0))
    plugin.kdbench_run_finished(record(status="infra_failed", reason="it fell", accuracy=None, nll=None))
    (run,) = store()
    assert (run.info.status, run.data.tags["final/reason"]) == ("FAILED", "it fell")
    restart()
    plugin.kdbench_epoch_ended(report(1))
    assert [run.info.status for run in store()] == ["RUNNING"]
    plugin.kdbench_run_finished(record())
    (run,) = store()
    assert (run.info.status, run.data.tags["final/status"], run.data.tags["final/reason"]) == ("FINISHED", "ok", "")
    assert curve(run, "losses/ce") == [(0, 2.0), (1, 1.0)]


@pytest.mark.parametrize("new_worker", [True, False])
@pytest.mark.parametrize("ended", [True, False])
def test_a_run_from_the_start_is_a_new_one(store: Callable[[], list[Run]], ended: bool, new_worker: bool) -> None:
    for number in (0, 1):
        plugin.kdbench_epoch_ended(report(number))
    if ended:
        plugin.kdbench_run_finished(record())
    if new_worker:
        restart()
    plugin.kdbench_epoch_ended(report(0, losses={"ce": 5.0}))
    assert sorted(run.info.status for run in store()) == ["FINISHED" if ended else "KILLED", "RUNNING"]
    curves = sorted(curve(run, "losses/ce") for run in store())
    assert curves == [[(0, 2.0), (1, 1.0)], [(0, 5.0)]]
    restart()
    plugin.kdbench_epoch_ended(report(1, losses={"ce": 6.0}))
    assert sorted(curve(run, "losses/ce") for run in store())[1] == [(0, 5.0), (1, 6.0)]


def test_workers_that_start_together_share_an_experiment(store: Callable[[], list[Run]]) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import kdbench_mlflow as p; from kdbench.records import EpochReport\n"
        "p.kdbench_epoch_ended(EpochReport.model_validate_json(sys.argv[2]))"
    )
    words = [sys.executable, "-c", code, str(Path(plugin.__file__).parent)]
    workers = [subprocess.Popen([*words, report(0, run_id).model_dump_json()]) for run_id in (RUN, OTHER)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert sorted(run.info.run_name for run in store()) == [RUN, OTHER]


def train(place: Path) -> list[EpochReport]:
    """Train a run on the command line, with the plugin as pip would install it; return its epochs."""
    about = place / "site" / "kdbench_mlflow-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kdbench-mlflow\nVersion: 0.1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[kdbench]\nmlflow = kdbench_mlflow\n", encoding="utf-8")
    path = os.pathsep.join([str(place / "site"), str(Path(plugin.__file__).parent), *filter(None, sys.path)])
    run_id = "fair_baseline_smoke-v1/digits/tiny/student/seed0"
    words = [
        "run",
        "--method",
        "student",
        "--pair",
        "tiny",
        "--seeds",
        "1",
        "--anchor",
        "fair_baseline_smoke",
        "--executor",
        "inline",
    ]
    subprocess.run(
        [sys.executable, "-W", "error", "-m", "kdbench", *words, "--threads", "1", "--out", place / "runs"],
        check=True, timeout=120, cwd=place, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE,
    )  # fmt: skip
    lines = (place / "runs" / run_id / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    return [EpochReport.model_validate_json(line) for line in lines]


def test_a_real_run(store: Callable[[], list[Run]], tmp_path: Path) -> None:
    reports = train(tmp_path)
    (run,) = store()
    assert (run.info.run_name, run.info.status) == (reports[0].run_id, "FINISHED")
    for name in ("losses.total", "test_accuracy", "learning_rate"):
        assert curve(run, name.replace(".", "/")) == [(report.number, report.named()[name]) for report in reports]
    assert run.data.metrics["final/accuracy.last"] == reports[-1].test_accuracy


@pytest.mark.usefixtures("store")
def test_trouble_costs_no_run_and_no_time(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mlruns").write_text("no folder", encoding="utf-8")
    plugins = loaded()
    calls: list[str] = []
    opened = plugin.Experiment.__init__

    def counted(self: plugin.Experiment, name: str) -> None:
        calls.append(name)
        opened(self, name)

    monkeypatch.setattr(plugin.Experiment, "__init__", counted)
    for number in (0, 1):
        plugins.tell("kdbench_epoch_ended", report=report(number))
    plugins.tell("kdbench_run_finished", record=record())
    assert caplog.text.count("plugin") == 1
    assert "kdbench_epoch_ended failed: " in caplog.text
    assert calls == ["tests"]


def loaded() -> Any:
    """Return the registry with the plugin in it, installed or not."""
    from kdbench import registry  # here, since the processes that import this file need no torch

    installed = "mlflow" in {found.name for found in registry.load().plugins}
    return registry.load(extra=() if installed else [plugin])


def test_it_does_and_imports_nothing_unless_switched_on(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import kdbench_mlflow as p\n"
        "p.kdbench_epoch_ended(None); p.kdbench_run_finished(None); sys.exit('mlflow' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != plugin.SWITCH}
    for switch in ({}, {plugin.SWITCH: ""}):
        words: list[str | Path] = [sys.executable, "-c", code, Path(plugin.__file__).parent]
        assert subprocess.run(words, check=False, timeout=60, cwd=tmp_path, env=environment | switch).returncode == 0
    assert list(tmp_path.iterdir()) == []
