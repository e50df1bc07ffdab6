"""The largest networks fit into an ordinary machine's memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "large_networks.py"


@pytest.mark.slow
@pytest.mark.parametrize(("case", "limit"), [("step", 6.0), ("convnext_l", 20.0), ("efficientnet_l2", 20.0)])
def test_peak_memory(case: str, limit: float) -> None:
    run = subprocess.run([sys.executable, SCRIPT, case], capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    found = re.search(r"peak memory ([\d.]+) GiB", run.stdout)
    assert found is not None
    assert float(found[1]) < limit
