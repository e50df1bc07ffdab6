"""Where a run runs: the five things equal bits depend on, set and recorded."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch

from kdbench.errors import ConfigError
from kdbench.records import Environment
from kdbench.training.safe_mode import quiet_about_tf32
from kdbench.training.team.members import ALONE, Team


@dataclass(frozen=True)
class Machine:
    """Device and thread count of this process, and with whom it works.

    Args:
        device: Where networks run.
        threads: CPU threads torch uses.
        team: The processes that train the same run, each on a device of its own.
    """

    device: torch.device
    threads: int
    team: Team = ALONE

    def describe(self, precision: str, memory_formats: Mapping[str, str] = MappingProxyType({})) -> Environment:
        """Return the environment as records state it.

        Args:
            precision: Of the networks.
            memory_formats: Of each network by name, ``channels_last`` or ``contiguous_format``.
        """
        return Environment(
            python=platform.python_version(),
            torch=str(torch.__version__),
            device=self.device.type,
            threads=self.threads,
            commit=_commit(),
            precision=precision,
            world_size=self.team.size,
            machine=self._name(),
            memory_formats=dict(memory_formats),
        )

    def _name(self) -> str:
        if self.device.type == "cuda":  # which may be one of another machine
            return torch.cuda.get_device_name(self.device) if torch.cuda.is_available() else "unknown"
        return f"{_processor()} ({os.cpu_count()} cores)"

    def base_memory(self) -> int:
        """Return what is in use now in bytes: by this process on a CPU, none of a GPU's memory."""
        if self.device.type == "cuda":
            return 0
        try:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            return self.peak_memory()
        return pages * os.sysconf("SC_PAGE_SIZE")

    def peak_memory(self) -> int:
        """Return the peak memory so far in bytes: of the device, or of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _own_peak()


def _own_peak() -> int:
    """Return the peak memory of this process in bytes.

    What ``getrusage`` says starts, on Linux, from the memory of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def set_up(device: str, threads: int) -> Machine:
    """Choose the device, pin the thread count, and ask for deterministic kernels.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads, >= 1.

    Raises:
        ConfigError: If the device is not there.
    """
    chosen = resolve_device(device)
    torch.set_num_threads(threads)
    if chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # What an anchor calls fp32 is fp32: cuDNN would use TF32 for convolutions.
        with quiet_about_tf32():
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    return Machine(chosen, threads)


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: no such device; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"--device {name}: not supported; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


@cache
def _commit() -> str:
    """Return the commit of the kdbench checkout with '+' if it was changed, or '' for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
