"""Fixtures every test may use, and the one thread that keeps two test workers off each other's cores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench import registry as registries
from kdbench.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


# Tests that share what is dear run in one worker, or both would make it: those of a folder, of a file,
# or of a network or method.
BY_FOLDER = ("tests/engines/", "tests/training/team/")
BY_FILE = ("tests/cli/", "tests/e2e/", "tests/page/")
BY_FIRST_PARAMETER = ("tests/conformance/",)
NOT_TESTED = "not tested: "  # begins the reason of a skip for want of what CI has


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not tested here, and how much of it."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", ()))
    missing = {reason.partition(NOT_TESTED)[2]: count for reason, count in reasons.items() if NOT_TESTED in reason}
    for reason, count in missing.items():
        terminalreporter.write_line(f"NOT TESTED HERE: {count} tests: {reason}", yellow=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give tests that share something dear, as a cluster, to one worker; the others one by one to whoever is free.

    What ``--dist loadgroup`` does with marks, by paths: with pytest 9.2 the marks of xdist 3.8 have no effect.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            if path.startswith(BY_FILE):
                return path
            if path.startswith(BY_FIRST_PARAMETER) and "[" in test:
                return f"{path}[{test.partition('[')[2].rstrip(']').partition('-')[0]}]"
            return next((folder for folder in BY_FOLDER if path.startswith(folder)), nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the reference files beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared reference files beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All installed plugins."""
    return registries.load()
