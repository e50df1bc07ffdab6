"""The inline engine: jobs run in this process, one after the other; for debuggers, notebooks and tests."""

from __future__ import annotations

from collections.abc import Callable

from kdbench.engine import Engine
from kdbench.errors import PluginError
from kdbench.execution.jobs import DONE, Ended, Job
from kdbench.execution.seam import Opening
from kdbench.hooks import hookimpl
from kdbench.storage.lease import LeaseLost
from kdbench.store import RunBusy
from kdbench.training.trainer import Interrupted


class InlineExecutor:
    """Runs a job when it is waited for.

    Args:
        run: Does a job in this process; its other errors reach the caller unchanged.
    """

    def __init__(self, run: Callable[[Job], None]) -> None:
        self.run = run
        self._waiting: list[Job] = []

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._waiting.append(job)

    def knows(self, job: Job) -> bool:  # noqa: ARG002
        """Return False: what another command has started is not seen from here."""
        return False

    @property
    def running(self) -> int:
        """Number of queued jobs."""
        return len(self._waiting)

    def wait(self, seconds: float | None = None) -> Ended:  # noqa: ARG002 (its own process cannot do both)
        """Run the next job, however long it takes.

        One that was stopped, or that another process is at, ends as it would in a worker.

        Raises:
            PluginError: If a plugin ends the process, which would look like success.
        """
        job = self._waiting.pop(0)
        try:
            self.run(job)
        except (RunBusy, Interrupted, LeaseLost) as error:
            return Ended(job, error.exit_code, f"kdbench: {error}")
        except SystemExit as error:
            raise PluginError(
                f"{job.name}: a plugin ended the process (exit code {error.code}); repair it, or find it with "
                "kdbench plugin check"
            ) from error
        return Ended(job, DONE, "")

    def cancel(self) -> None:
        """Forget the queued jobs."""
        self._waiting.clear()

    def close(self) -> None:
        """Nothing is held."""


def _open(opening: Opening) -> InlineExecutor:
    return InlineExecutor(opening.work_here)


@hookimpl
def kdbench_executors() -> list[Engine]:
    """Return the engine."""
    return [
        Engine("inline", "in the command's own process, one job after the other; for debuggers", _open, where="process")
    ]
