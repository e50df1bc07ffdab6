"""ASIB: adaptive synergy of several teachers through an information-bottleneck bridge, in A- and B-Steps."""

from __future__ import annotations

from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register ASIB."""
    from kdbench.methods.asib.method import ASIB

    return [ASIB]
