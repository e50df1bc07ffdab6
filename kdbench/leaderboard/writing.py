"""Which outputs there are, and writing them: each file whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from kdbench.collector import collector_at_rest
from kdbench.errors import ConfigError, nearest
from kdbench.files import sweep_dead, write_atomic
from kdbench.leaderboard.as_csv import to_csv
from kdbench.leaderboard.as_html import to_html
from kdbench.leaderboard.as_json import to_json
from kdbench.leaderboard.as_latex import to_latex
from kdbench.leaderboard.as_markdown import to_markdown
from kdbench.leaderboard.model import Leaderboard

NAME = "leaderboard"
FORMATS: Mapping[str, Callable[[Leaderboard], str]] = MappingProxyType(
    {"md": to_markdown, "html": to_html, "json": to_json, "csv": to_csv, "latex": to_latex}
)
CURVES = ("html",)  # the formats that show learning curves
_ENDINGS = {"latex": "tex"}  # the others are endings themselves


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Return the formats without repeats.

    Raises:
        ConfigError: If one is unknown or there is none.
    """
    allowed = ", ".join(FORMATS)
    if not formats:
        raise ConfigError(f"--format: none given; allowed: {allowed}")
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--format: unknown format '{name}'.{nearest(name, FORMATS)} Allowed: {allowed}")
    return tuple(dict.fromkeys(formats))


def file_name(kind: str) -> str:
    """Return what the file of a format is called."""
    return f"{NAME}.{_ENDINGS.get(kind, kind)}"


@collector_at_rest()
def write(board: Leaderboard, out_dir: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write ``leaderboard.md`` and its like, one file per format, and return the paths; equal boards give equal bytes.

    Args:
        board: What to write.
        out_dir: Folder, created if needed.
        formats: Names from :data:`FORMATS`.

    Raises:
        ConfigError: If a format is unknown; nothing is written then.
        StoreError: If a file cannot be written.
    """
    chosen = check_formats(formats)
    sweep_dead(out_dir)
    texts = {out_dir / file_name(name): FORMATS[name](board) for name in chosen}
    for path, text in texts.items():
        write_atomic(path, text)
    return tuple(texts)
