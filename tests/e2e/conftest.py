"""Whole runs of the command line on the digits, with a plugin that misbehaves on demand."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commandline
import pytest
import scripted

PROBE = Path(__file__).with_name("probe_methods.py")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return finished runs to read; a test that changes something copies them first."""
    return commandline.finished_place(tmp_path_factory)


@pytest.fixture(scope="module")
def specs() -> Any:
    """Return the runs of two methods with two seeds each."""
    return scripted.planned()


@pytest.fixture
def order(specs: Any, tmp_path: Path) -> Any:
    """Return the order to carry them out."""
    return scripted.order_of(specs, tmp_path)


@pytest.fixture(scope="session")
def probe_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the misbehaving plugin as an installed package."""
    folder = tmp_path_factory.mktemp("site")
    return commandline.write_plugin(folder, "probe_methods", PROBE.read_text(encoding="utf-8"))


@pytest.fixture
def orders(probe_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install the plugin and return what gives it orders."""
    path = tmp_path / "orders.json"
    monkeypatch.setenv("KDBENCH_TEST_ORDERS", str(path))

    def give(what: str, epoch: int = 1, step: int = 4, *, once: bool = True) -> Path:
        path.write_text(json.dumps({"what": what, "epoch": epoch, "step": step, "once": once}), encoding="utf-8")
        return path

    with commandline.installed(probe_site):
        yield give


@pytest.fixture(scope="session")
def undisturbed(finished: Any, probe_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return runs of student and probe that nothing interrupted."""
    place = commandline.Place(tmp_path_factory.mktemp("undisturbed")).with_teachers_of(finished)
    with commandline.installed(probe_site):
        outcome = commandline.kdbench("run", *place.cells("student,probe", 1), "--threads", 1, "--executor", "inline")
    assert outcome.code == 0, outcome
    return place


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let children hear Ctrl-C: a shell that starts this in the background has it ignored, and they inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
