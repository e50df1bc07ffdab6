"""Boards for the tests of the page, from the file beside this one, and a browser if there is one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The Chromium that ``KDBENCH_CHROMIUM`` names, or the first installed one."""
    found = os.environ.get("KDBENCH_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("needs Chromium: install it, or name one in KDBENCH_CHROMIUM")
    return found
