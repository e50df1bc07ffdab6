"""What a command line takes where only a path will do: plugins' commands may use it, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class LocalPath(click.Path):
    """A folder or a file on a file system; a URL, of which :class:`Path` would make a folder ``s3:``, is refused.

    Args:
        what: ``folder`` or ``file``, for the message.
        checks: As of :class:`click.Path`.
    """

    def __init__(self, what: str = "folder", **checks: Any) -> None:
        super().__init__(path_type=Path, **checks)
        self.what = what

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            click.BadParameter: If it is a URL.
        """
        if isinstance(value, str) and "://" in value:
            self.fail(
                f"'{value}' is a URL; only a {self.what} on a file system will do here: give its path", param, ctx
            )
        return Path(os.fsdecode(super().convert(value, param, ctx)))
