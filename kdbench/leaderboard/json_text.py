"""JSON that is the same on every machine, and that a person can read and compare line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from pydantic import JsonValue

DIGITS = 10  # significant ones; those further right differ between processors and libraries of linear algebra
_STEP = "  "
_quoted: Callable[[object], str] = json.JSONEncoder().encode


def settled(value: float) -> float:
    """Return a number with as many digits as all machines agree on; whole numbers stay as they are.

    Args:
        value: Of any unit; may be infinite or NaN.
    """
    return value if not math.isfinite(value) or value.is_integer() else float(f"{value:.{DIGITS}g}")


def json_text(value: JsonValue, margin: str = "") -> str:
    """Return ASCII JSON with settled numbers; what is not finite is null.

    What holds no further lists or objects stands on one line: a run, an interval, the differences of all seeds.

    Args:
        value: Made of JSON's types; tuples count as lists.
        margin: What the lines after the first begin with.
    """
    inner = margin + _STEP
    if isinstance(value, dict):
        ends = "{}"
        parts = [f"{_quoted(str(key))}: {json_text(part, inner)}" for key, part in value.items()]
        nested = any(_holds(part) for part in value.values())
    elif isinstance(value, list | tuple):
        ends = "[]"
        parts = [json_text(part, inner) for part in value]
        nested = any(map(_holds, value))
    elif isinstance(value, float):
        return repr(settled(value)) if math.isfinite(value) else "null"
    else:
        return _quoted(value)
    if nested:
        return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{margin}{ends[1]}"
    return ends[0] + ", ".join(parts) + ends[1]


def _holds(value: JsonValue) -> bool:
    return isinstance(value, dict | list | tuple) and bool(value)
