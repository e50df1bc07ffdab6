"""Every test of the command line works in an empty folder; one small teacher is made once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str, path: Path) -> ModuleType:
    """Import a helper that stands beside the tests, which are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


commandline = _load("commandline", Path(__file__).with_name("commandline.py"))
fieldnets = _load("fieldnets", Path(__file__).with_name("fieldnets.py"))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> commandline.Place:
    """Return finished runs to read; a test that changes something copies them first."""
    return commandline.finished_place(tmp_path_factory)
