"""Compare the methods' public loss functions with golden files: ``python tests/golden/run.py DIR [--method NAME]``.

Prints method, case, precision, largest absolute and relative error, and pass or fail; exit status 1 on any failure.
An archive says in its ``meta`` which adapter reads it: its method's, or its topic's among those of ASIB. A JSON file
goes to the adapter its name starts with, which returns what is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # as a script and under pytest alike

from case import TOLERANCE, Case, Comparison, read  # noqa: E402
from topic import Topic  # noqa: E402


@dataclass(frozen=True)
class Verdict:
    """One file in one precision."""

    method: str
    name: str
    precision: str
    absolute: float
    relative: float
    problems: tuple[str, ...]


def verdict(path: Path, dtype: torch.dtype) -> Verdict:
    """Return how a golden file compares."""
    precision = str(dtype).removeprefix("torch.")
    try:
        case, method, adapter = _opened(path, dtype)
    except Exception as error:
        return Verdict("?", path.stem, precision, float("nan"), float("nan"), (f"cannot be read: {error}",))
    problems: list[str] = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        importlib.import_module(adapter).run(case)
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    finally:
        torch.set_default_dtype(before)
    problems += [f"{c.key}: off by {c.absolute:.3g} ({c.relative:.3g})" for c in case.found if not c.ok]
    problems += [f"{key}: not compared" for key in case.missed()]
    if not case.found:
        problems.append("nothing was compared")
    absolute, relative = _worst(case.found)
    return Verdict(method, path.stem, precision, absolute, relative, tuple(problems))


def _opened(path: Path, dtype: torch.dtype) -> tuple[Case | Topic, str, str]:
    """Return a file, what it is about, and the name of its adapter."""
    arrays = read(path)
    meta = json.loads(str(arrays["meta"]))
    if "topic" in meta:
        return Topic(arrays, dtype), str(meta["topic"]), f"adapters.asib.{meta['topic']}"
    return Case(arrays, dtype), str(meta["method"]), f"adapters.{str(meta['method']).lower()}"


def json_verdict(path: Path) -> Verdict:
    """Return how a JSON file compares; it has no precision."""
    kind = path.stem.split("_")[0]
    try:
        problems = tuple(importlib.import_module(f"adapters.{kind}").run(path))
    except ImportError as error:
        problems = (f"not built: {error}",)
    except Exception as error:
        problems = (f"{type(error).__name__}: {error}",)
    return Verdict(kind, path.stem, "-", 0.0, 0.0, problems)


def _worst(found: list[Comparison]) -> tuple[float, float]:
    sound = [c for c in found if c.ok]
    # A gradient that is exactly zero has no relative error worth printing.
    large = [c.relative for c in sound if c.absolute > TOLERANCE[torch.float64][0]]
    return max((c.absolute for c in found), default=float("nan")), max(large, default=0.0)


def verdicts(folder: Path, method: str | None = None) -> Iterator[Verdict]:
    """Yield the verdict of every golden file in a folder, of archives in both precisions."""
    for path in sorted(folder.glob("*.json")):
        if method is None or path.stem.split("_")[0] == method:
            yield json_verdict(path)
    for path in sorted(folder.glob("*.npz")):
        if method is None or path.stem.rsplit("_", 1)[0] == method:
            for dtype in TOLERANCE:
                yield verdict(path, dtype)


def main() -> int:
    """Print a line for each file and precision; 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", help="only files NAME_*.npz")
    arguments = parser.parse_args()
    results = list(verdicts(arguments.folder, arguments.method))
    print(f"{'method':<10} {'case':<14} {'precision':<9} {'max abs':>9} {'max rel':>9}")
    for r in results:
        line = f"{r.method:<10} {r.name:<14} {r.precision:<9} {r.absolute:>9.2e} {r.relative:>9.2e}"
        print(line, "FAIL" if r.problems else "pass")
        for problem in r.problems:
            print("   ", problem)
    failed = sum(bool(r.problems) for r in results)
    print(f"{len(results)} comparisons, {failed} failed")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
