"""Inside one of several processes that train a run together: its place, its device, and what it says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import torch

from kdbench.errors import ConfigError, KdbenchError
from kdbench.training.devices import resolve_devices
from kdbench.training.environment import Machine, set_up
from kdbench.training.team.members import PATIENCE, Fallen, join

_MARK = "TORCHELASTIC_RUN_ID"  # in the environment of whatever torchrun starts


def started() -> bool:
    """Return whether this process is one of several that torchrun has started."""
    return _MARK in os.environ


def leads() -> bool:
    """Return whether this process speaks for a run: it is its only one, or the first of several."""
    return not started() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let the first process alone say what is wrong, since all find the same; one whose own part failed says so."""
    try:
        yield
    except KdbenchError as error:
        if leads() or isinstance(error, Fallen):
            raise
        raise SystemExit(error.exit_code) from error


def machine_of(device: str, threads: int, devices_per_run: int) -> Machine:
    """Return this process's machine, with the team it belongs to if its runs have several devices.

    Args:
        device: As the command names it: the device, or those of the whole team.
        threads: CPU threads of each process.
        devices_per_run: Size of the team.

    Raises:
        ConfigError: If there are fewer devices or more processes than that.
    """
    if devices_per_run == 1:
        return set_up(device, threads)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size != devices_per_run:
        raise ConfigError(
            f"--devices-per-run {devices_per_run}: but torchrun has started {size} processes; make the two agree"
        )
    from torch.distributed.rendezvous import rendezvous

    machine = set_up(str(devices_of_team(device, size)[rank]), threads)
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return replace(machine, team=join(machine.device, store, rank, size))


def all_devices(device: str) -> tuple[torch.device, ...]:
    """Return the devices of a name, of which ``auto`` means all GPUs, if there are any."""
    return resolve_devices("cuda" if device == "auto" and torch.cuda.is_available() else device)


def devices_of_team(device: str, size: int) -> tuple[torch.device, ...]:
    """Return the device of each member: the first ones of those named, or the CPU for all.

    Args:
        device: ``auto`` (GPUs, if there are any), ``cpu``, ``cuda``, or GPUs with commas between them.
        size: Number of members.

    Raises:
        ConfigError: If there are not enough.
    """
    devices = all_devices(device)
    if devices[0].type == "cpu":
        return devices * size
    if len(devices) < size:
        raise ConfigError(
            f"--devices-per-run {size}: --device {device} is {len(devices)} GPU{'s' * (len(devices) > 1)}; name more, "
            "or use fewer for each run"
        )
    return devices[:size]
