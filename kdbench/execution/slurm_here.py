"""Submitit's processes of this machine in place of SLURM: to try a command out, and for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.execution.queues import State, Ticket
from kdbench.execution.seam import Opening
from kdbench.execution.slurm import SubmititQueue
from kdbench.execution.slurm_task import PROCESS


class HereQueue(SubmititQueue):
    """Processes of this machine. They start at once, and another command does not find them but by their locks."""

    def __init__(self, opening: Opening, folder: Path) -> None:
        super().__init__(opening, folder)
        self._jobs: dict[Ticket, Any] = {}

    def owners(self) -> Mapping[str, Ticket]:
        """Return nothing: what another command runs is locked."""
        return {}

    def takes(self, room: int) -> int:
        """Return the room there is: these processes do not wait."""
        return room

    def look(self) -> Mapping[Ticket, State]:
        """Return the processes that have not ended."""
        return {ticket: State.RUNNING for ticket, job in self._jobs.items() if not job.done()}

    def fate(self, ticket: Ticket) -> tuple[bool, str]:
        """Return whether the worker never began, and where to look."""
        return not _processes(ticket), f"it has left no word, see the logs in {ticket.folder}"

    def stop(self, tickets: Sequence[Ticket]) -> None:
        """Let workers save and stop."""
        for ticket in tickets:
            if numbers := _processes(ticket):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(numbers["task"], signal.SIGINT)
            else:
                self._jobs[ticket].cancel()

    def kill(self, tickets: Sequence[Ticket]) -> None:
        """End workers and what they have started at once; their tasks say so and end."""
        for ticket in tickets:
            if numbers := _processes(ticket):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(numbers["worker"], signal.SIGKILL)

    def _note(self, submitted: Mapping[Ticket, Any]) -> None:
        self._jobs |= submitted


def _processes(ticket: Ticket) -> dict[str, int]:
    """Return the processes of a task, none if it has just begun."""
    try:
        numbers: dict[str, int] = json.loads(ticket.path(PROCESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return numbers
