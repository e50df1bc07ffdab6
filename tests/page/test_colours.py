"""The style sheet's colours: readable in light and dark, and told apart by the colour-blind."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import pytest

STYLE = resources.files("kdbench.leaderboard").joinpath("templates", "page.css").read_text(encoding="utf-8")
# How the eye without one kind of cone sees linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
BLIND = {
    "none": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}
SHAPES = 4  # shapes and dashes repeat after so many styles


def themes() -> list[dict[str, str]]:
    """Return the colours of each block of the style sheet that sets them."""
    blocks = re.findall(r"\{([^{}]*--bg:[^{}]*)\}", STYLE)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


LIGHT, DARK, CHOSEN_DARK = themes()


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(colour: str) -> float:
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, matrix: tuple[tuple[float, ...], ...]) -> list[float]:
    """Return CIE L*a*b* of a colour as seen through a matrix."""
    rgb = [min(1.0, max(0.0, sum(m * v for m, v in zip(row, linear(colour), strict=True)))) for row in matrix]
    xyz = (
        (0.4124 * rgb[0] + 0.3576 * rgb[1] + 0.1805 * rgb[2]) / 0.9505,
        0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2],
        (0.0193 * rgb[0] + 0.1192 * rgb[1] + 0.9505 * rgb[2]) / 1.089,
    )
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in xyz)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def test_both_ways_to_dark_are_the_same() -> None:
    assert DARK == CHOSEN_DARK
    assert DARK.keys() == LIGHT.keys() >= {"bg", "fg", "dim", "s0", "s7", "rest"}


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_and_marks_stand_out(theme: dict[str, str]) -> None:
    for text, ground in itertools.product(("fg", "dim", "accent"), ("bg", "soft")):
        assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    for mark in (f"s{index}" for index in range(8)):
        assert contrast(theme[mark], theme["bg"]) >= 3, mark


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("kind", BLIND)
def test_styles_of_one_shape_differ_in_colour(theme: dict[str, str], kind: str) -> None:
    for index in range(SHAPES):
        one, other = (lab(theme[f"s{number}"], BLIND[kind]) for number in (index, index + SHAPES))
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 20, index
