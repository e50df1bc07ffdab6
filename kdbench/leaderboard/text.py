"""How numbers and foreign text look to a reader: shared by Markdown and the outputs that follow it."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

from kdbench.leaderboard.model import SPENT, STATUSES, Gain, Row
from kdbench.stats import Summary

NOT_AVAILABLE = "n/a"
STAR, DAGGER = "*", "†"
_INVISIBLE = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
}  # control, format (e.g. right-to-left override), surrogates, line separators
_SPECIAL = re.compile(r"([\\`*<>\[\]|])")


def plain(text: object) -> str:
    """Return foreign text on one line, without control characters."""
    kept = (" " if unicodedata.category(character) in _INVISIBLE else character for character in str(text))
    return " ".join("".join(kept).split())


def escape(text: object) -> str:
    """Return foreign text as it may stand in a Markdown table cell."""
    return _SPECIAL.sub(r"\\\1", plain(text))


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Return a number with a fixed count of decimals, ``n/a`` for none; zero has no sign."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    rounded = round(value, digits) + 0.0
    return f"{rounded:+,.{digits}f}" if signed and rounded else f"{rounded:,.{digits}f}"


def spread(summary: Summary | None) -> str:
    """Return ``mean ± std``."""
    return NOT_AVAILABLE if summary is None else f"{number(summary.mean)} ± {number(summary.std)}"


def accuracy(row: Row) -> str:
    """Return mean and std over the seeds; with diverged runs the intent-to-treat ones, the flag and the ok runs'."""
    if not row.unstable:
        return spread(row.scored)
    flag = f"unstable {row.count('diverged')}/{len(row.scores)}"
    return f"{spread(row.scored)} ({flag}; ok only: {spread(row.ok_only)})"


def finished(row: Row) -> str:
    """Return ``ok/planned`` and how many runs have each other status."""
    others = [f"{row.count(status)} {status}" for status in STATUSES if status != "ok" and row.count(status)]
    return f"{row.count('ok')}/{row.planned}" + (f" ({', '.join(others)})" if others else "")


def gain(value: Gain) -> str:
    """Return ``+1.31 [+0.80, +1.82]``, with the reason where there is no interval and n where it differs."""
    difference = value.difference
    if difference is None:
        return "-"
    if difference.mean is None:
        return f"{NOT_AVAILABLE} ({difference.reason})"
    interval = f"{NOT_AVAILABLE} ({difference.reason})"
    if difference.interval:
        interval = f"{number(difference.interval.low, signed=True)}, {number(difference.interval.high, signed=True)}"
    n = f" (n={difference.n})" if value.show_n else ""
    return f"{number(difference.mean, signed=True)} [{interval}]{STAR * value.star}{DAGGER * value.dagger}{n}"


def probability(value: float | None) -> str:
    """Return a p-value with three decimals; one below them as a bound, since no test here is that exact."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def corrected(value: Gain) -> str:
    """Return the corrected p, then the pooled one, with n where that is too small, or not all, to claim anything."""
    if value.difference is None:
        return "-"
    pooled = "" if value.p_pooled is None else f" / {probability(value.p_pooled)}"
    n = f" (n={value.difference.n})" if value.p_holm is not None and value.unclaimed else ""
    return probability(value.p_holm) + pooled + n


def forwards(row: Row) -> str:
    """Return how many images went through the trained network, and through teachers: ``269 k + 89.6 k``."""
    own, theirs = (row.mean_cost(SPENT[key]) for key in ("student_forwards", "teacher_forwards"))
    return NOT_AVAILABLE if own is None else f"{short(own)} + {short(theirs)}"


def mebibytes(value: float | None) -> str:
    """Return bytes as whole MiB."""
    return number(None if value is None else value / 2**20, 0)


def short(value: float | None) -> str:
    """Return a large count with three digits, such as ``4.50 M``."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * unit:
            scaled = value / unit
            return f"{scaled:.{max(0, 2 - len(str(int(abs(scaled)))) + 1)}f} {letter}"
    return f"{value:.0f}"


def ranges(values: Iterable[int]) -> str:
    """Return ascending integers as ``0-4, 7``."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], value]
        else:
            runs.append([value])
    return ", ".join("-".join(map(str, run)) for run in runs)


def parameters(values: tuple[int, ...]) -> str:
    """Return a count, or lowest and highest where seeds differ."""
    ends = dict.fromkeys((values[0], values[-1])) if values else ()
    return "-".join(f"{count:,}" for count in ends) or NOT_AVAILABLE


def seconds(value: float | None) -> str:
    """Return seconds, with a decimal only where it says something."""
    return number(value, 0 if value is not None and value >= 100 else 1)
