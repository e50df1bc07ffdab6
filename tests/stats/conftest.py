"""Independent libraries as oracles, where they are installed; their own warnings are not ours."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest

Oracle = Callable[[str], ModuleType]


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Import a library, or skip the test that needs it."""

    def load(name: str) -> ModuleType:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return importlib.import_module(name)
            except ImportError:
                pytest.skip(f"needs {name.partition('.')[0]} (pip install 'kdbench[stats]')")

    return load
