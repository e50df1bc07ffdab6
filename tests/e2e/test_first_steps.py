"""The first step of a phase reaches plugins that watch, and the user's screen, through either executor."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from commandline import Place, installed, kdbench, write_plugin

from kdbench.cli.progress import Reporter
from kdbench.execution.events import Event, of_phase
from kdbench.records import StepReport

WATCHER = """
import os
from pathlib import Path
import kdbench

@kdbench.hookimpl
def kdbench_phase_started(report):
    with Path(os.environ["WATCHED"]).open("a", encoding="utf-8") as file:
        file.write(report.model_dump_json() + "\\n")
    if os.environ.get("FALLS"):
        raise RuntimeError("fell over")
"""
METHOD = """
import kdbench

class Staged(kdbench.Method[kdbench.Options]):
    "A main phase in two parts."

    name, source = "staged", kdbench.Source("A paper", 2020, "https://example.org/paper")

    def phases(self):
        half = self.context.epochs // 2
        return (
            kdbench.Phase("early", half, main=True),
            kdbench.Phase("late", self.context.epochs - half, main=True),
        )

    def losses(self, batch):
        batch.note("images", float(len(batch.labels)))
        return {"ce": batch.supervised(), "kd": batch.kd()}

@kdbench.hookimpl
def kdbench_methods():
    return [Staged]
"""


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    return Place(tmp_path / "place").with_teachers_of(finished)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WATCHED", str(tmp_path / "watched"))
    write_plugin(tmp_path / "site", "watcher", WATCHER)
    return write_plugin(tmp_path / "site", "staged", METHOD)


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_watchers_and_the_screen_are_told_once_a_phase(executor: str, place: Place, site: Path, tmp_path: Path) -> None:
    with installed(site):
        outcome = kdbench("run", *place.cells("staged", 1), "--threads", 1, "--executor", executor)
    assert outcome.code == 0, outcome
    seen = [json.loads(line) for line in (tmp_path / "watched").read_text(encoding="utf-8").splitlines()]
    assert [report["phase"] for report in seen] == ["early", "late"]
    assert all(report["losses"].keys() == {"ce", "kd", "total"} for report in seen)
    assert all(report["metrics"]["images"] > 0 for report in seen)
    told = [line for line in outcome.out.splitlines() if "first step" in line]
    assert len(told) == 2
    for line, report in zip(told, seen, strict=True):
        terms = [f"{name} {report['losses'][name]:.4g} x {report['weights'][name]:.4g}" for name in ("ce", "kd")]
        images = f"images {report['metrics']['images']:.4g}"
        assert line == f"{report['run_id']} {report['phase']}, first step: {', '.join([*terms, images])}"


def test_a_watcher_that_fails_costs_no_run(place: Place, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLS", "1")
    with installed(site):
        outcome = kdbench("run", *place.cells("staged", 1), "--threads", 1)
    assert outcome.code == 0, outcome
    told = "plugin 'watcher': kdbench_phase_started failed: RuntimeError: fell over; the runs go on without it"
    assert outcome.out.count(told) == 1


def test_numbers_that_are_none_are_told_in_words() -> None:
    report = StepReport(
        run_id="r",
        phase="p",
        losses={"ce": None, "kd": 2.0, "total": None},
        weights={"ce": 0.5, "kd": None},
        metrics={"gate": None, "share": 0.25},
    )
    event = Event.from_line(of_phase(report).to_line())
    assert event is not None
    out = io.StringIO()
    with redirect_stdout(out), Reporter([SimpleNamespace()]) as reporter:  # type: ignore[list-item]
        reporter.see(event)
        reporter.see(Event("phase", {"run_id": "something a plugin printed"}))
    line = "r p, first step: ce not finite x 0.5, kd 2 x not finite, gate not finite, share 0.25\n"
    assert out.getvalue() == line
