"""The commands of SLURM that the engine calls itself, and what they print."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.errors import ConfigError

PREFIX = "kdbench_"  # of the names of our arrays; submitit allows letters, digits and "_"
SECONDS = 60.0  # that a command may take
WORDS = 500  # job ids on one command line
# What sbatch says of a controller that has too much to do, or is being started again; nothing is wrong with the job.
_BUSY = re.compile(
    "Socket timed out|Unable to contact slurm controller|temporarily unable|Zero Bytes were transmitted", re.IGNORECASE
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One task in the queue.

    Args:
        job: Its id, e.g. ``123_4``.
        name: Name of its array.
        state: Its state, as SLURM says it.
    """

    job: str
    name: str
    state: str

    @property
    def index(self) -> int:
        """Which task of its array it is; a job alone is the first."""
        return int(self.job.partition("_")[2] or 0)

    @property
    def running(self) -> bool:
        """Whether it is on a node."""
        return self.state in {"RUNNING", "COMPLETING"}


def check() -> None:
    """Raise ConfigError unless this machine can submit jobs."""
    if missing := [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]:
        raise ConfigError(
            f"--executor slurm: {', '.join(missing)} not found; start kdbench on a login node of the cluster, or try "
            "--executor-option cluster=local"
        )
    if isinstance(done := _listed(), Problem):
        raise ConfigError(f"--executor slurm: squeue: {done.words}; SLURM must answer before jobs are submitted")


def queue() -> list[Entry] | None:
    """Return our tasks in the queue, or None if SLURM does not answer."""
    if isinstance(done := _listed(), Problem):
        _log.warning("squeue: %s; jobs go on, and it is asked again", done.words)
        return None
    rows = [line.split("|") for line in done.splitlines()]
    return [Entry(*row) for row in rows if len(row) == 3 and row[1].startswith(PREFIX)]


def is_busy(words: str) -> bool:
    """Return whether SLURM may take the same job a little later, by what sbatch has said."""
    return _BUSY.search(words) is not None


def state(job: str) -> str:
    """Return the state of a job that SLURM has not forgotten yet, or ``unknown``."""
    done = _run("scontrol", "show", "job", "--oneliner", job) if job else ""
    found = None if isinstance(done, Problem) else re.search(r"\bJobState=(\w+)", done)
    return found[1] if found else "unknown"


def cancel(jobs: Sequence[str], *how: str) -> None:
    """Cancel jobs, or send them a signal; those that have ended meanwhile are as they should be."""
    for start in range(0, len(jobs), WORDS):
        _run("scancel", *how, *jobs[start : start + WORDS])


@dataclass(frozen=True)
class Problem:
    """Why a command failed."""

    words: str


def _listed() -> str | Problem:
    return _run("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%j|%T")


def _run(*words: str) -> str | Problem:
    """Return what a command prints."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Problem(str(error))
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Problem(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout
