"""Offline runs of Weights & Biases, read back from their files: numbers, steps, restarts, and trouble."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kdbench_wandb as plugin
import pytest
import wandb
from wandb.proto import wandb_internal_pb2 as messages

from kdbench.records import Accuracy, Environment, EpochReport, Record
from kdbench.spec import DatasetRef, PluginRef

BLOCK, HEADER = 32768, 7  # of the log format of LevelDB, which their files have behind seven bytes of their own
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


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(plugin.SWITCH, "tests")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")
    plugin.project.cache_clear()
    yield
    restart()


def restart() -> None:
    """End what is open, as the end of a worker does, and forget what a new one would not know."""
    for run in plugin.project("tests").runs.values():
        run.finish()
    plugin.project.cache_clear()
    wandb.teardown()  # its service remembers runs and environment


def messages_in(path: Path) -> Iterator[Any]:
    data, at, whole = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        part, at = data[at + HEADER : at + HEADER + length], at + HEADER + length
        whole = part if kind in {1, 2} else whole + part  # whole, first; middle, last
        if kind in {1, 4}:
            yield messages.Record.FromString(whole)  # type: ignore[attr-defined]


class Offline:
    """What the files of one run say, worker by worker.

    Args:
        root: Folder they are in.
        run_id: Of kdbench.
    """

    def __init__(self, root: Path, run_id: str = RUN) -> None:
        identifier = plugin.identifier(run_id)
        self.files = sorted(root.glob(f"wandb/offline-run-*-{identifier}/run-{identifier}.wandb"))
        self.workers = [list(messages_in(path)) for path in self.files]

    def rows(self, worker: int = -1) -> list[dict[str, Any]]:
        found = [m.history.item for m in self.workers[worker] if m.WhichOneof("record_type") == "history"]
        return [{_key(item): json.loads(item.value_json) for item in row} for row in found]

    def curve(self, name: str, worker: int = -1) -> list[tuple[int, Any]]:
        return [(row["_step"], row[name]) for row in self.rows(worker) if name in row]

    def summary(self) -> dict[str, Any]:
        updates = [m.summary.update for m in self.workers[-1] if m.WhichOneof("record_type") == "summary"]
        return {_key(item): json.loads(item.value_json) for update in updates for item in update}

    def start(self, worker: int = -1) -> Any:
        return next(m.run for m in self.workers[worker] if m.WhichOneof("record_type") == "run")

    def exit_code(self) -> int | None:
        codes = [m.exit.exit_code for m in self.workers[-1] if m.WhichOneof("record_type") == "exit"]
        return codes[0] if codes else None


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def ended(root: Path, run_id: str = RUN) -> Offline:
    """Read a run when the service has written all of it, which is after ``finish`` returns."""
    restart()
    return Offline(root, run_id)


def test_numbers_words_and_what_is_left_out(tmp_path: Path) -> None:
    metrics = {"gap": 0.25, "layer.1": 3.0, "chosen": "b", "none": None, "bad": float("nan")}
    plugin.kdbench_epoch_ended(report(0, phase="init", metrics=metrics))
    plugin.kdbench_epoch_ended(report(1, epoch=0))
    plugin.kdbench_run_finished(record(options={"beta": 2.0}))
    found = ended(tmp_path)
    start = found.start()
    assert (start.project, start.display_name, start.run_group) == ("tests", RUN, RUN.removesuffix("/seed0"))
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert {"run_id": RUN, "method": "method", "seed": "seed0", "anchor": "anchor-v1"}.items() <= config.items()
    assert found.curve("learning_rate") == [(0, 0.1), (1, 0.05)]
    assert found.curve("losses/ce") == [(0, 2.0), (1, 1.0)]
    assert found.curve("metrics/gap") == [(0, 0.25)]
    assert found.curve("metrics/layer.1") == [(0, 3.0)]
    assert found.curve("metrics/chosen") == [(0, "b")]
    assert found.curve("phase") == [(0, "init"), (1, "main")]
    assert found.curve("test_accuracy") == [(0, 50.0), (1, 51.0)]
    names = {name for row in found.rows() for name in row}
    assert not {"losses/kd", "metrics/none", "metrics/bad", "train_accuracy"} & names
    summary = found.summary()
    assert (summary["final/accuracy.last"], summary["final/nll"]) == (51.5, 1.25)
    assert (summary["final/status"], summary["final/reason"]) == ("ok", "")
    assert "final/ece" not in summary
    assert found.exit_code() == 0


def test_runs_of_a_cohort_are_runs_of_their_own(tmp_path: Path) -> None:
    for number in (0, 1):
        for run_id, loss in ((RUN, 1.0), (OTHER, 2.0)):
            plugin.kdbench_epoch_ended(report(number, run_id, losses={"ce": loss + number}))
    plugin.kdbench_run_finished(record(OTHER, status="diverged", reason="it fell"))
    plugin.kdbench_run_finished(record())
    one, two = ended(tmp_path), ended(tmp_path, OTHER)
    assert one.curve("losses/ce") == [(0, 1.0), (1, 2.0)]
    assert two.curve("losses/ce") == [(0, 2.0), (1, 3.0)]
    assert (one.exit_code(), two.exit_code()) == (0, 1)
    assert two.summary()["final/reason"] == "it fell"


def worker(*numbers: int, then: str = "") -> int:
    """Report epochs in a process of its own; return how it ended."""
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:3]\n"
        "import kdbench_wandb as p; import test_wandb as t\n"
        f"for n in {numbers}: p.kdbench_epoch_ended(t.report(n))\n{then}"
    )
    folders = [str(Path(__file__).parent), str(Path(plugin.__file__).parent)]
    done = subprocess.run([sys.executable, "-c", code, *folders], check=False, timeout=60, stdout=subprocess.PIPE)
    assert done.stdout == b"", "a worker's standard output belongs to kdbench"
    return done.returncode


def wait_for(rows: int) -> None:
    """Wait until the file of the run holds as many rows, half a minute at most."""
    for _ in range(300):
        if len(Offline(Path(os.environ["WANDB_DIR"])).rows()) >= rows:
            return
        time.sleep(0.1)
    raise TimeoutError(rows)


def test_a_run_goes_on_in_another_worker(tmp_path: Path) -> None:
    """A killed worker's epochs are on disk a moment later; one that stops in peace ends its part of the run."""
    assert worker(0, 1, then="t.wait_for(2); os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    time.sleep(1)  # no worker of kdbench starts within a second of the one before, which would share its folder
    assert worker(2, 3) == 0
    time.sleep(1)
    plugin.kdbench_epoch_ended(report(4))
    plugin.kdbench_run_finished(record())
    found = ended(tmp_path)
    assert [found.curve("losses/ce", part) for part in range(3)] == [
        [(0, 2.0), (1, 1.0)],
        [(2, 0.0), (3, -1.0)],
        [(4, -2.0)],
    ]
    assert {found.start(part).run_id for part in range(3)} == {plugin.identifier(RUN)}
    assert found.exit_code() == 0


def test_an_epoch_done_again_in_the_same_process_is_logged_once(tmp_path: Path) -> None:
    for number in (0, 1, 1, 2):
        plugin.kdbench_epoch_ended(report(number))
    assert ended(tmp_path).curve("losses/ce") == [(0, 2.0), (1, 1.0), (2, 0.0)]


def test_a_run_that_begins_again_in_the_same_process_is_logged_anew(tmp_path: Path) -> None:
    for number, loss in ((0, 1.0), (1, 2.0), (0, 3.0), (1, 4.0)):
        plugin.kdbench_epoch_ended(report(number, losses={"ce": loss}))
    plugin.kdbench_run_finished(record())
    assert ended(tmp_path).curve("losses/ce") == [(0, 3.0), (1, 4.0)]


def test_only_a_run_from_the_start_replaces_an_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def init(**settings: Any) -> Any:
        asked.append((settings["resume"], settings["id"]))
        raise RuntimeError("enough")

    monkeypatch.setattr("wandb.init", init)
    for number in (0, 1):
        plugin.project.cache_clear()
        with pytest.raises(RuntimeError, match="enough"):
            plugin.kdbench_epoch_ended(report(number))
    plugin.project.cache_clear()
    with pytest.raises(RuntimeError, match="enough"):
        plugin.kdbench_run_finished(record())
    assert asked == [(None, plugin.identifier(RUN)), *[("allow", plugin.identifier(RUN))] * 2]
    assert plugin.identifier(OTHER) != plugin.identifier(RUN)


def train(place: Path) -> list[EpochReport]:
    """Train a run on the command line, with the plugin as pip would install it; return its epochs."""
    about = place / "site" / "kdbench_wandb-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kdbench-wandb\nVersion: 0.1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[kdbench]\nwandb = kdbench_wandb\n", encoding="utf-8")
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


