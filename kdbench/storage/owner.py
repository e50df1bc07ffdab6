"""Who is at a run: a process, named so that another one can tell whether it is still there."""

from __future__ import annotations

import os
import platform
import secrets
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import Field

from kdbench.config.schema import Section

JOB_VARIABLES = ("KDBENCH_JOB", "SLURM_JOB_ID")  # where engines say which job of theirs a process belongs to


class Owner(Section):
    """A process that has claimed a run.

    Args:
        host: Name of its machine, for people.
        place: Tells its machine, boot and process namespace from all others: within one, a pid says who lives.
        pid: Its number there.
        born: When it began, in ticks since the boot; a pid is used again. 0 = not known.
        job: The engine's name for the job it belongs to; empty without one.
        token: Drawn for this claim.
    """

    schema_version: Literal[1] = 1
    host: str
    place: str
    pid: int = Field(ge=1, lt=2**31)
    born: int = 0
    job: str = ""
    token: str

    @classmethod
    def me(cls) -> Owner:
        """Return this process, with a new token."""
        pid = os.getpid()
        job = next(filter(None, map(os.environ.get, JOB_VARIABLES)), "")
        return cls(
            host=platform.node(), place=here(), pid=pid, born=_born(pid), job=job or "", token=secrets.token_hex(8)
        )

    @property
    def is_here(self) -> bool:
        """Whether its pid means something in this process."""
        return self.place == here()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended; of a process elsewhere nobody knows."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass  # somebody else's: it lives
        born = _born(self.pid)
        if born < 0:
            return True  # it only waits to be buried
        return 0 not in {self.born, born} and self.born != born  # another process by now, if both births can be told


@cache
def here() -> str:
    """Return what the processes have in common that see each other by their pids."""
    return f"{platform.node()}/{_read('/proc/sys/kernel/random/boot_id')}/{namespace()}"


def here_hash() -> str:
    """Return a short name for :func:`here`: nodes may share a folder, and nearly all have the same pid namespace."""
    return sha256(here().encode()).hexdigest()[:12]


def namespace() -> int:
    """Return which process namespace this process is in; 0 where there are none. A container has its own."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _born(pid: int) -> int:
    """Return when a living process began, in ticks since the boot; -1 for a dead one, 0 where nobody can tell."""
    state, *fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split() or ["?"]  # before it the name: any text
    if state in {"Z", "X"}:
        return -1
    return int(fields[18]) if len(fields) > 18 else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
