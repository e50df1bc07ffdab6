"""Every test of the command line works in an empty folder; one small teacher is made once."""

from __future__ import annotations

from pathlib import Path

import commandline
import pytest


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> commandline.Place:
    """Return finished runs to read; a test that changes something copies them first."""
    return commandline.finished_place(tmp_path_factory)
