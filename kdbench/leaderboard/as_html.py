"""The leaderboard as one page: a file that needs no network, and shows every number with its seeds."""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from importlib import resources

from kdbench.leaderboard.claims_text import ALIGN, HEADERS, TITLE, claim_cells, claim_notes
from kdbench.leaderboard.columns import Column, columns
from kdbench.leaderboard.details import Details
from kdbench.leaderboard.judgement import Overview
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.notes import circumstances, reading
from kdbench.leaderboard.overall_text import ON_NEW, ON_THESE, on_new, on_these, overview_notes
from kdbench.leaderboard.overall_text import title as overview_title
from kdbench.leaderboard.plots import Figure, board_figures, figures
from kdbench.leaderboard.summary import compared, headline, statement
from kdbench.leaderboard.text import plain

_FOLDER = "templates"


@dataclass(frozen=True)
class _Cell:
    text: str
    sort: str  # empty where there is no value
    details: str
    right: bool
    strong: bool


@dataclass(frozen=True)
class _Section:
    key: str
    table: Table
    title: str
    heads: tuple[Column, ...]
    rows: tuple[tuple[_Cell, ...], ...]
    headline: str
    statement: str
    reading: tuple[str, ...]
    circumstances: tuple[str, ...]
    figures: tuple[Figure, ...]
    claims: tuple[list[str], ...]
    claim_notes: tuple[str, ...]


@dataclass(frozen=True)
class _Overview:
    key: str
    title: str
    statement: str
    grids: tuple[tuple[str, list[str], list[list[str]]], ...]  # title, heads, rows
    notes: tuple[str, ...]


def to_html(board: Leaderboard) -> str:
    """Return the page; equal boards give equal bytes.

    Templates escape everything; markup is only what this package wrote. A policy in the page forbids every script and
    style but its own, and every request, so that a name which got through would still do nothing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(__package__, _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    style, script = _file("page.css"), _file("page.js")
    return environment.get_template("page.html").render(
        compared=plain(compared(board)),
        sections=[_section(index, table) for index, table in enumerate(board.tables, 1)],
        figures=board_figures(board),
        overviews=[_overview(index, view) for index, view in enumerate(board.overviews, 1)],
        claim_title=TITLE,
        claim_heads=tuple(zip(HEADERS, ALIGN, strict=True)),
        markup=Markup,
        style=Markup(style),
        script=Markup(script),
        policy=Markup(f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"),
    )


def _overview(index: int, view: Overview) -> _Overview:
    grids = [(ON_THESE, on_these(view)), *([(ON_NEW, on_new(view))] if view.general else [])]
    cleaned = tuple(
        (words, [plain(head.title) for head in grid.heads], [[plain(cell) for cell in row] for row in grid.cells])
        for words, grid in grids
    )
    first, *notes = overview_notes(view, plain)
    return _Overview(f"o{index}", plain(overview_title(view)), first, cleaned, tuple(notes))


def _section(index: int, table: Table) -> _Section:
    shown = columns(table)
    return _Section(
        key=f"t{index}",
        table=table,
        title=plain(table.title),
        heads=shown,
        rows=tuple(_row(row, shown) for row in table.rows),
        headline=plain(headline(table)),
        statement=plain(statement(table)),
        reading=tuple(reading(table, quote=plain)),
        circumstances=tuple(circumstances(table, quote=plain)),
        figures=figures(table),
        claims=tuple(claim_cells(claim, quote=plain) for claim in table.claims.shown),
        claim_notes=tuple(claim_notes(table.claims, quote=plain)),
    )


def _row(row: Row, shown: tuple[Column, ...]) -> tuple[_Cell, ...]:
    return tuple(_cell(row, column) for column in shown)


def _cell(row: Row, column: Column) -> _Cell:
    value = column.sort(row)
    if isinstance(value, float):
        sort = f"{value:.5g}" if math.isfinite(value) else ""
    else:
        sort = "" if value is None else plain(value)
    return _Cell(plain(column.text(row)), sort, _lines(column.details(row)), column.right, column.strong(row))


def _lines(details: Details) -> str:
    """Return a line per seed, which the page's script puts its word before, and the further ones."""
    return "\n".join([*(f"{seed}: {value}" for seed, value in details.seeds), *details.also])


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(_FOLDER, name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
