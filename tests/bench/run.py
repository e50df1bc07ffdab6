"""All benchmarks, each in a process of its own: ``python tests/bench/run.py [--quick] [NAME ...]``.

Prints their lines and what they come to, and writes build/bench/performance.json, from which report.py makes the
README's tables. It holds the last sheet of every benchmark that was run in this place, or else the published one if
that was made on such a machine with such versions, so that one may be run again alone. Goes on after a missed target
and ends with 1 if there was one. ``--quick`` takes two rounds where there would be more; the tables say how many
there were.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "build" / "bench"
RESULT = OUT / "performance.json"
PUBLISHED = HERE.parents[1] / "docs" / "performance.json"

# In the order of the tables. A script that writes no JSON of its own counts by its exit status alone.
BENCHMARKS = (
    "step_overhead",
    "pipeline",
    "sharing",
    "lanes",
    "warm_cache",
    "cohort_memory",
    "prediction",
    "board",
    "method_cost",
    "large_networks",
    "micro",
)


ROUNDED = ("sharing", "lanes", "warm_cache")  # those that take a number of rounds


VARYING = ("commit", "threads")  # of a sheet's environment; the others must be the same for all


def run(name: str, *, quick: bool = False) -> int:
    """Run one benchmark and return its exit status."""
    words = ["--rounds", "2"] if quick and name in ROUNDED else []
    started = time.perf_counter()
    print(f"--- {name}", flush=True)
    (OUT / f"{name}.json").unlink(missing_ok=True)
    status = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *words], check=False).returncode
    print(f"--- {name}: {time.perf_counter() - started:.0f} s, exit status {status}", flush=True)
    return status


def sheets(now: Sequence[str]) -> list[dict[str, Any]]:
    """Return the sheets of all benchmarks that were run, here or before they were published, in the tables' order.

    Args:
        now: Those that were to be run now: one that left no sheet has none.
    """
    found = {}
    if PUBLISHED.exists():
        published = json.loads(PUBLISHED.read_text(encoding="utf-8"))["sheets"]
        found = {sheet["name"]: sheet for sheet in published if sheet["name"] not in now}
    for path in (OUT / f"{name}.json" for name in BENCHMARKS):
        if path.exists():
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return [found[name] for name in BENCHMARKS if name in found]


def merged(sheets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the JSON of all: where they ran, once, and each one's lines.

    Args:
        sheets: Those that there are; one that ran elsewhere than the last one that was made is left out.
    """
    if not sheets:
        return {"measured_on": [], "environment": {}, "missing": list(BENCHMARKS), "sheets": []}
    place = _place(max(sheets, key=lambda sheet: str(sheet["measured_at"])))
    kept = [sheet for sheet in sheets if _place(sheet) == place]
    days = sorted({str(sheet["measured_at"])[:10] for sheet in kept})
    missing = [name for name in BENCHMARKS if name not in {sheet["name"] for sheet in kept}]
    return {"measured_on": days, "environment": place, "missing": missing, "sheets": kept}


def _place(sheet: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sheet["environment"].items() if key not in VARYING}


def main() -> None:
    quick = "--quick" in sys.argv
    names = tuple(word for word in sys.argv[1:] if word != "--quick") or BENCHMARKS
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    OUT.mkdir(parents=True, exist_ok=True)
    ended = {name: run(name, quick=quick) for name in names}
    RESULT.write_text(json.dumps(merged(sheets(names)), indent=1) + "\n", encoding="utf-8")
    print(RESULT)
    failed = [name for name, status in ended.items() if status]
    print(f"{len(ended)} benchmarks: {'FAIL in ' + ', '.join(failed) if failed else 'pass'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
