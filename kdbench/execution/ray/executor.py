"""The driver's side of the Ray engine: hand out tasks, pass on what their workers say, tell how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError, TaskCancelledError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdbench.config.loading import read_yaml
from kdbench.errors import ConfigError
from kdbench.execution.attending import MISFIT, Orders, attend
from kdbench.execution.children import LOOK_SECONDS
from kdbench.execution.jobs import STOPPED, Ended, Job
from kdbench.execution.ray import RayOptions
from kdbench.execution.seam import Opening
from kdbench.execution.worker import STOP_SIGNALS

KNOCK_SECONDS = 10.0


class RayExecutor:
    """Runs jobs as tasks of a Ray cluster.

    A node that is lost takes nothing along: Ray starts its tasks again elsewhere, and their runs continue from their
    checkpoints. A worker that crashes is no lost node: its task returns the exit code, and the driver decides.

    Args:
        opening: What engines are opened with; its options are :class:`RayOptions`.
    """

    def __init__(self, opening: Opening) -> None:
        assert isinstance(opening.options, RayOptions)
        self._opening, self._options = opening, opening.options
        _join(self._options)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        # On the driver's node, and again elsewhere if that is lost; what it held then is news, not results.
        self._events = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here})
        own = {name: value for name, value in os.environ.items() if name.startswith("KDBENCH_")}
        self._orders = Orders(Path.cwd(), own, opening.patience, self._events)
        self._task = ray.remote(attend)
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Queue a job; Ray starts it on a node that has what it needs."""
        needs, settings = self._options.over(self._opening.needs(job)), self._opening.settings
        task = self._task.options(
            name=job.name,
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory,
            max_retries=self._options.max_retries,
        )
        self._jobs[task.remote(job.command(settings, settings.devices[0]), self._orders)] = job

    def knows(self, _job: Job) -> bool:
        """Return False: Ray ends what a command has started together with the command."""
        return False

    @property
    def running(self) -> int:
        """Number of jobs under way, those that wait for a node included."""
        return len(self._jobs)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """Wait for the next job to end, passing on events meanwhile."""
        until = None if seconds is None else time.monotonic() + seconds
        while until is None or time.monotonic() < until:
            ended, _ = ray.wait(list(self._jobs), timeout=LOOK_SECONDS)
            self._pass_on()  # what a worker said comes before its end
            if ended:
                return _outcome(self._jobs.pop(ended[0]), ended[0])
        return None

    def cancel(self) -> None:
        """Ask all jobs to save and stop; :meth:`wait` then returns them. Asked again, they stop at once."""
        for task in self._jobs:
            ray.cancel(task, recursive=False)

    def close(self) -> None:
        """Leave the cluster."""
        ray.shutdown()

    def _pass_on(self) -> None:
        with contextlib.suppress(RayError):  # the queue is being started again
            for event in self._events.get_nowait_batch(self._events.qsize()):
                self._opening.on_event(event)


def _outcome(job: Job, task: Any) -> Ended:
    try:
        exit_code, words = ray.get(task)
    except TaskCancelledError:  # before it had a node
        return Ended(job, STOPPED, "")
    except (RayTaskError, RuntimeEnvSetupError) as error:  # kdbench itself cannot be started there
        return Ended(job, MISFIT, f"kdbench: {job.name}: Ray cannot start it: {_line(error)}")
    except RayError as error:  # its node was lost too often, or had no memory left
        return Ended(job, -signal.SIGKILL, f"Ray: {_line(error)}")
    return Ended(job, exit_code, words)


def _line(error: Exception) -> str:
    """Return what an error of Ray says on one line, without the manual that follows."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def _join(options: RayOptions) -> None:
    """Join the cluster, or start one.

    Raises:
        ConfigError: If there is none at the address, it does not let this machine in, or the runtime environment
            cannot be made.
    """
    environment = None if options.runtime_env is None else read_yaml(options.runtime_env)
    where = options.address or "this machine"
    try:
        _knock(options.address or "")
        with _signals_kept():
            ray.init(options.address, runtime_env=environment, log_to_driver=False, logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--executor ray: no cluster at {where} ({_line(error)}); start one with ray start --head, or give "
            "--executor-option address=HOST:PORT"
        ) from error
    except RayError as error:  # a token that is not there, or another one
        raise ConfigError(
            f"--executor ray: {where} cannot be joined ({_line(error)}); with RAY_AUTH_MODE=token the cluster's token "
            "must be here, too (docs/engines/ray.md): copy it, or unset the variable where the cluster has none"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError unless somebody listens at an address; Ray would try for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers of stop signals: Ray puts its own in their place, which would end the driver without a word."""
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
