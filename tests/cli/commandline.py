"""Helpers for tests of the command line: run it here or in a process of its own, and write throw-away plugins."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROTO = Path(__file__).with_name("proto.yaml")
METHODS = "student,vanilla_kd,dkd"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Outcome:
    """What a command did; ``code`` is its exit status."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The lines of its error message."""
        assert self.err.startswith("kdbench: "), self.err
        return self.err.removeprefix("kdbench: ").splitlines()


def kdbench(*words: object) -> Outcome:
    """Run a command in this process; whatever is no SystemExit reaches the test as a traceback would the user."""
    from kdbench.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: object = "main() always exits"
    handlers = [(number, signal.getsignal(number)) for number in SIGNALS]
    threads, path = torch.get_num_threads(), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _python_path()  # for the workers it may start
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    finally:
        _restore_path(path)
        torch.set_num_threads(threads)
        for number, handler in handlers:
            signal.signal(number, handler)
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def failure(*words: object, code: int = 2) -> str:
    """Run a command that must fail with ``code``; return its message, which must not be a traceback."""
    outcome = kdbench(*words)
    assert outcome.code == code, outcome
    assert outcome.err.startswith("kdbench: ")
    assert "Traceback" not in outcome.err
    return outcome.err.removeprefix("kdbench: ").rstrip("\n")


def start(*words: object, group: bool = False) -> subprocess.Popen[str]:
    """Start a command in a process of its own (and, on request, a process group)."""
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-m", "kdbench", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
        env={**os.environ, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> Outcome:
    """Wait for a started command."""
    out, err = process.communicate(timeout=seconds)
    return Outcome(process.returncode, out, err)


def write_plugin(folder: Path, module: str, source: str, version: str = "1.0") -> Path:
    """Write a package as pip would install it, with an entry point; return the folder to put on the path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    about = folder / f"{module}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[kdbench]\n{module} = {module}\n", encoding="utf-8")
    return folder


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Have the plugins of a folder installed, here and in processes started meanwhile."""
    old = os.environ.get("PYTHONPATH")
    modules = {path.stem for path in folder.glob("*.py")}
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = _python_path(folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in modules & set(sys.modules):
            del sys.modules[name]
        _restore_path(old)


def _restore_path(old: str | None) -> None:
    os.environ.pop("PYTHONPATH", None)
    if old is not None:
        os.environ["PYTHONPATH"] = old


def _python_path(*more: Path) -> str:
    old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*map(str, more), *filter(None, old), str(ROOT)]))


@dataclass(frozen=True)
class Place:
    """A folder with runs and teachers, and the words that name both."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def teachers(self) -> Path:
        return self.root / "teachers"

    def cells(self, methods: str, seeds: int, *more: object) -> list[object]:
        """Return the words of a run or plan of the test protocol."""
        return [
            "--method", methods, "--pair", "tiny", "--seeds", seeds, "--anchor", PROTO, "--per-class", 20,
            "--out", self.runs, "--teachers", self.teachers, *more,
        ]  # fmt: skip

    def folder(self, method: str, seed: int = 0) -> Path:
        """Return the folder of a run of the test protocol."""
        return self.runs / "proto-v3" / "digits-20pc" / "tiny" / method / f"seed{seed}"

    def record(self, method: str, seed: int = 0) -> Any:
        """Return the record of a run, as JSON."""
        return json.loads((self.folder(method, seed) / "record.json").read_text(encoding="utf-8"))

    def with_teachers_of(self, other: Place) -> Place:
        """Copy another place's teachers here, so that none has to be trained."""
        shutil.copytree(other.teachers, self.teachers)
        return self


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time stamp and content of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


_finished: list[Place] = []


def finished_place(factory: pytest.TempPathFactory) -> Place:
    """Return a place with the finished runs of three methods and two seeds, made once; nobody may change it."""
    if not _finished:
        place = Place(factory.mktemp("finished"))
        outcome = kdbench("run", *place.cells(METHODS, 2), "--threads", 1, "--executor", "inline")
        assert outcome.code == 0, outcome
        _finished.append(place)
    return _finished[0]
