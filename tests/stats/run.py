"""Run every reference case of a file: ``run.py FILE.json [NAME...]`` prints one line per case; exit 1 if any fails.

The error of a case is the largest absolute difference of its numbers; a case passes if each is within its tolerance. A
kind without an adapter, an answer that is missing and an exception are failures.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from stats_kinds import KINDS, tight

DEFAULT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What came of one case: the largest absolute error, and one line per problem."""

    name: str
    kind: str
    error: float
    problems: tuple[str, ...]


def verdict(case: Mapping[str, Any]) -> Verdict:
    name, kind = str(case.get("name", "?")), str(case.get("kind", "?"))
    if kind not in KINDS:
        return Verdict(name, kind, math.nan, (f"unknown kind '{kind}'",))
    try:
        found = KINDS[kind](case["inputs"], case.get("options") or {}, case["expected"])
    except Exception as error:
        return Verdict(name, kind, math.nan, (f"{type(error).__name__}: {error}",))
    worst, problems = 0.0, []
    for path, got, expected in leaves(found, case["expected"], ()):
        error, problem = judge(got, expected, tolerance(case, path))
        worst = max(worst, error)
        if problem:
            problems.append(f"{'.'.join(path)}: {problem}")
    if not case["expected"]:
        problems.append("the case expects nothing")
    return Verdict(name, kind, worst, tuple(problems))


class Missing:
    def __repr__(self) -> str:
        return "nothing"


def leaves(found: Any, expected: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield path, answer and expected value of everything that is expected."""
    if isinstance(expected, Mapping):
        for key, value in expected.items():
            known = isinstance(found, Mapping) and key in found
            yield from leaves(found[key] if known else Missing(), value, (*path, key))
    elif isinstance(expected, list):
        same = isinstance(found, list | tuple) and len(found) == len(expected)
        for index, value in enumerate(expected):
            yield from leaves(found[index] if same else Missing(), value, (*path, str(index)))
        if not expected:
            yield path, list(found) if isinstance(found, list | tuple) else found, expected
    else:
        yield path, found, expected


def tolerance(case: Mapping[str, Any], path: tuple[str, ...]) -> float:
    given = case.get("tolerance", DEFAULT_TOLERANCE)
    if isinstance(given, Mapping):
        named = [given[key] for key in path if key in given]
        given = named[-1] if named else given.get("default", DEFAULT_TOLERANCE)
    return min(float(given), tight(case, path[0]))


def judge(got: Any, expected: Any, allowed: float) -> tuple[float, str]:
    """Return the absolute error and what is wrong, if anything; "nan" and "inf" stand for numbers."""
    if isinstance(expected, str) and expected in ("nan", "inf", "-inf", "Infinity", "-Infinity", "NaN"):
        expected = float(expected)
    number = isinstance(expected, int | float) and not isinstance(expected, bool)
    if not number or isinstance(got, bool) or not isinstance(got, int | float):
        return 0.0, "" if type(got) is type(expected) and got == expected else f"{got!r} instead of {expected!r}"
    if math.isnan(expected) or math.isinf(expected) or not math.isfinite(got):
        same = got == expected or (math.isnan(got) and math.isnan(expected))
        return (0.0, "") if same else (math.inf, f"{got!r} instead of {expected!r}")
    error = abs(got - expected)
    return error, "" if error <= allowed else f"{got!r} instead of {expected!r}, error {error:.3g} > {allowed:g}"


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: run.py FILE.json [NAME...]", file=sys.stderr)
        return 2
    document = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    cases = document["cases"] if isinstance(document, dict) else document
    wanted = [case for case in cases if not arguments[1:] or case["name"] in arguments[1:]]
    failed = 0
    for one in map(verdict, wanted):
        print(f"{'FAIL' if one.problems else 'pass'}  {one.name:36s} {one.kind:24s} error {one.error:.3g}")
        for problem in one.problems:
            print(f"      {problem}")
        failed += bool(one.problems)
    print(f"{len(wanted) - failed} of {len(wanted)} cases pass")
    return 1 if failed or not wanted else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
