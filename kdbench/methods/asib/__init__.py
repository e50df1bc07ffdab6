"""ASIB: adaptive synergy of several teachers through an information-bottleneck bridge, in A- and B-Steps."""

from __future__ import annotations

from kdbench.methods.asib.command import kdbench_commands
from kdbench.methods.asib.files import kdbench_anchors, kdbench_ladders, kdbench_presets

__all__ = ["kdbench_anchors", "kdbench_commands", "kdbench_ladders", "kdbench_presets"]
