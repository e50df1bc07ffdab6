"""From parsed options to workers: how many, where, with what share of cores and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdbench.cli.arguments import available_threads

OPTIONS = ("threads", "jobs", "lanes", "memory")


@dataclass(frozen=True)
class Workers:
    """The workers of a command.

    Args:
        devices: Devices they are spread over, the first ones first.
        jobs: Workers at a time.
        threads: CPU threads of each.
        lanes: Runs of each at a time; None = as many as fit the memory.
        memory: Memory of each device for all its workers in GiB; None = a share of what is free.
        inline: Whether the command's own process is the only worker.
    """

    devices: tuple[Any, ...]
    jobs: int
    threads: int
    lanes: int | None
    memory: float | None
    inline: bool = False

    def start(self, measured: Callable[[], float]) -> float:
        """Return the seconds a worker takes to start, as ``measured``; none where it runs already."""
        return 0.0 if self.inline else measured()

    def __str__(self) -> str:
        """As the plan says it: ``2 jobs of 1 thread``."""
        return f"{_count(self.jobs, 'job')} of {_count(self.threads, 'thread')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def workers_of(
    device: str, threads: int | None, jobs: int | None, lanes: int | None, memory: float | None, *, inline: bool = False
) -> Workers:
    """Return the workers of a command; unless it says otherwise, one for each device, and they share the cores."""
    from kdbench.training.devices import resolve_devices

    devices = resolve_devices(device)
    jobs = jobs or len(devices)
    return Workers(devices, jobs, threads or max(1, available_threads() // jobs), lanes, memory, inline)


def room_for(workers: Workers, plan: Any, registry: Any) -> Any:
    """Return the room that the workers have for the runs of a plan.

    Raises:
        ConfigError: If a budget of the user's own is more than a device has, or too small for a single run.
    """
    from kdbench.cohort_memory import Estimator
    from kdbench.execution.room import FREE_SHARE, Room
    from kdbench.training.devices import free_memory
    from kdbench.training.environment import Machine

    sharing = -(-workers.jobs // len(workers.devices))  # workers of one device
    base = Machine(workers.devices[0], workers.threads).base_memory()
    origin = f"{FREE_SHARE:.0%} of what is free".replace("%", " %")
    size = FREE_SHARE * min(map(free_memory, workers.devices))
    if workers.memory is not None:
        origin, size = f"--memory {workers.memory:g}", workers.memory * 2**30
    shared = f" / {sharing} workers" if sharing > 1 else ""
    room = Room(Estimator(plan, registry, base), int(size / sharing), origin + shared, workers.jobs, workers.lanes)
    if workers.memory is not None:
        _check_memory(workers, room, plan)
    return room


def _check_memory(workers: Workers, room: Any, plan: Any) -> None:
    from kdbench.errors import ConfigError
    from kdbench.memory import spoken_size
    from kdbench.training.devices import memory_of

    assert workers.memory is not None
    if workers.memory * 2**30 > (there := min(map(memory_of, workers.devices))):
        raise ConfigError(f"--memory {workers.memory:g}: more GiB than a device has ({spoken_size(there)}); lower it")
    needs = {spec.run_id: room.estimator.cohort([spec]) for spec in plan.runs}
    largest = max(needs, key=lambda run_id: needs[run_id])
    if needs[largest] > room.budget:
        raise ConfigError(
            f"--memory {workers.memory:g}: leaves {spoken_size(room.budget)} for each worker, run {largest} alone is "
            f"estimated to need {spoken_size(needs[largest])}; give more, or use fewer --jobs"
        )
