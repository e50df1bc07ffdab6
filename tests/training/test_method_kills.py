"""Every built-in method, killed inside each of its phases and started again, ends in the bits of an undisturbed run."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from kdbench.registry import load

EPOCHS = 3
BUILT_IN = [m.name for m in load().methods.values() if m.__module__.startswith("kdbench.methods.")]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killed_after(steps: int, work: Callable[[Callable[[], bool]], object]) -> bool:
    """Run ``work`` in a child that kills itself after some steps, and return whether it came to that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which these children do not use
        pid = os.fork()
    if not pid:
        left = [steps]

        def stop() -> bool:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        try:
            work(stop)
        finally:
            os._exit(1)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("method", BUILT_IN)
def test_killed_in_each_phase(lab: Any, method: str) -> None:
    spec = lab.spec_for(method, lab.anchor(schedule__epochs=EPOCHS))
    (whole,) = lab.train([spec], "whole")
    assert whole.lane.failure is None
    assert not whole.lane.diverged
    phases = [report.phase for report in whole.lane.history]
    assert set(phases) == {phase.name for phase in whole.lane.phases}
    for epoch in range(len(phases)):
        # Two steps into the epoch behind the newest checkpoint; then that epoch to its end and a step further.
        assert killed_after(2, lambda stop: lab.train([spec], "killed", should_stop=stop))
        last = epoch == len(phases) - 1
        assert last or killed_after(lab.steps + 1, lambda stop: lab.train([spec], "killed", should_stop=stop))
    (resumed,) = lab.train([spec], "killed")
    assert lab.digest(resumed.lane) == lab.digest(whole.lane)
