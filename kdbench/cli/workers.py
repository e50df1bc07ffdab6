"""By how many workers, and how, the runs of a command are carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from kdbench.cli.arguments import available_threads


@dataclass(frozen=True)
class Workers:
    """How work is shared out.

    Args:
        threads: CPU threads of each worker.
        jobs: Workers at a time.
        lanes: Most runs that a worker trains together.
        inline: Whether the command's own process is the only worker.
    """

    threads: int
    jobs: int
    lanes: int
    inline: bool = False

    @classmethod
    def of(cls, threads: int | None, jobs: int, lanes: int, executor: str = "local") -> Self:
        """Return the workers of a command; without a number of threads, they share the cores."""
        return cls(threads or max(1, available_threads() // jobs), jobs, lanes, executor == "inline")

    def start(self, measured: Callable[[], float]) -> float:
        """Return the seconds a worker takes to start, as ``measured``; none where it runs already."""
        return 0.0 if self.inline else measured()

    def __str__(self) -> str:
        """As the plan says it: ``2 jobs of 1 thread, at most 8 runs each``."""
        jobs, threads, runs = _count(self.jobs, "job"), _count(self.threads, "thread"), _count(self.lanes, "run")
        return f"{jobs} of {threads}, at most {runs} each"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