def test_a_real_run(tmp_path: Path) -> None:
    reports = train(tmp_path)
    found = Offline(tmp_path, reports[0].run_id)
    for name in ("losses.total", "test_accuracy", "learning_rate"):
        assert found.curve(name.replace(".", "/")) == [(report.number, report.named()[name]) for report in reports]
    assert found.summary()["final/accuracy.last"] == reports[-1].test_accuracy
    assert found.exit_code() == 0


def test_trouble_costs_no_run_and_no_time(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []

    def init(**_settings: Any) -> Any:
        calls.append(None)
        raise OSError("no network")

    monkeypatch.setattr("wandb.init", init)
    plugins = loaded()
    for number in (0, 1):
        plugins.tell("kdbench_epoch_ended", report=report(number))
    assert caplog.text.count("kdbench_epoch_ended failed: OSError: no network; the runs go on without it") == 1
    assert len(calls) == 1


def loaded() -> Any:
    """Return the registry with the plugin in it, installed or not."""
    from kdbench import registry  # here, since the processes that import this file need no torch

    installed = "wandb" in {found.name for found in registry.load().plugins}
    return registry.load(extra=() if installed else [plugin])


def test_it_does_and_imports_nothing_unless_switched_on(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import kdbench_wandb as p\n"
        "p.kdbench_epoch_ended(None); p.kdbench_run_finished(None); sys.exit('wandb' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != plugin.SWITCH}
    for switch in ({}, {plugin.SWITCH: ""}):
        words: list[str | Path] = [sys.executable, "-c", code, Path(plugin.__file__).parent]
        assert subprocess.run(words, check=False, timeout=60, cwd=tmp_path, env=environment | switch).returncode == 0
    assert list(tmp_path.iterdir()) == []
