"""Leaderboards: pure functions of records. ``build`` makes the one model from which every output is written."""

from __future__ import annotations

from kdbench.leaderboard.answers import read_answers
from kdbench.leaderboard.as_csv import to_csv
from kdbench.leaderboard.as_html import to_html
from kdbench.leaderboard.as_json import to_json
from kdbench.leaderboard.as_latex import to_latex
from kdbench.leaderboard.as_markdown import to_markdown
from kdbench.leaderboard.build import build
from kdbench.leaderboard.compare_text import duels_json, duels_text
from kdbench.leaderboard.comparing import compare
from kdbench.leaderboard.manifest import MANIFEST, Manifest, write_manifest
from kdbench.leaderboard.model import Cell, Leaderboard
from kdbench.leaderboard.publishing import publish
from kdbench.leaderboard.reading import read_cells
from kdbench.leaderboard.writing import CURVES, FORMATS, check_formats, write

__all__ = [
    "CURVES",
    "FORMATS",
    "MANIFEST",
    "Cell",
    "Leaderboard",
    "Manifest",
    "build",
    "check_formats",
    "compare",
    "duels_json",
    "duels_text",
    "publish",
    "read_answers",
    "read_cells",
    "to_csv",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
    "write",
    "write_manifest",
]
