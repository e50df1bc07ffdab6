"""Between the driver and the engines: all that an engine is given, and all that is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from kdbench.engine import Needs
from kdbench.execution.events import Event
from kdbench.execution.jobs import Ended, Job, Settings
from kdbench.method import Options


class Executor(Protocol):
    """An engine that runs jobs: each is one command, :meth:`Job.command`, in a process of its own.

    How it ended is a hint, see :class:`Ended`; what was done, the driver reads from the store.
    """

    def submit(self, job: Job) -> None:
        """Start a job, or queue it."""
        ...

    def knows(self, job: Job) -> bool:
        """Return whether a job, or a part of it, is under way here already: an earlier command may have started it.

        Such a job is submitted even while it holds its runs; the engine then waits for it and starts nothing.
        """
        ...

    @property
    def running(self) -> int:
        """Number of jobs under way, those that are queued included."""
        ...

    def wait(self, seconds: float | None = None) -> Ended | None:
        """Wait for the next job to end, passing on events meanwhile.

        Args:
            seconds: About how long; None = until one ends.

        Returns:
            How it ended; None if none has in this time.
        """
        ...

    def cancel(self) -> None:
        """Ask all jobs to save and stop; :meth:`wait` then returns them. Asked again, they stop at once."""
        ...

    def close(self) -> None:
        """Let go of what the engine holds in this process; called once, when no more jobs are waited for."""
        ...


def _not_in_this_process(job: Job) -> None:
    raise NotImplementedError(f"{job.name}: no way of doing jobs in this process was given")


def _one_core(_job: Job) -> Needs:
    return Needs(gpus=0, cpus=1, memory=2**30, seconds=3600.0)


@dataclass(frozen=True)
class Opening:
    """What an engine is opened with.

    Args:
        settings: Where and how jobs run; the first argument of :meth:`Job.command`.
        on_event: Sees the events of all workers, from :meth:`Executor.wait`.
        options: Of the engine, an instance of its ``options_type``.
        jobs: Most workers at a time.
        patience: Seconds without an event after which a running worker hangs and is killed; 0 = wait for ever.
            Training sends one about once a second.
        needs: Returns what a job asks of its machine, options of the engine aside.
        work_here: Does a job in this process.
    """

    settings: Settings
    on_event: Callable[[Event], None]
    options: Options = field(default_factory=Options)
    jobs: int = 1
    patience: float = 0.0
    needs: Callable[[Job], Needs] = _one_core
    work_here: Callable[[Job], None] = _not_in_this_process
