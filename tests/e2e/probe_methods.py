"""A plugin for tests: a method that misbehaves when and how a file tells it to, and one that always diverges."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import kdbench
from kdbench.methods.vanilla_kd import VanillaKD

ORDERS = "KDBENCH_TEST_ORDERS"  # names a file: {"what": ..., "epoch": ..., "step": ..., "once": true}
PATIENCE_S = 60


class Probe(VanillaKD):
    """Vanilla KD that obeys its orders."""

    name = "probe"
    baseline = False

    def after_step(self, batch: kdbench.Batch) -> None:
        path = Path(os.environ.get(ORDERS, ""))
        if not path.is_file() or os.environ.get("RANK") == "0":  # of two that train a run together one obeys
            return
        orders = json.loads(path.read_text(encoding="utf-8"))
        step = round((batch.progress * self.context.epochs - batch.epoch) * self.context.steps_per_epoch)
        if (batch.epoch, step) == (orders["epoch"], orders["step"]):
            if "then" in orders:
                path.write_text(json.dumps(orders["then"]), encoding="utf-8")
            elif orders.get("once"):
                path.unlink()
            getattr(Orders, orders["what"])()


class Orders:
    """What can be asked for."""

    @staticmethod
    def fail() -> None:
        raise RuntimeError("the probe was told to fail")

    @staticmethod
    def leave() -> None:
        os._exit(0)

    @staticmethod
    def crash() -> None:
        ctypes.string_at(0)

    @staticmethod
    def kill_both() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def terminate_driver() -> None:
        """Ask the parent to stop: the driver, or what started the processes of a team."""
        flag = _stop_flag()
        os.kill(os.getppid(), signal.SIGTERM)
        _await_stop(flag)

    @staticmethod
    def interrupt_group() -> None:
        flag = _stop_flag()
        os.killpg(os.getpgid(os.getppid()), signal.SIGINT)  # as a terminal does for Ctrl-C
        _await_stop(flag)


def _stop_flag() -> Any:
    """Return what the worker's handler sets; to be asked before the signal, which takes the handler away."""
    return signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]


def _await_stop(flag: Any) -> None:
    """Hold the step until the stop has arrived here: this tiny training would be over before."""
    deadline = time.monotonic() + PATIENCE_S
    while not flag.stopped:
        if time.monotonic() > deadline:
            raise TimeoutError("no stop signal came")
        time.sleep(0.01)


class Runaway(VanillaKD):
    """Vanilla KD whose loss is not a number from the second epoch on."""

    name = "runaway"
    baseline = False

    def losses(self, batch: kdbench.Batch) -> dict[str, kdbench.Term]:
        factor = float("nan") if batch.epoch else 1.0
        return {name: kdbench.Term(term.value * factor, term.weight) for name, term in super().losses(batch).items()}


@kdbench.hookimpl
def kdbench_methods() -> list[type[kdbench.AnyMethod]]:
    return [Probe, Runaway]
