"""A plugin for tests of engines: methods that train like others, and once, in their second epoch, do something rash."""

# ruff: noqa: ARG002 (signatures are given)

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import kdbench
from kdbench.method import Supervised

ORDERS = "KDBENCH_TEST_ACTS"  # names a folder; without it they all behave
PATIENCE_S = 200


class Acting(Supervised):
    """A student that acts in its second epoch, if there is a folder to note it in."""

    baseline = False

    def after_step(self, batch: kdbench.Batch) -> None:
        if batch.epoch == 1 and (folder := os.environ.get(ORDERS)):
            note = Path(folder, self.name)
            if self.again or not note.exists():
                note.write_text(str(os.getpid()), encoding="utf-8")
                self.act(note)

    again = False

    def act(self, note: Path) -> None:
        raise NotImplementedError


class Fails(Acting):
    """Raises, each time."""

    name = "fails"
    again = True

    def act(self, note: Path) -> None:
        raise RuntimeError("told to fail")


class Kills(Acting):
    """Brings its process down."""

    name = "kills"

    def act(self, note: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Stops(Acting):
    """Is told to stop by somebody who is not the driver."""

    name = "stops"

    def act(self, note: Path) -> None:
        flag = _stop_flag()
        os.kill(os.getpid(), signal.SIGTERM)
        _await(lambda: flag.stopped)


class Holds(Acting):
    """Stands still as long as there is a file ``hold``, or until it is told to stop."""

    name = "holds"
    again = True

    def act(self, note: Path) -> None:
        flag, hold = _stop_flag(), note.with_name("hold")
        _await(lambda: flag.stopped or not hold.exists())


def _stop_flag() -> Any:
    return signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]


def _await(done: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.01)


@kdbench.hookimpl
def kdbench_methods() -> list[type[kdbench.AnyMethod]]:
    return [Fails, Kills, Stops, Holds]
