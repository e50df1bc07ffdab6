"""On a node of a Ray cluster: start a job's worker, pass on what it says, stop it when told to, tell how it ended.

The worker is a process of its own, so that a plugin brings down only itself. What attends it stays small: it imports
no more than it needs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench import __version__
from kdbench.execution.children import Children
from kdbench.execution.events import Event

MISFIT = 2  # exit code of a node that differs from the driver's: trying again there would end the same way


@dataclass(frozen=True)
class Orders:
    """What holds for all jobs of a command.

    Args:
        folder: The driver's working folder, against which relative paths are meant; it must be there on every node.
        environment: Variables of the driver's that are kdbench's own.
        patience: Seconds without an event after which a worker hangs; 0 = wait for ever.
        events: Queue of Ray, where the driver reads what workers say.
        version: The driver's version of kdbench.
    """

    folder: Path
    environment: Mapping[str, str]
    patience: float
    events: Any
    version: str = __version__


def attend(words: Sequence[str], orders: Orders) -> tuple[int, str]:
    """Do a job on this node.

    An interrupt (as of Ctrl-C) asks the worker to save and stop, a second one stops it at once.

    Args:
        words: Command line of its worker, with the driver's Python first.
        orders: What holds for all jobs.

    Returns:
        The exit code, and the last lines of standard error.
    """
    if problem := _misfit(orders):
        return MISFIT, f"kdbench: node {socket.gethostname()} {problem}"
    os.chdir(orders.folder)
    os.environ.update(orders.environment)
    children: Children[None] = Children(_teller(orders.events), orders.patience)
    with _interrupts(children.cancel) as asked:
        children.start([sys.executable, *words[1:]], None)
        if asked:  # while it was being started
            children.cancel()
        ended = children.wait()
        assert ended is not None  # it waits as long as that takes
        _, exit_code, last_words = ended
    return exit_code, last_words


def _misfit(orders: Orders) -> str:
    if __version__ != orders.version:
        return f"has kdbench {__version__}, the driver {orders.version}; install the same version on every node"
    if not orders.folder.is_dir():
        return f"has no folder {orders.folder}; start the command in a folder that all nodes share"
    return ""


def _teller(events: Any) -> Callable[[Event], None]:
    from ray.exceptions import RayError  # which is here: this is called in a task

    def tell(event: Event) -> None:
        with contextlib.suppress(RayError):  # nobody hears it; that is no reason to lose the run
            events.put(event)

    return tell


@contextlib.contextmanager
def _interrupts(cancel: Callable[[], None]) -> Iterator[list[int]]:
    """Have interrupts call ``cancel``; yields those that came."""
    asked: list[int] = []

    def interrupted(number: int, _frame: object) -> None:
        asked.append(number)
        cancel()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
