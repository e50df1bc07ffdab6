"""Showing what workers do: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any, Self

import click

from kdbench.errors import printable
from kdbench.execution.events import Event
from kdbench.spec import RunSpec

_NOT_OURS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class Reporter:
    """Turns events into something to read; a context manager.

    Args:
        specs: The runs that will be reported.
    """

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self.total = len(specs)
        self.done = 0
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self._bars = Progress(*columns)
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
        if self._bars is None:
            return
        ids = data["run_ids"]
        what = ids[0] if len(ids) == 1 else f"{ids[0]} (+{len(ids) - 1})"
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=data["epochs"] * data["steps"], state="")
        state = f"{data['phase']} {data['epoch'] + 1}/{data['epochs']} · {data['images_per_second']:.0f} images/s"
        self._bars.update(self._tasks[what], completed=data["epoch"] * data["steps"] + data["step"], state=state)

    def _phase(self, data: dict[str, Any]) -> None:
        terms = [f"{name} {_number(value)} x {_number(data['weights'][name])}"
                 for name, value in data["losses"].items() if name in data["weights"]]  # fmt: skip
        numbers = [f"{name} {_number(value)}" for name, value in data["metrics"].items()]
        self._say(f"{data['run_id']} {data['phase']}, first step: {', '.join([*terms, *numbers])}")

    def _epoch(self, data: dict[str, Any]) -> None:
        if self._bars is None:
            shown = [("val", data["validation_accuracy"]), ("test", data["test_accuracy"])]
            accuracies = "".join(f", {name} {value:.2f} %" for name, value in shown if value is not None)
            loss = data["losses"].get("total")
            self._say(
                f"{data['run_id']} {data['phase']} {data['epoch'] + 1}/{data['epochs']}: "
                f"loss {'not finite' if loss is None else f'{loss:.4f}'}{accuracies}, "
                f"{data['images_per_second']:.0f} images/s"
            )

    def _record(self, data: dict[str, Any]) -> None:
        self.done += 1
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
