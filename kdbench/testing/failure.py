"""How a check fails."""

from __future__ import annotations

from kdbench.errors import PluginError


class CheckFailure(PluginError):
    """A method breaks its contract; the message says what is wrong and what to do."""
