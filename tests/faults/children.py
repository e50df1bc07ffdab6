"""Processes that start in milliseconds: forked from one that has imported everything, with marks where they are."""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Where a process can be: the name in the table, and the function that is running then, as module:attribute. What comes
# first here counts: a checkpoint of a teacher belongs to the teacher's training. A place whose module is missing in
# this version of the package is left out.
PLACES = (
    ("teacher training", "kdbench.cli.teacher:train_by_name"),
    ("cache filling", "kdbench.training.teacher_cache.entries:Entries.write"),
    ("record writing", "kdbench.training.runs:finish"),
    ("board writing", "kdbench.leaderboard:write"),
    ("checkpointing", "kdbench.training.checkpoint:CheckpointFolder.save"),
    ("evaluation", "kdbench.evaluation:TestSet.predict"),
    ("training", "kdbench.training.lane:Lane.step"),
)
ELSEWHERE = "planning and loading"
SLOWER_S = 0.004  # tiny files are written faster than anybody can hit
PATIENCE_S = 300.0


def _target(path: str) -> tuple[Any, str] | None:
    module, _, attributes = path.partition(":")
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    *outer, name = attributes.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return (owner, name) if hasattr(owner, name) else None


KNOWN = tuple(name for name, path in PLACES if _target(path))


def _slower(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(SLOWER_S)
        return function(*arguments)

    return slow


class Whereabouts:
    """Memory shared with a child: where it is now, and how often it has been everywhere."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 + len(PLACES))

    def install(self) -> None:
        """Mark the places of this process, a child, and slow its writes down."""
        for number, (_, path) in enumerate(PLACES):
            if found := _target(path):
                self._mark(number, *found)
        os.fsync, os.pwrite = _slower(os.fsync), _slower(os.pwrite)  # the second fills the cache

    def _mark(self, number: int, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def marked(*arguments: Any, **named: Any) -> Any:
            before = self._memory[0]
            inner = before == 0 or number < before - 1
            if inner:
                self._memory[0] = number + 1
                self._memory[1 + number] = min(255, self._memory[1 + number] + 1)
            try:
                return function(*arguments, **named)
            finally:
                self._memory[0] = before

        setattr(owner, name, marked)

    def now(self) -> str:
        """Return the place it is at, or was when it died."""
        code = self._memory[0]
        return PLACES[code - 1][0] if code else ELSEWHERE

    def visits(self, place: str) -> int:
        """Return how often it has come to a place."""
        return self._memory[1 + [name for name, _ in PLACES].index(place)]


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code, or the negative number of the signal; and what it said."""

    code: int
    said: str


class Child:
    """A forked process that does some work and exits.

    Args:
        work: What it does; its SystemExit is its exit code.
        log: Where its output goes.
    """

    def __init__(self, work: Callable[[], object], log: Path) -> None:
        self.where, self.log = Whereabouts(), log
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which these children do not use
            self.pid = os.fork()
        if not self.pid:
            self._run(work)

    def _run(self, work: Callable[[], object]) -> None:
        code = 1
        try:
            os.setsid()
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            self.where.install()
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> Ended:
        """Return how it ended."""
        _, status = os.waitpid(self.pid, 0)
        said = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return Ended(os.waitstatus_to_exitcode(status), said)

    def reach(self, place: str | None, visits: int = 1) -> bool:
        """Wait until it has come to a place so often; return whether it has, and did not end before."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.ended():
            if place is None or (self.where.now() == place and self.where.visits(place) >= visits):
                return True
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"a child did not come to {place}: {self.wait().said[-500:]}")
            time.sleep(0.0002)
        return False

    def ended(self) -> bool:
        """Return whether it is over, leaving its status for :meth:`wait`."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: int) -> None:
        """Send it a signal; one that is over hears nothing."""
        if not self.ended():
            os.kill(self.pid, number)
