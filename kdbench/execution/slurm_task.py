"""On the node of a SLURM job: the job's command as a child process, and an end that SLURM understands.

A job that ends by itself after a signal counts as done and is not queued again. So there is one answer to each signal:

* ``SIGUSR2``, some time before the time limit or a preemption: the child saves, and submitit queues the job again.
* ``SIGTERM``, the end is near: the child saves, and this process waits to be killed. SLURM itself queues the job again
  if it was preempted, and does not if somebody cancelled it.
* ``SIGINT``, from ``kdbench`` alone: the child saves, and the job is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

STOPPED = 75
LOOK_SECONDS = 0.2
KILL_SECONDS = 900.0  # how long SLURM may take to kill what it has told to end: preemption has a grace time
OUT, ERR, REPORT, PROCESS = ".out", ".err", ".report.json", ".process.json"  # files of a task, after its index


class Task:
    """One task of an array; submitit pickles it, and calls it on the node.

    Args:
        command: The command line of the worker.
        stem: Where its files are, without suffix: events, errors, and a report of how it ended.
    """

    def __init__(self, command: list[str], stem: str) -> None:
        self.command, self.stem = command, stem
        self._child: subprocess.Popen[bytes] | None = None
        self._told = 0  # the last signal

    def __call__(self) -> int:
        """Run the command and return its exit code, which is in the report, too."""
        self._path(REPORT).unlink(missing_ok=True)  # of an earlier start
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "KDBENCH_PARENT": str(os.getpid())}
        with self._path(OUT).open("a", encoding="utf-8") as out, self._path(ERR).open("w", encoding="utf-8") as err:
            self._child = subprocess.Popen(
                self.command, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        self._write(PROCESS, json.dumps({"task": os.getpid(), "worker": self._child.pid}))
        if self._told:  # before there was a child
            self._child.send_signal(self._told)
        while (code := self._child.poll()) is None:
            time.sleep(LOOK_SECONDS)
        if self._told and code == -self._told:  # it died of it, before it could handle it: it had nothing to save yet
            code = STOPPED
        self._write(REPORT, json.dumps({"exit_code": code}))
        if code == STOPPED and self._told == signal.SIGTERM:
            time.sleep(KILL_SECONDS)
        return code

    def checkpoint(self) -> Any:
        """Let the child save, and return what the next start of the job runs; submitit calls this on SIGUSR2."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
            # Not Popen.wait(): the code that this handler interrupts may hold its lock.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self.command, self.stem))

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._told = number
        if self._child is not None:
            self._child.send_signal(number)

    def _path(self, suffix: str) -> Path:
        return Path(self.stem + suffix)

    def _write(self, suffix: str, text: str) -> None:
        """Write a file that its readers see whole."""
        draft = self._path(suffix + ".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(self._path(suffix))
