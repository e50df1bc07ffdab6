"""How much time a command has left: from what was expected of it, corrected by how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from kdbench.training.runtime import RunTime

TRUST = 0.05  # share of the command after which what was seen counts as much as what was expected


class TimeLeft:
    """Follows all runs of a command.

    Args:
        runs: Expected time of each run to do, missing teachers' included, by run id.
        wall: Expected seconds of the whole command; None = nothing was measured, the times say proportions only.
        clock: Seconds that pass.
    """

    def __init__(
        self, runs: Mapping[str, RunTime], wall: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runs, self._wall, self._clock = dict(runs), wall, clock
        self._done: dict[str, float] = {}
        self._before: dict[str, float] = {}  # what an earlier start had done of a run
        # Sums of all three, kept as they change: asked for at every event, over as many runs as a fleet has.
        self._all, self._passed, self._earlier = sum(run.alone for run in self._runs.values()), 0.0, 0.0
        self._started = clock()

    def reached(self, run_id: str, phase: str, epoch: int, epochs: int, within: float = 1.0) -> None:
        """Note where a run stands.

        Args:
            run_id: The run.
            phase: The phase that is under way.
            epoch: Its epoch, from 0. The first one that is seen of a run is where this start of it began.
            epochs: Epochs of the phase.
            within: Share of the epoch that is done, in [0, 1].
        """
        if (run := self._runs.get(run_id)) is not None:
            self._began_at(run_id, _done(run, phase, epoch / epochs))
            self._is_at(run_id, max(_done(run, phase, (epoch + within) / epochs), self._done.get(run_id, 0.0)))

    def ended(self, run_id: str) -> None:
        """Note the end of a run, whatever end."""
        if run_id in self._runs:
            self._began_at(run_id, 0.0)
            self._is_at(run_id, self._runs[run_id].alone)

    def _began_at(self, run_id: str, seconds: float) -> None:
        if run_id not in self._before:
            self._before[run_id] = seconds
            self._earlier += seconds

    def _is_at(self, run_id: str, seconds: float) -> None:
        self._passed += seconds - self._done.get(run_id, 0.0)
        self._done[run_id] = seconds

    @property
    def share(self) -> float:
        """Share of this start's work that is done, in [0, 1]."""
        return min(1.0, (self._passed - self._earlier) / self._whole) if self._whole > 0 else 1.0

    @property
    def seconds(self) -> float | None:
        """Seconds left; None while nothing is known.

        The pace so far is that of what passed, beside a twentieth of the command at the pace that was expected.
        """
        passed, share = self._clock() - self._started, self.share
        if self._whole <= 0:
            return None
        if self._wall is None:
            return passed * (1 - share) / share if share else None
        expected = self._wall * self._whole / (self._whole + self._earlier)
        pace = (passed + TRUST * expected) / (share + TRUST)  # seconds of the whole
        return pace * (1 - share)

    @property
    def _whole(self) -> float:
        return self._all - self._earlier


def _done(run: RunTime, phase: str, share: float) -> float:
    """Return the expected seconds of a run up to a share of one of its phases."""
    passed = 0.0
    for each in run.phases:
        if each.name == phase:
            return passed + share * each.alone
        passed += each.alone
    return passed
