"""The leaderboard as LaTeX: booktabs tables as wide as the text at most, for a paper to input."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from kdbench.leaderboard.claims_text import ALIGN, HEADERS, TITLE, claim_cells, claim_notes
from kdbench.leaderboard.columns import Column, Group, groups
from kdbench.leaderboard.heads import Head
from kdbench.leaderboard.judged_text import verdict
from kdbench.leaderboard.judgement import Overview
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.notes import circumstances, explained, grounds
from kdbench.leaderboard.overall_text import ON_NEW, ON_THESE, on_new, on_these, overview_notes, title
from kdbench.leaderboard.text import plain

_HEAD = r"""% Made by kdbench leaderboard. In the preamble: \usepackage{booktabs,graphicx}; then \input{leaderboard}.
% Notes below a table say what its numbers are; failures, versions and hashes stand in comments."""
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
    """Return the results, then what they cost: side by side they would be wider than a page."""
    parts = groups(table)
    results = [group for group in parts if not group.aside]
    grids = [
        _part(table, results, f"leaderboard-{number}", table.title, verdict(table), grounds(table, plain)),
        *(
            _part(table, [_named(parts[0]), group], f"costs-{number}", f"{table.title}: costs", "", [])
            for group in parts
            if group.aside
        ),
    ]
    comments = (f"% {note}" for note in circumstances(table, quote=plain))
    return "\n".join([*(line for grid in grids for line in grid), *comments, *_claims(table, number)])


def _named(who: Group) -> Group:
    """Return the names of the rows alone."""
    return replace(who, columns=who.columns[:1])


def _part(
    table: Table, parts: Sequence[Group], label: str, short: str, caption: str, further: Sequence[str]
) -> list[str]:
    shown = tuple(column for group in parts for column in group.columns)
    return _grid(
        label=label,
        short=short,
        caption=caption,
        notes=[*explained(parts, plain), *further],
        align="".join("r" if column.right else "l" for column in shown),
        heads=[column.head for column in shown],
        rows=[_row(row, shown) for row in table.rows],
    )


def _overview(view: Overview, number: int) -> Iterator[str]:
    """Return the tables of all pairs together; what they rest on stands below the first."""
    grids = [("these", ON_THESE, on_these(view)), *([("new", ON_NEW, on_new(view))] if view.general else [])]
    first, *others = overview_notes(view, plain)
    for place, (key, words, grid) in enumerate(grids):
        lines = _grid(
            label=f"overview-{key}-{number}",
            short=f"{title(view)}: {words}",
            caption=first if place == 0 else "",
            notes=others if place == 0 else [],
            align="l" + "r" * (len(grid.heads) - 1),
            heads=grid.heads,
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
        caption="",
        notes=said,
        align="".join(side[0] for side in ALIGN),
        heads=[Head(title) for title in HEADERS],
        rows=[[_own(cell) for cell in claim_cells(claim, quote=plain)] for claim in table.claims.shown],
    )


def _grid(
    label: str, short: str, caption: str, notes: Sequence[str], align: str, heads: Sequence[Head], rows: list[list[str]]
) -> list[str]:
    """Return a table's lines; cells are LaTeX, all else is plain text."""
    return [
        r"\begin{table}[htbp]",
        r"  \centering\small",
        f"  \\caption[{quote(short)}]{{{quote(f'{short}. {caption}')}}}",
        f"  \\label{{tab:{label}}}\\smallskip",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"  \\begin{{tabular}}{{{align}}}",
        r"    \toprule",
        *_heads(heads),
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        *_below(notes),
        r"\end{table}",
    ]


def _heads(heads: Sequence[Head]) -> list[str]:
    """Return the line of the heads; above it those that neighbours share, each with a rule over its columns."""
    own = f"    {' & '.join(quote(head.own or head.title) for head in heads)} \\\\"
    spans = [(over, len(list(columns))) for over, columns in groupby(head.over for head in heads)]
    if not any(over for over, _ in spans):
        return [own]
    cells, rules, last = [], [], 0
    for over, width in spans:
        first, last = last + 1, last + width
        cells += [f"\\multicolumn{{{width}}}{{c}}{{{quote(over)}}}"] if over else [""] * width
        rules += [f"\\cmidrule(lr){{{first}-{last}}}"] if over else []
    return [f"    {' & '.join(cells)} \\\\", f"    {' '.join(rules)}", own]


def _below(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return [r"  \par\smallskip", r"  \parbox{\linewidth}{\scriptsize", *(f"  {quote(note)}" for note in notes), "  }"]


def _row(row: Row, shown: tuple[Column, ...]) -> list[str]:
    return [_cell(row, column) for column in shown]


def _cell(row: Row, column: Column) -> str:
    text = quote(column.text(row)) if column.foreign else _own(column.text(row))
    return f"\\textbf{{{text}}}" if column.strong(row) else text


def _own(text: str) -> str:
    """Return our own text; its hyphens before digits are minus signs."""
    return _MINUS.sub("$-$", quote(text))
