"""The largest networks fit into an ordinary machine's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "large_networks.py"


@pytest.mark.slow
@pytest.mark.parametrize(("case", "limit"), [("step", 6.0), ("convnext_l", 20.0), ("efficientnet_l2", 20.0)])
def test_peak_memory(case: str, limit: float) -> None:
    command = [sys.executable, SCRIPT, "--case", case]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    assert 0 < int(run.stdout) / 2**30 < limit
