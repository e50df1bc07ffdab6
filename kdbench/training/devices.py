"""The devices that workers are spread over, and what memory they have free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kdbench.errors import ConfigError
from kdbench.training.environment import resolve_device

_GROUP = Path("sys/fs/cgroup")  # of a container


def resolve_devices(names: str) -> tuple[torch.device, ...]:
    """Return the devices that workers are spread over.

    Args:
        names: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` (every GPU this process sees), ``cuda:N``, or
            several GPUs with commas between them.

    Raises:
        ConfigError: If one is not there, is named twice, or is of another type than the others.
    """
    if names == "cuda" and (count := torch.cuda.device_count()):
        return tuple(torch.device("cuda", index) for index in range(count))
    devices = tuple(_one_of_them(resolve_device(name.strip())) for name in names.split(","))
    if len({device.type for device in devices}) > 1:
        raise ConfigError(
            f"--device {names}: devices of two types, and results depend on the type; name devices of one type"
        )
    if len(set(devices)) < len(devices):
        raise ConfigError(f"--device {names}: names a device twice; name each once, and let --jobs share them")
    return devices


def devices_elsewhere(name: str) -> tuple[torch.device]:
    """Return the device of workers on other machines, where each sees those of its own job alone.

    Args:
        name: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If it is anything else: what this machine has says nothing of another one.
    """
    if name not in {"cpu", "cuda"}:
        raise ConfigError(
            f"--device {name}: workers of this executor run on other machines, each with devices of its own; say which "
            "kind: --device cpu or --device cuda"
        )
    return (torch.device(name),)


def _one_of_them(device: torch.device) -> torch.device:
    """Return a device by its number: ``cuda`` is the first GPU."""
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def memory_of(device: torch.device) -> int:
    """Return the memory of a device in bytes (of the machine, for the CPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device, system: Path = Path("/")) -> int:
    """Return the memory of a device that nobody uses, in bytes; for the CPU, what a container may still take.

    Args:
        device: The device.
        system: Where the system's files about memory are; where they are not, all the machine's memory counts as free.
    """
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    found = (_available(system), _allowed(system), memory_of(device))
    return min(size for size in found if size is not None)


def _allowed(system: Path) -> int | None:
    """Return what a container's limit leaves; files that are only cached count as free."""
    group = system / _GROUP
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or a limit of "max"
        return None
    return max(0, limit - used + (_entry(group / "memory.stat", "inactive_file") or 0))


def _available(system: Path) -> int | None:
    found = _entry(system / "proc/meminfo", "MemAvailable:")
    return None if found is None else 1024 * found


def _entry(path: Path, key: str) -> int | None:
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return next(int(words[1]) for words in lines if words[:1] == [key])
    except (OSError, StopIteration, ValueError, IndexError):
        return None
