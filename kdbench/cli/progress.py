"""Showing what workers do: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any, Self

import click

from kdbench.errors import printable
from kdbench.execution.events import Event
from kdbench.execution.remaining import TimeLeft
from kdbench.spec import RunSpec
from kdbench.training.runtime import spoken

_NOT_OURS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class Reporter:
    """Turns events into something to read; a context manager.

    Args:
        specs: The runs that will be reported.
        left: The time that the command has left; None = it is not shown.
    """

    def __init__(self, specs: Sequence[RunSpec], left: TimeLeft | None = None) -> None:
        self.total, self.left = len(specs), left
        self.done = 0
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn

            self._bars = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._whole = self._bars.add_task("all", total=None, state="")
            self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def see(self, event: Event) -> None:
        """Show an event."""
        shown = {
            "progress": self._progress, "phase": self._phase, "epoch": self._epoch, "record": self._record,
            "teacher": self._teacher, "warning": self._warning,
        }  # fmt: skip
        with contextlib.suppress(*_NOT_OURS):  # something a plugin printed that looks like one
            shown.get(event.kind, lambda _data: None)(event.data)

    def _progress(self, data: dict[str, Any]) -> None:
        for run_id in data["run_ids"]:
            self._reached(run_id, data, data["step"] / data["steps"])
        if self._bars is None:
            return
        self._show_whole()
        ids = data["run_ids"]
        what = ids[0] if len(ids) == 1 else f"{ids[0]} (+{len(ids) - 1})"
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=data["epochs"] * data["steps"], state="")
        state = f"{data['phase']} {data['epoch'] + 1}/{data['epochs']} · {data['images_per_second']:.0f} images/s"
        self._bars.update(self._tasks[what], completed=data["epoch"] * data["steps"] + data["step"], state=state)

    def _show_whole(self) -> None:
        share = self.left.share if self.left else 0.0
        state = f"{self.done} of {self.total} runs{self._time_left(' · ')}"
        self._bars.update(self._whole, total=1.0, completed=share, state=state)

    def _reached(self, run_id: str, data: dict[str, Any], within: float) -> None:
        if self.left is not None:
            self.left.reached(run_id, data["phase"], data["epoch"], data["epochs"], within)

    def _time_left(self, before: str) -> str:
        """Return the time left of the whole command, where it is known."""
        seconds = self.left.seconds if self.left else None
        return "" if seconds is None else f"{before}{spoken(seconds)} left"

    def _phase(self, data: dict[str, Any]) -> None:
        terms = [f"{name} {_number(value)} x {_number(data['weights'][name])}"
                 for name, value in data["losses"].items() if name in data["weights"]]  # fmt: skip
        numbers = [f"{name} {_number(value)}" for name, value in data["metrics"].items()]
        self._say(f"{data['run_id']} {data['phase']}, first step: {', '.join([*terms, *numbers])}")

    def _epoch(self, data: dict[str, Any]) -> None:
        self._reached(data["run_id"], data, 1.0)
        if self._bars is None:
            shown = [("val", data["validation_accuracy"]), ("test", data["test_accuracy"])]
            accuracies = "".join(f", {name} {value:.2f} %" for name, value in shown if value is not None)
            loss = data["losses"].get("total")
            self._say(
                f"{data['run_id']} {data['phase']} {data['epoch'] + 1}/{data['epochs']}: "
                f"loss {'not finite' if loss is None else f'{loss:.4f}'}{accuracies}, "
                f"{data['images_per_second']:.0f} images/s{self._time_left(', ')}"
            )

    def _record(self, data: dict[str, Any]) -> None:
        self.done += 1
        if self.left is not None:
            self.left.ended(data["run_id"])
        result = f"{data['accuracy']:.2f} %" if data["status"] == "ok" else f"{data['status']}: {data['reason']}"
        self._say(f"[{self.done}] {data['run_id']}: {result}")

    def _teacher(self, data: dict[str, Any]) -> None:
        self._say(f"teacher {data['name']}: {data['accuracy']:.2f} %")

    def _warning(self, data: dict[str, Any]) -> None:
        self._say(f"warning: {data['message']}")

    def _say(self, text: str) -> None:
        shown = printable(text)
        if self._bars is None:
            click.echo(shown)
        else:
            self._bars.console.print(shown, markup=False, highlight=False)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
