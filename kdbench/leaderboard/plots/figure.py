"""A picture with its words, and how methods look in all pictures of a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdbench.leaderboard.model import Row, Table

STYLES = 8  # colours that can be told apart, by the colour-blind too; further methods are grey


@dataclass(frozen=True)
class Figure:
    """One picture.

    Args:
        title: What it shows, plain text.
        svg: The picture as markup; foreign text in it is escaped.
        text: How to read it, and who is not in it; plain text.
    """

    title: str
    svg: str
    text: str


def styles(table: Table) -> dict[str, int | None]:
    """Return the number of each method's style in the order of the rows; None is grey."""
    shown = [row.method for row in table.rows if drawable(row)]
    return {name: index if index < STYLES else None for index, name in enumerate(shown)}


def drawable(row: Row) -> bool:
    """Return whether a row's mean says something in a picture: runs at chance would stretch every axis."""
    return row.scored is not None and not row.unstable


def css_class(style: int | None) -> str:
    """Return the class of a style."""
    return "rest" if style is None else f"s{style}"


def left_out(names: Iterable[str], why: str) -> str:
    """Return a sentence that names what is not shown, or nothing."""
    named = ", ".join(names)
    return f" Not shown ({why}): {named}." if named else ""
