"""The README's performance section is what the committed measurements say, and says so where a target is missed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def benchmark_script(name: str) -> ModuleType:
    """Return a script of the benchmarks, which are no package."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "tests" / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report, run = benchmark_script("report"), benchmark_script("run")


def line(name: str, subject: str, measured: float, **more: Any) -> dict[str, Any]:
    plain = {"low": measured, "high": measured, "unit": "x", "at_least": None, "at_most": None, "passed": None}
    return {"name": name, "subject": subject, "measured": measured, **plain, **more}


def result(*lines: dict[str, Any]) -> dict[str, Any]:
    versions = dict.fromkeys(("kdbench", "python", "torch", "torchvision", "numpy"), "1.0")
    return {
        "measured_on": ["2025-01-01"],
        "environment": {"machine": "box (2 cores)", **versions},
        "missing": ["micro"],
        "sheets": [{"title": "Sharing", "about": "", "lines": list(lines)}],
    }


def test_the_readme_shows_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    kept = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))
    assert report.put(readme, report.section(kept)) == readme


def test_a_column_for_each_subject_and_a_row_for_each_name() -> None:
    text = report.section(
        result(
            line("gain", "a", 2.5, low=2.0, high=3.0, at_least=2.0, passed=True),
            line("gain", "b", 1.5, at_least=2.0, passed=False),
            line("time", "b", 1234.5, unit="ms"),
        )
    )
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")]
    assert table[0] == ["", "a", "b"]
    assert table[2:] == [
        ["gain", "2.50 (2.00..3.00); ≥ 2: pass", "1.50; ≥ 2: **FAIL**"],
        ["time", "", "1,234 ms"],
    ]
    said = " ".join(text.split())  # lines end anywhere
    assert "1 of 2 targets are met (FAIL marks the others)" in said
    assert "`make bench` on box (2 cores), 2025-01-01: kdbench 1.0," in said
    assert "GPU: unmeasured. Not run there: micro." in said


@pytest.mark.parametrize(
    "readme", ["", report.START, report.END + report.START, f"{report.START}{report.END}{report.START}"]
)
def test_a_readme_without_its_marks_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        report.put(readme, "text")


def test_what_stands_around_the_section_stays() -> None:
    readme = f"before\n{report.START}\nold\n{report.END}\nafter\n"
    assert report.put(readme, "new") == f"before\n{report.START}\nnew\n{report.END}\nafter\n"


def test_measurements_of_two_machines_are_not_joined() -> None:
    """The machine of the last one counts; threads and commit may differ."""
    ran = [("a", "old", 2, "2025-01-01"), ("b", "new", 2, "2025-01-02"), ("c", "new", 1, "2025-01-03")]
    made = [
        {
            "name": name,
            "environment": {"machine": machine, "threads": threads, "commit": name},
            "measured_at": f"{day}T",
        }
        for name, machine, threads, day in ran
    ]
    kept = run.merged(made)
    assert [sheet["name"] for sheet in kept["sheets"]] == ["b", "c"]
    assert kept["environment"] == {"machine": "new"}
    assert kept["missing"] == list(run.BENCHMARKS)
    assert kept["measured_on"] == ["2025-01-02", "2025-01-03"]


def test_every_benchmark_is_a_script() -> None:
    folder = ROOT / "tests" / "bench"
    assert [name for name in run.BENCHMARKS if not (folder / f"{name}.py").is_file()] == []
