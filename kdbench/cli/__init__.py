"""The command line: parse, call, print. Commands live one to a file and are imported when they are used."""

from __future__ import annotations

import sys
import traceback

from kdbench.cli.main import cli
from kdbench.errors import KdbenchError, printable


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong input, 3 a plugin's fault, 4 a run failed, 75 stopped."""
    import click

    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = cli.main([word for word in words if word != "--debug"], prog_name="kdbench", standalone_mode=False)
    except KdbenchError as error:
        if debug:
            traceback.print_exc()
        click.echo(printable(f"kdbench: {error}"), err=True)
        code = error.exit_code
    except click.ClickException as error:
        message = error.format_message()
        click.echo(printable(message if message.startswith("Usage:") else f"kdbench: {message}"), err=True)
        code = 2
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("kdbench: stopped; the same command continues where it was", err=True)
        code = 75
    except Exception as error:
        if debug:
            traceback.print_exc()
        said = (
            f"kdbench: unexpected {type(error).__name__}: {error}; a defect of kdbench or of a plugin: run again with "
        )
        click.echo(printable(f"{said}--debug to see where"), err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


__all__ = ["cli", "main"]
