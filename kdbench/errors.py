"""Every exception of kdbench, and the one form in which a user reads them.

A message says where, what is wrong with the value, what is allowed (or the nearest right name), and what to do.
The command line prints it without a traceback; ``exit_code`` is the process status.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

# What a plugin's code may end with. One that calls sys.exit(0) must not end the command as if all were done.
FAULTS = (Exception, SystemExit)


class KdbenchError(Exception):
    """Base of everything kdbench raises on purpose."""

    exit_code = 4


class ConfigError(KdbenchError):
    """The command, a configuration file or an input file is wrong; nothing was started."""

    exit_code = 2


class Unsupported(ConfigError):
    """A method cannot train a cell: raised by its constructor where options, batch or dataset do not allow it."""


class PluginError(KdbenchError):
    """A plugin broke its contract or failed on import."""

    exit_code = 3


class RunError(KdbenchError):
    """A run failed; its record says why."""

    exit_code = 4


class StoreError(KdbenchError):
    """The store cannot be written, or what it holds cannot be trusted."""

    exit_code = 73


class ProblemList(ConfigError):
    """All problems of one command, reported together.

    Args:
        problems: One complete message each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class Problems:
    """Collects what is wrong, so that one command reports all of it."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.broken: list[str] = []  # what plugins are at fault for

    def attempt(self, make: Callable[[], T]) -> T | None:
        """Return what is made, or None with the problem noted."""
        try:
            return make()
        except ProblemList as error:
            self.messages += error.problems
        except ConfigError as error:
            self.messages.append(str(error))
        except PluginError as error:
            self.broken.append(str(error))
        return None

    def raise_if_any(self) -> None:
        """Raise all that was noted."""
        if self.messages:
            raise ProblemList(self.messages + self.broken)
        if self.broken:
            raise PluginError("\n".join(dict.fromkeys(self.broken)))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the known name closest to ``name``, or an empty string."""
    folded = {k.lower(): k for k in known}
    match = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f" Did you mean '{folded[match[0]]}'?" if match else ""


def unknown(kind: str, name: str, known: Iterable[str], *, where: str = "") -> str:
    """Return the message for a name nobody registered: what it is, the nearest one, how to see all."""
    prefix = f"{where}: " if where else ""
    return f"{prefix}unknown {kind} '{name}'.{nearest(name, known)} All: kdbench list {kind}s"


def printable(text: str) -> str:
    """Return foreign text as a terminal may have it: what it would obey, or cannot show, is ``?``."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
