"""JSON that is the same on every machine, and that a person can read and compare line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import JsonValue

DIGITS = 10  # significant ones; those further right differ between processors and libraries of linear algebra
_STEP = "  "
_quoted: Callable[[str], str] = json.encoder.encode_basestring_ascii


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
    write = _SCALARS.get(type(value))
    if write is not None:
        return write(value)
    inner = margin + _STEP
    held: Iterable[JsonValue]
    if isinstance(value, dict):
        ends, held = "{}", value.values()
        parts = [f"{_quoted(str(key))}: {json_text(part, inner)}" for key, part in value.items()]
    elif isinstance(value, list | tuple):
        ends, held = "[]", value
        parts = [json_text(part, inner) for part in value]
    else:
        return _number(value) if isinstance(value, float) else json.dumps(value)
    if any(type(part) not in _SCALARS and _holds(part) for part in held):
        return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{margin}{ends[1]}"
    return ends[0] + ", ".join(parts) + ends[1]


def _number(value: float) -> str:
    return float.__repr__(settled(value)) if math.isfinite(value) else "null"


# By type: boards have hundreds of thousands of values, nearly all of them of one of these.
_SCALARS: Mapping[type, Callable[[Any], str]] = MappingProxyType(
    {
        str: _quoted,
        float: _number,
        int: repr,
        bool: lambda value: "true" if value else "false",
        type(None): lambda _: "null",
    }
)


def _holds(value: JsonValue) -> bool:
    return isinstance(value, dict | list | tuple) and bool(value)
