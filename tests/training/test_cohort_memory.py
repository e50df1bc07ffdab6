"""What cohorts really take, in fresh processes, against what is estimated."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "cohort_memory.py"
PAIR = "res20_res8"
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure peaks")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark, whose figures are looked at."""
    monkeypatch.syspath_prepend(BENCH.parent)  # what the benchmarks share lies beside it
    spec = importlib.util.spec_from_file_location("bench_cohort_memory", BENCH)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_estimates_are_near_and_lanes_share_what_they_need_in_passing(bench: ModuleType) -> None:
    one, eight = (bench.measured(str(lanes), PAIR) for lanes in (1, 8))
    for found in (one, eight):
        assert 0.4 < found["estimated"] / found["bytes"] < 2.0, found
    # Nothing shared would be eight times the memory.
    assert eight["bytes"] < 4 * one["bytes"]
    assert eight["estimated"] < 4 * one["estimated"]
