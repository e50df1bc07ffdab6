"""Event files of runs, read back with TensorBoard's own reader: numbers, steps, restarts, and trouble."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kdbench_tensorboard as plugin
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

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
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(plugin.SWITCH, str(tmp_path / "curves"))
    plugin.board.cache_clear()
    return tmp_path / "curves"


def restart() -> None:
    """Forget everything a new worker would not know."""
    plugin.board.cache_clear()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if not tag.endswith("/text_summary")]
    return {tag: [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)] for tag in tags}


def words(folder: Path, tag: str) -> list[tuple[int, str]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(f"{tag}/text_summary")]


def test_numbers_words_and_what_is_left_out(root: Path) -> None:
    metrics = {"gap": 0.25, "layer.1": 3.0, "chosen": "b", "none": None, "bad": float("nan")}
    plugin.kdbench_epoch_ended(report(0, phase="init", metrics=metrics))
    plugin.kdbench_epoch_ended(report(1, epoch=0))
    plugin.kdbench_run_finished(record())
    found = curves(root / RUN)
    assert [step for step, _ in found["learning_rate"]] == [0, 1]
    assert [rate for _, rate in found["learning_rate"]] == pytest.approx([0.1, 0.05])
    assert found["losses/ce"] == [(0, 2.0), (1, 1.0)]
    assert found["metrics/gap"] == [(0, 0.25)]
    assert found["metrics/layer.1"] == [(0, 3.0)]
    assert found["test_accuracy"] == [(0, 50.0), (1, 51.0)]
    assert found["final/accuracy.last"] == [(2, 51.5)]
    assert found["final/nll"] == [(2, 1.25)]
    assert not {"losses/kd", "metrics/none", "metrics/bad", "train_accuracy", "final/ece"} & found.keys()
    assert words(root / RUN, "metrics/chosen") == [(0, "b")]
    assert words(root / RUN, "final/status") == [(2, "ok")]


def test_runs_of_a_cohort_have_folders_of_their_own(root: Path) -> None:
    for number in (0, 1):
        for run_id, loss in ((RUN, 1.0), (OTHER, 2.0)):
            plugin.kdbench_epoch_ended(report(number, run_id, losses={"ce": loss + number}))
    plugin.kdbench_run_finished(record(OTHER))
    assert curves(root / RUN)["losses/ce"] == [(0, 1.0), (1, 2.0)]
    assert curves(root / OTHER)["losses/ce"] == [(0, 2.0), (1, 3.0)]
    assert "final/nll" not in curves(root / RUN)
    assert [len(list((root / run_id).iterdir())) for run_id in (RUN, OTHER)] == [1, 1]


def test_an_epoch_done_again_is_drawn_once(root: Path) -> None:
    for number in (0, 1, 2):
        plugin.kdbench_epoch_ended(report(number))
    restart()  # killed after the report of epoch 2, before its checkpoint
    for number in (2, 3):
        plugin.kdbench_epoch_ended(report(number, seconds=7.0))
    restart()  # killed between the last checkpoint and the record
    plugin.kdbench_run_finished(record())
    found = curves(root / RUN)
    assert found["losses/ce"] == [(0, 2.0), (1, 1.0), (2, 0.0), (3, -1.0)]
    assert found["seconds"] == [(0, 1.0), (1, 1.0), (2, 7.0), (3, 7.0)]
    assert found["final/accuracy.last"] == [(0, 51.5)]


def test_a_run_that_is_taken_up_again_in_the_same_process(root: Path) -> None:
    for number, loss in ((0, 1.0), (1, 2.0), (1, 3.0), (2, 4.0)):
        plugin.kdbench_epoch_ended(report(number, losses={"ce": loss}))
    assert curves(root / RUN)["losses/ce"] == [(0, 1.0), (1, 3.0), (2, 4.0)]


def test_a_failed_run_that_is_tried_again_has_one_end(root: Path) -> None:
    plugin.kdbench_epoch_ended(report(0))
    plugin.kdbench_run_finished(record(status="infra_failed", reason="it fell", accuracy=None, nll=None))
    assert words(root / RUN, "final/status") == [(1, "infra_failed it fell")]
    restart()
    plugin.kdbench_epoch_ended(report(1))
    plugin.kdbench_run_finished(record())
    assert words(root / RUN, "final/status") == [(2, "ok")]
    assert curves(root / RUN)["losses/ce"] == [(0, 2.0), (1, 1.0)]


def test_a_run_from_the_start_replaces_the_old_curve(root: Path) -> None:
    for number in (0, 1, 2):
        plugin.kdbench_epoch_ended(report(number))
    restart()
    plugin.kdbench_epoch_ended(report(0, losses={"ce": 5.0}))
    assert curves(root / RUN)["losses/ce"] == [(0, 5.0)]


def test_what_was_reported_survives_a_kill(root: Path) -> None:
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:3]\n"
        "import kdbench_tensorboard as p; import test_tensorboard as t\n"
        "for n in (0, 1): p.kdbench_epoch_ended(t.report(n))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    here = Path(__file__).parent
    ended = subprocess.run([sys.executable, "-c", code, here, Path(plugin.__file__).parent], check=False, timeout=60)
    assert ended.returncode == -9
    assert curves(root / RUN)["losses/ce"] == [(0, 2.0), (1, 1.0)]


def test_after_an_error_the_curve_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.kdbench_epoch_ended(report(0))

    def full(_writer: object, _data: bytes) -> None:
        with plugin.board(str(root)).files[RUN].path.open("ab") as file:
            file.write(b"abc")  # of a record
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        with pytest.raises(OSError, match="No space left"):
            plugin.kdbench_epoch_ended(report(1))
    plugin.kdbench_epoch_ended(report(2))
    assert curves(root / RUN)["losses/ce"] == [(0, 2.0), (2, 0.0)]


def train(place: Path) -> list[EpochReport]:
    """Train a run on the command line, with the plugin as pip would install it; return its epochs."""
    about = place / "site" / "kdbench_tensorboard-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kdbench-tensorboard\nVersion: 0.1.0\n", encoding="utf-8"
    )
    (about / "entry_points.txt").write_text("[kdbench]\ntensorboard = kdbench_tensorboard\n", encoding="utf-8")
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


def test_a_real_run(root: Path, tmp_path: Path) -> None:
    reports = train(tmp_path)
    found = curves(root / reports[0].run_id)
    for name in ("losses.total", "test_accuracy", "learning_rate"):
        values = [report.named()[name] for report in reports]
        assert [step for step, _ in found[name.replace(".", "/")]] == [0, 1]
        assert [value for _, value in found[name.replace(".", "/")]] == pytest.approx(values)
    assert [step for step, _ in found["final/accuracy.last"]] == [2]


def test_trouble_costs_no_run(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.write_text("no folder", encoding="utf-8")
    plugins = loaded()
    for number in (0, 1):
        plugins.tell("kdbench_epoch_ended", report=report(number))
    assert caplog.text.count("kdbench_epoch_ended failed: NotADirectoryError") == 1


def loaded() -> Any:
    """Return the registry with the plugin in it, installed or not."""
    from kdbench import registry  # here, since the processes that import this file need no torch

    installed = "tensorboard" in {found.name for found in registry.load().plugins}
    return registry.load(extra=() if installed else [plugin])


def test_it_does_and_imports_nothing_unless_switched_on(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import kdbench_tensorboard as p\n"
        "p.kdbench_epoch_ended(None); p.kdbench_run_finished(None); sys.exit('tensorboard' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != plugin.SWITCH}
    for switch in ({}, {plugin.SWITCH: ""}):
        words: list[str | Path] = [sys.executable, "-c", code, Path(plugin.__file__).parent]
        assert subprocess.run(words, check=False, timeout=60, cwd=tmp_path, env=environment | switch).returncode == 0
    assert list(tmp_path.iterdir()) == []
