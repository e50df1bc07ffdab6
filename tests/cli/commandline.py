"""Helpers for tests of the command line: run it here or in a process of its own, and write throw-away plugins."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
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
    handlers = [(number, signal.getsignal(number)) for number in SIGNALS]
    threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(word) for word in words])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return Outcome(end.code, out.getvalue(), err.getvalue())
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers:
            signal.signal(number, handler)
    raise AssertionError("main() always exits")


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


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a started command."""
    out, err = process.communicate(timeout=120)
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
        if old is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = old


def _python_path(*more: Path) -> str:
    old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*map(str, more), *filter(None, old), str(ROOT)]))
