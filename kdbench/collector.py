"""Python's cycle collector, at rest while a great many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep the cycle collector from looking, again and again, through what a reader of thousands of files has made.

    Only cycles wait for its return; everything else is freed as ever. May be nested, and decorate a function.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
