"""All benchmarks, each in a process of its own: ``python tests/bench/run.py [--quick] [NAME ...]``.

Prints their lines and what they come to, and writes build/bench/performance.json, from which report.py makes the
README's tables, with the command that made it. Goes on after a missed target and ends with 1 if there was one.
``--quick`` takes two rounds where there would be more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "build" / "bench"
RESULT = OUT / "performance.json"

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


def run(name: str, *, quick: bool = False) -> tuple[int, dict[str, object] | None]:
    """Run one benchmark; return its exit status and its sheet, if it wrote one."""
    words = ["--rounds", "2"] if quick and name in ROUNDED else []
    sheet = OUT / f"{name}.json"
    sheet.unlink(missing_ok=True)
    started = time.perf_counter()
    print(f"--- {name}", flush=True)
    status = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *words], check=False).returncode
    print(f"--- {name}: {time.perf_counter() - started:.0f} s, exit status {status}", flush=True)
    return status, json.loads(sheet.read_text(encoding="utf-8")) if sheet.exists() else None


def merged(sheets: list[dict[str, object]]) -> dict[str, object]:
    """Return the content of the JSON of all: where they ran, once, and each one's lines.

    Raises:
        ValueError: If they did not run in the same place.
    """
    places = [sheet.pop("environment") for sheet in sheets]
    if any(place != places[0] for place in places):
        raise ValueError(f"the benchmarks ran in different environments: {places}")
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return {"measured_on": day, "environment": places[0] if places else {}, "sheets": sheets}


def main() -> None:
    quick = "--quick" in sys.argv
    names = tuple(word for word in sys.argv[1:] if word != "--quick") or BENCHMARKS
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    OUT.mkdir(parents=True, exist_ok=True)
    ended = {name: run(name, quick=quick) for name in names}
    command = "make bench" if len(sys.argv) == 1 else " ".join(["python tests/bench/run.py", *sys.argv[1:]])
    result = {"command": command, **merged([sheet for _, sheet in ended.values() if sheet is not None])}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(RESULT)
    failed = [name for name, (status, _) in ended.items() if status]
    print(f"{len(ended)} benchmarks: {'FAIL in ' + ', '.join(failed) if failed else 'pass'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
