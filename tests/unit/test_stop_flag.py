"""A worker that is told to stop: at once counts once, and later is the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from kdbench.execution.worker import SAME_REQUEST_SECONDS, StopFlag


@pytest.fixture
def kept() -> Iterator[None]:
    """Restore what a flag that gives up does to a signal."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(("pause", "deaths"), [(0.9 * SAME_REQUEST_SECONDS, 0), (1.1 * SAME_REQUEST_SECONDS, 1)])
def test_the_same_request_may_come_twice(
    pause: float, deaths: int, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, killed = [100.0], list[int]()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("os.kill", lambda _process, number: killed.append(number))
    flag = StopFlag()
    assert not flag()
    flag._handle(signal.SIGUSR1, None)
    assert flag()
    clock[0] += pause
    flag._handle(signal.SIGUSR1, None)
    assert killed == [signal.SIGUSR1] * deaths
