"""Where the time of a run goes: seconds by part, from the device's own clock, which no step waits for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

Part = Literal["data", "teacher", "student", "method", "evaluation"]
T = TypeVar("T")


class Clock:
    """Charges time to the parts of a run; this one for a CPU, where what was called is done when it returns."""

    def __init__(self) -> None:
        self._sums: dict[Part, float] = {}
        self._last: Any = None

    def now(self) -> Any:
        """Return this moment, for :meth:`charge` of any clock of the device."""
        return time.perf_counter()

    def charge(self, part: Part, begin: Any, end: Any, share: float = 1.0) -> None:
        """Add the time between two moments, or a share in [0, 1] of it, to a part."""
        self._add(part, (end - begin) * share)

    def start(self) -> None:
        """Begin the first lap."""
        self._last = self.now()

    def lap(self, part: Part) -> None:
        """Charge a part with the time since the last lap ended, and begin the next one."""
        now = self.now()
        self.charge(part, self._last, now)
        self._last = now

    def timed(self, part: Part, call: Callable[[], T]) -> T:
        """Return what a call returns, and charge a part with it."""
        self.start()
        result = call()
        self.lap(part)
        return result

    def settled(self) -> dict[Part, float]:
        """Return the seconds charged since the last call; waits for the device to reach the last moment."""
        sums, self._sums = self._sums, {}
        return sums

    def _add(self, part: Part, seconds: float) -> None:
        self._sums[part] = self._sums.get(part, 0.0) + seconds


class CudaClock(Clock):
    """The same for a GPU, which is behind the host: moments are events in its stream, read when they have passed."""

    MOST = 4096  # open charges, above which those that have passed are read

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._open: deque[tuple[Part, torch.cuda.Event, torch.cuda.Event, float]] = deque()

    def now(self) -> torch.cuda.Event:
        """Return an event recorded in the stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def charge(self, part: Part, begin: Any, end: Any, share: float = 1.0) -> None:
        """Note the charge; it is read later."""
        self._open.append((part, begin, end, share))
        while len(self._open) > self.MOST and self._open[0][2].query():  # type: ignore[no-untyped-call]
            self._read()

    def settled(self) -> dict[Part, float]:
        """Return the seconds charged since the last call; waits for the device, so it is for the end of an epoch."""
        while self._open:
            self._open[0][2].synchronize()
            self._read()
        return super().settled()

    def _read(self) -> None:
        part, begin, end, share = self._open.popleft()
        self._add(part, begin.elapsed_time(end) / 1000 * share)


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else Clock()
