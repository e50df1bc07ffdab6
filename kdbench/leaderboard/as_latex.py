"""The leaderboard as LaTeX: one booktabs table each, for a paper to input."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from kdbench.leaderboard.claims_text import ALIGN, HEADERS, TITLE, claim_cells, claim_notes
from kdbench.leaderboard.columns import Column, columns
from kdbench.leaderboard.judgement import Overview
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.notes import circumstances, reading
from kdbench.leaderboard.overall_text import ON_NEW, ON_THESE, on_new, on_these, overview_notes, title
from kdbench.leaderboard.text import plain

_HEAD = r"""% Made by kdbench leaderboard. In the preamble: \usepackage{booktabs}. Read it with \input{leaderboard}.
% Captions say what the numbers are; failures, versions and hashes stand in comments below each table."""
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "†": r"\dag{}",
    "\u00d7": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    # After the end of a row, a bracket or an asterisk would be read as an argument of it.
    **{character: f"{{{character}}}" for character in "[]*"},
}
_LETTERS = range(0xC0, 0x180)  # Latin letters that LaTeX's input encoding knows in every font
_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")


def to_latex(board: Leaderboard) -> str:
    """Return the board as LaTeX that any engine reads: ASCII and Latin letters, ending in a newline."""
    tables = (_table(table, number) for number, table in enumerate(board.tables, 1))
    views = (line for number, view in enumerate(board.overviews, 1) for line in _overview(view, number))
    return "\n\n".join([_HEAD, *tables, *views]) + "\n"


def quote(text: object) -> str:
    """Return foreign text as LaTeX prints it; characters no plain font has are named by their code."""
    return "".join(_character(character) for character in plain(text))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii() or ord(character) in _LETTERS:
        return character
    simpler = unicodedata.normalize("NFKD", character)
    return quote(simpler) if simpler.isascii() else f"{{[}}U+{ord(character):04X}{{]}}"


def _table(table: Table, number: int) -> str:
    shown = columns(table)
    lines = _grid(
        label=f"leaderboard-{number}",
        short=table.title,
        caption=reading(table, quote=plain),
        align="".join("r" if column.right else "l" for column in shown),
        head=[quote(column.title) for column in shown],
        rows=[_row(row, shown) for row in table.rows],
    )
    comments = (f"% {note}" for note in circumstances(table, quote=plain))
    return "\n".join([*lines, *comments, *_claims(table, number)])


def _overview(view: Overview, number: int) -> Iterator[str]:
    """Return the tables of all pairs together; what they rest on stands in the caption of the first."""
    grids = [("these", ON_THESE, on_these(view)), *([("new", ON_NEW, on_new(view))] if view.general else [])]
    for place, (key, words, grid) in enumerate(grids):
        lines = _grid(
            label=f"overview-{key}-{number}",
            short=f"{title(view)}: {words}",
            caption=overview_notes(view, plain) if place == 0 else [],
            align="l" + "r" * (len(grid.heads) - 1),
            head=[quote(head) for head in grid.heads],
            rows=[[quote(row[0]), *map(_own, row[1:])] for row in grid.cells],
        )
        yield "\n".join(lines)


def _claims(table: Table, number: int) -> list[str]:
    """Return the table of published accuracies; where none is shown, why not, as comments."""
    said = claim_notes(table.claims, quote=plain)
    if not table.claims.shown:
        return [f"% {note}" for note in said]
    return _grid(
        label=f"claimed-{number}",
        short=f"{TITLE}: {table.title}",
        caption=said,
        align="".join(side[0] for side in ALIGN),
        head=[quote(head) for head in HEADERS],
        rows=[[_own(cell) for cell in claim_cells(claim, quote=plain)] for claim in table.claims.shown],
    )


def _grid(label: str, short: str, caption: list[str], align: str, head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table's lines; short title and caption are plain text, heads and cells are LaTeX."""
    return [
        r"\begin{table}[htbp]",
        r"  \centering\small",
        f"  \\caption[{quote(short)}]{{{quote(' '.join([f'{short}.', *caption]))}}}",
        f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{{align}}}",
        r"    \toprule",
        f"    {' & '.join(head)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


def _row(row: Row, shown: tuple[Column, ...]) -> list[str]:
    return [_cell(row, column) for column in shown]


def _cell(row: Row, column: Column) -> str:
    text = quote(column.text(row)) if column.foreign else _own(column.text(row))
    return f"\\textbf{{{text}}}" if column.strong(row) else text


def _own(text: str) -> str:
    """Return our own text; its hyphens before digits are minus signs."""
    return _MINUS.sub("$-$", quote(text))
