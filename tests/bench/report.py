"""The performance section of the README, from the JSON that ``make bench`` leaves.

    python tests/bench/report.py build/bench/performance.json

keeps that JSON as docs/performance.json and puts its tables between the marks in README.md.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
README, KEPT = ROOT / "README.md", ROOT / "docs" / "performance.json"
START, END = "<!-- performance:start -->", "<!-- performance:end -->"

WIDTH = 120

Line = dict[str, Any]


def section(result: dict[str, Any]) -> str:
    """Return the section, without its marks: machine and versions, targets met, and a table for each benchmark.

    Args:
        result: What ``run.py`` wrote.
    """
    lines = [line for sheet in result["sheets"] for line in sheet["lines"] if line["passed"] is not None]
    missed = sum(not line["passed"] for line in lines)
    verdict = f"{len(lines) - missed} of {len(lines)} targets are met"
    marked = " (FAIL marks the others)" if missed else ""
    missing = f" Not run there: {', '.join(result['missing'])}." if result["missing"] else ""
    opening = (
        f"{_place(result)} {verdict}{marked}; figures are medians, in parentheses the smallest and largest round. GPU: "
        f"unmeasured.{missing}"
    )
    return "\n\n".join([_wrapped(opening), *(_sheet(sheet) for sheet in result["sheets"] if sheet["lines"])])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _place(result: dict[str, Any]) -> str:
    where = result["environment"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("kdbench", "python", "torch", "torchvision", "numpy"))
    return f"`make bench` on {where['machine']}, {' and '.join(result['measured_on'])}: {versions}."


def _sheet(sheet: dict[str, Any]) -> str:
    heading = f"**{sheet['title']}.** {sheet['about']}".rstrip()
    return f"{_wrapped(heading)}\n\n{_table(sheet['lines'])}"


def _table(lines: Sequence[Line]) -> str:
    """Return lines as a table: a row per name, and a column per subject where there are several."""
    names = list(dict.fromkeys(line["name"] for line in lines))
    subjects = list(dict.fromkeys(line["subject"] for line in lines))
    cells = {(line["name"], line["subject"]): _cell(line) for line in lines}
    rows = [[name, *(cells.get((name, subject), "") for subject in subjects)] for name in names]
    aligned = ["left", *["right"] * len(subjects)]
    return tabulate(rows, ["", *subjects], tablefmt="pipe", colalign=aligned, disable_numparse=True)


def _cell(line: Line) -> str:
    unit = {"x": "", "us": " µs"}.get(line["unit"], f" {line['unit']}")
    spread = f" ({_short(line['low'])}..{_short(line['high'])})" if line["low"] != line["high"] else ""
    said = f"{_short(line['measured'])}{unit}{spread}"
    if line["passed"] is None:
        return said
    target = f"≥ {line['at_least']:g}" if line["at_least"] is not None else f"≤ {line['at_most']:g}"
    return f"{said}; {target}: {'pass' if line['passed'] else '**FAIL**'}"


def _short(value: float) -> str:
    """Return three significant digits, as people write them: 1234, 12.3, 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def put(readme: str, text: str) -> str:
    """Return the README with its performance section replaced.

    Raises:
        ValueError: If its marks are not there once each, in order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in after or END in before + after:
        raise ValueError(f"README.md - needs {START} and, after it, {END}, once each")
    return f"{before}{start}\n{text}\n{end}{after}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: report.py build/bench/performance.json")
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    readme = put(README.read_text(encoding="utf-8"), section(json.loads(text)))
    KEPT.write_text(text, encoding="utf-8")
    README.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
