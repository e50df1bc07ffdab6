"""Small pieces of SVG: elements, scales, axes. Colours are classes, which the page's style sheet gives a meaning."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from kdbench.leaderboard.text import plain

WIDTH = 360  # of every plot, in units of about a pixel: fits a phone without being shrunk
CHARACTER = 6.2  # width of one at the plots' font size
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


def tag(name: str, *children: str, **attributes: object) -> str:
    """Return an element; ``children`` are markup, attribute values are quoted, ``_`` in their names is ``-``.

    A trailing ``_`` is dropped, for names that are words of Python; None leaves an attribute out.
    """
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    said = "".join(f' {key}="{html.escape(_value(value))}"' for key, value in given)
    return f"<{name}{said}>{''.join(children)}</{name}>" if children else f"<{name}{said}/>"


def words(text: object) -> str:
    """Return foreign text as the content of an element."""
    return html.escape(plain(text))


def label(x: float, y: float, text: object, **attributes: object) -> str:
    """Return a text whose middle lies at ``y``."""
    return tag("text", words(text), x=x, y=y + 3.5, **attributes)


def hint(text: object) -> str:
    """Return what is shown over an element; it must be its first child."""
    return tag("title", words(text))


def line(points: Iterable[tuple[float, float]]) -> str:
    """Return the path data of a polyline."""
    # In tenths and relative to one another: half the length, and no rounding error adds up.
    places = [(round(10 * x), round(10 * y)) for x, y in points]
    steps = [(x - a, y - b) for (a, b), (x, y) in itertools.pairwise(places)]
    first = f"M{_pair(*places[0])}"
    if len(steps) == 1 and 0 in steps[0]:
        x, y = steps[0]
        return f"{first}h{_short(x / 10)}" if y == 0 else f"{first}v{_short(y / 10)}"
    return f"{first}l{' '.join(_pair(*step) for step in steps)}" if steps else first


def _pair(x: int, y: int) -> str:
    """Return two numbers given in tenths."""
    return f"{_short(x / 10)}{'' if y < 0 else ' '}{_short(y / 10)}"


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Return the path data of dots: lines of no length, which round ends make visible."""
    places = [(round(10 * x), round(10 * y)) for x, y in points]
    data = [f"M{_pair(*place)}h0" for place in places]
    for index, ((a, b), (x, y)) in enumerate(itertools.pairwise(places), 1):
        data[index] = min(data[index], f"m{_pair(x - a, y - b)}h0", key=len)  # a page has tens of thousands of them
    return "".join(data)


def shortened(text: str, room: float) -> str:
    """Return text that fits into ``room`` units, with an ellipsis where it is cut."""
    text, most = plain(text), max(2, int(room / CHARACTER))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def picture(height: float, title: str, *parts: str) -> str:
    """Return the whole picture, with its title for those who do not see it."""
    box = f"0 0 {WIDTH} {_short(height)}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=plain(title))


@dataclass(frozen=True)
class Scale:
    """Maps values to places.

    Args:
        low: Lowest value.
        high: Highest value, above ``low``.
        start: Place of ``low``.
        end: Place of ``high``.
        log: Whether equal factors, not equal steps, are equally far apart; ``low`` must then be above 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> tuple[float, ...]:
        """Return about ``count`` round values within the scale, ascending, two or more unless it is very short."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            decades = (step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5))
            found = tuple(value for value in decades if self.low <= value <= self.high)
            if 2 <= len(found) <= 2 * count:
                return found
        step = _step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(round(index * step, 12) for index in range(first, last + 1))


def fitted(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Scale:
    """Return a scale around finite values, with a little room at both ends.

    Args:
        values: What must be seen; at least one.
        start: Place of the lower end.
        end: Place of the upper end.
        log: As in :class:`Scale`; the values must be above 0 then.
    """
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    if log:
        room = max((high / low) ** 0.06, 1.05)
        return Scale(low / room, high * room, start, end, log=True)
    room = 0.06 * (high - low) or max(abs(high) * 0.05, 0.5)
    return Scale(low - room, high + room, start, end)


def axis_below(scale: Scale, top: float, bottom: float, title: str) -> str:
    """Return grid lines with their values below them, and a title below those; takes 32 units below ``bottom``."""
    ticks = scale.ticks()
    grid = "".join(f"M{_short(scale(value))} {_short(top)}V{_short(bottom)}" for value in ticks)
    texts = (
        label(scale(value), bottom + 9, said, class_="mid") for value, said in zip(ticks, _said(ticks), strict=True)
    )
    middle = (scale.start + scale.end) / 2
    return tag("path", d=grid, class_="grid") + "".join(texts) + label(middle, bottom + 24, title, class_="mid axis")


def axis_left(scale: Scale, left: float, right: float, title: str) -> str:
    """Return grid lines with their values left of them, and the title above the axis."""
    ticks = scale.ticks()
    grid = "".join(f"M{_short(left)} {_short(scale(value))}H{_short(right)}" for value in ticks)
    texts = (label(left - 5, scale(value), said, class_="end") for value, said in zip(ticks, _said(ticks), strict=True))
    above = label(2, min(scale.start, scale.end) - 10, title, class_="axis")
    return tag("path", d=grid, class_="grid") + "".join(texts) + above


def spread_out(places: Iterable[float], gap: float, low: float, high: float) -> list[float]:
    """Return places moved as little as need be to lie ``gap`` apart, for labels; between the ends if there is room."""
    wanted = list(places)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    at = [max(wanted[index], low) for index in order]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + gap)
    limit = high
    for i in reversed(range(len(at))):
        at[i] = min(at[i], limit)
        limit = at[i] - gap
    placed = dict(zip(order, at, strict=True))
    return [placed[index] for index in range(len(wanted))]


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(nice for nice in _NICE if nice * power >= rough * (1 - 1e-9))


def _said(ticks: tuple[float, ...]) -> list[str]:
    """Return the values with the decimals that tell them apart; round thousands and millions are short."""
    largest = max(map(abs, ticks), default=0.0)
    units = ((unit, sign) for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= max(unit, 1e4))
    unit, sign = next((each for each in units if _digits(ticks, each[0]) < 2), (1.0, ""))
    said = (f"{value / unit + 0.0:,.{_digits(ticks, unit)}f}{sign if value else ''}" for value in ticks)
    return [text.replace("-", "\u2212") for text in said]


def _digits(values: tuple[float, ...], unit: float) -> int:
    """Return how many decimals the values need in a unit."""
    return next((count for count in range(7) if _exact([value / unit for value in values], count)), 7)


def _exact(values: list[float], digits: int) -> bool:
    return all(math.isclose(round(value, digits), value, abs_tol=1e-9) for value in values)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _value(value: object) -> str:
    return _short(value) if isinstance(value, float) else str(value)
