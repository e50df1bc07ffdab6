"""ASIB: adaptive synergy of several teachers through an information-bottleneck bridge, in A- and B-Steps."""

from __future__ import annotations

from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod
from kdbench.methods.asib.command import kdbench_commands
from kdbench.methods.asib.files import kdbench_anchors, kdbench_ladders, kdbench_presets
from kdbench.methods.asib.method import ASIB

__all__ = ["ASIB", "kdbench_anchors", "kdbench_commands", "kdbench_ladders", "kdbench_methods", "kdbench_presets"]


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register ASIB."""
    return [ASIB]
