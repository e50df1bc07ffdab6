"""The short form of the fault campaign: each kind of fault once or a few times, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(900)
def test_nothing_is_lost() -> None:
    """In a process of its own, because it forks: the children have only what it has imported."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("run.py"), "--short"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    never = [row[0] for row in rows if row[1] == "0" and "NOT RUN" not in row[2]]
    kills = [fault for fault in never if "SIGKILL" in fault]  # ten of them hit most places; make faults hits all
    assert [fault for fault in never if fault not in kills] == []
    assert len(kills) < 4
    assert len(rows) > 20
