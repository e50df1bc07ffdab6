"""Independent libraries as oracles, where they are installed; their own warnings are not ours."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import pytest


def oracle(name: str) -> ModuleType:
    """Import a library, or skip the test that needs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            pytest.skip(f"needs {name.partition('.')[0]} (pip install 'kdbench[stats]')")
