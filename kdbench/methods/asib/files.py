"""The files that come with ASIB: its configurations as presets, its ladders, and their protocols."""

from __future__ import annotations

from pathlib import Path

from kdbench.hooks import hookimpl

_HERE = Path(__file__).parent


@hookimpl
def kdbench_anchors() -> list[Path]:
    """Register the protocols of the ladders and of the method files."""
    return sorted((_HERE / "anchors").glob("*.yaml"))


@hookimpl
def kdbench_presets() -> list[Path]:
    """Register the configurations of the experiments."""
    return sorted((_HERE / "presets").glob("*.yaml"))


@hookimpl
def kdbench_ladders() -> list[Path]:
    """Register the ladders."""
    return sorted((_HERE / "ladders").glob("*.yaml"))
