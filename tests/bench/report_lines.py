"""How every benchmark reports: a line per figure, with pass or FAIL where it has a target, and all of them as JSON.

    with Sheet("pipeline", "Input pipeline") as sheet:
        sheet.add("images/s against a DataLoader", ratios, at_least=10)

prints ``Input pipeline: images/s against a DataLoader: measured 12.3 x (11.8..12.9) target >= 10 x pass``, writes
``build/bench/pipeline.json`` at the end, and exits with 1 if a line missed its target.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

OUT = Path(__file__).resolve().parents[2] / "build" / "bench"


@dataclass(frozen=True)
class Line:
    """One figure.

    Args:
        name: What was measured.
        subject: Of what, e.g. a pair: the column in tables; empty where there is only one.
        measured: The median.
        low, high: The smallest and largest of what it is the median of.
        unit: Of all these figures.
        at_least, at_most: The target, if any.
    """

    name: str
    subject: str
    measured: float
    low: float
    high: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.at_least is not None:
            return self.measured >= self.at_least
        return None if self.at_most is None else self.measured <= self.at_most

    def __str__(self) -> str:
        spread = f" ({_short(self.low)}..{_short(self.high)})" if self.low != self.high else ""
        said = (
            f"{self.name}{self.subject and ', ' + self.subject}: measured {_short(self.measured)} {self.unit}{spread}"
        )
        if self.passed is None:
            return said
        target = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{said} target {target} {self.unit} {'pass' if self.passed else 'FAIL'}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Sheet:
    """The lines of one benchmark.

    Args:
        name: Of its JSON file.
        title: Heading of its table.
        about: How it was measured, a sentence or two for readers of the table.
    """

    def __init__(self, name: str, title: str, about: str = "") -> None:
        self.name, self.title, self.about = name, title, about
        self.lines: list[Line] = []

    def add(
        self,
        name: str,
        measured: float | Sequence[float],
        *,
        subject: str = "",
        unit: str = "x",
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Line:
        """Print a figure, the median if there are several, and keep it."""
        values = [measured] if isinstance(measured, (int, float)) else list(measured)
        middle = statistics.median(values)
        line = Line(name, subject, middle, min(values), max(values), unit, at_least, at_most)
        print(f"{self.title}: {line}", flush=True)
        self.lines.append(line)
        return line

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            return
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{self.name}.json").write_text(json.dumps(self._content(), indent=1) + "\n", encoding="utf-8")
        if any(line.passed is False for line in self.lines):
            sys.exit(1)

    def _content(self) -> dict[str, object]:
        return {
            "name": self.name,
            "title": self.title,
            "about": self.about,
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.perf_counter() - self._started, 1),
            "environment": environment(),
            "lines": [{**asdict(line), "passed": line.passed} for line in self.lines],
        }


def environment() -> dict[str, object]:
    """Return where a benchmark runs, as records state it."""
    # Not before it is over: what measures memory is not to hold a library that its subject does without.
    import torch

    from kdbench.training.environment import Machine

    machine = Machine(torch.device("cpu"), torch.get_num_threads())
    stated = machine.describe("").model_dump(mode="json", exclude={"precision", "world_size"})
    return {**stated, "torchvision": version("torchvision"), "numpy": version("numpy"), "kdbench": version("kdbench")}
