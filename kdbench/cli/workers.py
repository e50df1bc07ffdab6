"""From parsed options to workers: how many, where, with what share of cores and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.cli.arguments import available_threads

if TYPE_CHECKING:
    from kdbench.engine import Engine, Where

OPTIONS = ("threads", "jobs", "lanes", "memory")
CLUSTER_THREADS = 4  # of a worker on another machine; how many cores that has is not known
CLUSTER_MEMORY = 16 * 2**30  # of its device: what small GPUs have


@dataclass(frozen=True)
class Workers:
    """The workers of a command.

    Args:
        devices: Devices they are spread over, the first ones first.
        jobs: Workers at a time.
        threads: CPU threads of each.
        lanes: Runs of each at a time; None = as many as fit the memory.
        memory: Memory of each device for all its workers in GiB; None = a share of what is free.
        where: Where they are; the command's own ``process`` is the only worker there.
        per_run: Devices that train each run together.
    """

    devices: tuple[Any, ...]
    jobs: int
    threads: int
    lanes: int | None
    memory: float | None
    where: Where = "machine"
    per_run: int = 1

    @property
    def places(self) -> tuple[str, ...]:
        """The devices of each worker, as its command names them; workers share the CPU."""
        names = [str(device) for device in self.devices]
        if names == ["cpu"] or self.where == "cluster":  # there, each worker sees its own devices alone
            return tuple(names)
        starts = range(0, len(names) - self.per_run + 1, self.per_run)
        return tuple(",".join(names[start : start + self.per_run]) for start in starts)

    def start(self, measured: Callable[[], float]) -> float:
        """Return the seconds a worker takes to start, as ``measured``; none where it runs already."""
        return 0.0 if self.where == "process" else measured()

    def __str__(self) -> str:
        """As the plan says it: ``2 jobs of 1 thread``."""
        each = f"{self.per_run} devices with " if self.per_run > 1 else ""
        return f"{_count(self.jobs, 'job')} of {each}{_count(self.threads, 'thread')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def workers_of(
    device: str, threads: int | None, jobs: int | None, lanes: int | None, memory: float | None,
    engine: Engine | None = None, *, per_run: int = 1,
) -> Workers:  # fmt: skip
    """Return the workers of a command; unless it says otherwise, one for each device, and they share the cores.

    Where several devices train a run together, there is a worker for every so many of them, with one run at a time.

    Raises:
        ConfigError: If there are not enough devices, or the worker cannot have several.
    """
    where = engine.where if engine else "machine"
    if per_run > 1:
        _check_team(per_run, lanes, where)
        lanes = 1
    devices = _devices(device, where, per_run)
    jobs = jobs or (engine.jobs if engine else None) or max(1, len(devices) // per_run)
    share = CLUSTER_THREADS if where == "cluster" else max(1, available_threads() // (jobs * per_run))
    return Workers(devices, jobs, threads or share, lanes, memory, where, per_run)


def _check_team(per_run: int, lanes: int | None, where: Where) -> None:
    from kdbench.errors import ConfigError

    if where == "process":
        raise ConfigError(f"--devices-per-run {per_run}: --executor inline has one process; leave it out")
    if (lanes or 1) > 1:
        raise ConfigError(
            f"--devices-per-run {per_run}: --lanes {lanes}: several devices train one run at a time; leave --lanes out"
        )


def _devices(device: str, where: Where, per_run: int) -> tuple[Any, ...]:
    from kdbench.execution.members import all_devices, devices_of_team
    from kdbench.training.devices import devices_elsewhere, resolve_devices

    if where == "cluster":
        return devices_elsewhere(device)
    if per_run == 1:
        return resolve_devices(device)
    devices_of_team(device, per_run)
    return all_devices(device)


def machine_of(workers: Workers) -> Any:
    """Return the machine that a worker finds; of one that is not this one, no more than its kind of device is known."""
    from kdbench.training.environment import Machine, set_up

    device = workers.devices[0]
    return Machine(device, workers.threads) if workers.where == "cluster" else set_up(str(device), workers.threads)


def room_for(workers: Workers, plan: Any, registry: Any) -> Any:
    """Return the room that the workers have for the runs of a plan.

    Raises:
        ConfigError: If a budget of the user's own is more than a device has, or too small for a single run.
    """
    from kdbench.cohort_memory import Estimator
    from kdbench.execution.room import Room
    from kdbench.training.environment import Machine

    sharing = 1  # processes of one device
    if workers.where != "cluster":
        sharing = -(-workers.jobs * workers.per_run // len(workers.devices))
    base = Machine(workers.devices[0], workers.threads).base_memory()
    size, origin = _budget(workers)
    shared = f" / {sharing} workers" if sharing > 1 else ""
    room = Room(Estimator(plan, registry, base), int(size / sharing), origin + shared, workers.jobs, workers.lanes)
    if workers.memory is not None:
        _check_memory(workers, room, plan)
    return room


def _budget(workers: Workers) -> tuple[float, str]:
    """Return the memory of each device for its workers in bytes, and where the number comes from."""
    from kdbench.execution.room import FREE_SHARE
    from kdbench.training.devices import free_memory

    if workers.memory is not None:
        return workers.memory * 2**30, f"--memory {workers.memory:g}"
    if workers.where == "cluster":
        return CLUSTER_MEMORY, "unless --memory says what a device has"
    return FREE_SHARE * min(map(free_memory, workers.devices)), f"{FREE_SHARE:.0%} of what is free".replace("%", " %")


def _check_memory(workers: Workers, room: Any, plan: Any) -> None:
    from kdbench.errors import ConfigError
    from kdbench.memory import spoken_size
    from kdbench.training.devices import memory_of

    assert workers.memory is not None
    if workers.where != "cluster" and workers.memory * 2**30 > (there := min(map(memory_of, workers.devices))):
        raise ConfigError(f"--memory {workers.memory:g}: more GiB than a device has ({spoken_size(there)}); lower it")
    needs = {spec.run_id: room.estimator.cohort([spec]) for spec in plan.runs}
    largest = max(needs, key=lambda run_id: needs[run_id])
    if needs[largest] > room.budget:
        raise ConfigError(
            f"--memory {workers.memory:g}: leaves {spoken_size(room.budget)} for each worker, run {largest} alone is "
            f"estimated to need {spoken_size(needs[largest])}; give more, or use fewer --jobs"
        )
