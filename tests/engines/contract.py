"""What every engine is held to: where it runs in tests, and the runs that all engines must make alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from commandline import Outcome, Place, finish, kdbench, start
from slurm_cluster import until

from kdbench.store import RunFolder

BOARD = "vanilla_kd,fails,kills,stops"  # cohorts of two: one method of each harms only itself, or both
ALONE = "holds"
FILES = ("student.safetensors", "predictions.npz", "spec.json")
SAME = ("accuracy", "nll", "ece", "agreement_with_teacher", "teachers", "config_sha256", "status")


@dataclass(frozen=True)
class Engine:
    """An engine as tests use it.

    Args:
        name: For people.
        words: Of the command line.
        outlives: Whether its jobs go on when the command that started them is killed.
        environment: Variables that its commands need.
        inside: Enters the network where its commands must be.
    """

    name: str
    words: tuple[object, ...]
    outlives: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    inside: Callable[[], AbstractContextManager[None]] = nullcontext

    def words_of(self, place: Place, methods: str) -> list[object]:
        """Return the words of a command: two runs per worker, two workers at a time."""
        return ["run", *place.cells(methods, 1), "--threads", 1, "--jobs", 2, "--lanes", 2, *self.words]


@contextmanager
def acts(folder: Path, **more: str) -> Iterator[None]:
    """Let the methods of the plugin act, and note it in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = {"KDBENCH_TEST_ACTS": str(folder), **more}
    old = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@dataclass(frozen=True)
class Held:
    """A command whose only run stands still in its second epoch.

    Args:
        place: Where it runs.
        engine: On what.
        acts: Folder of the notes of the methods.
    """

    place: Place
    engine: Engine
    acts: Path

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.place.folder(ALONE))

    def begin(self) -> subprocess.Popen[str]:
        """Start the command and wait until its run stands still."""
        self.acts.mkdir(exist_ok=True)
        (self.acts / "hold").touch()
        (self.acts / ALONE).unlink(missing_ok=True)
        process = start(*self.engine.words_of(self.place, ALONE))
        self.await_standstill(process)
        return process

    def await_standstill(self, process: subprocess.Popen[str] | None = None) -> None:
        """Wait until the run stands still."""
        until(lambda: (self.acts / ALONE).exists() or (process and process.poll() is not None), "the second epoch")
        if process and process.poll() is not None:
            raise AssertionError(finish(process))

    def go_on(self) -> Outcome:
        """Let the run go on, and start the command again."""
        (self.acts / "hold").unlink(missing_ok=True)
        return kdbench(*self.engine.words_of(self.place, ALONE))


def interrupt(process: subprocess.Popen[str]) -> Outcome:
    """Press Ctrl-C."""
    process.send_signal(signal.SIGINT)
    return finish(process)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a command; what it has started may hold its pipes open."""
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def attempts(place: Place, method: str) -> list[str]:
    """Return how each start of a run ended, in one word."""
    return [attempt["outcome"].partition(":")[0] for attempt in place.record(method)["attempts"]]


def check_equal(place: Place, other: Place, *methods: str) -> None:
    """Compare runs with those of another place, bit for bit, once their workers have put away what they needed."""
    for method in methods:
        mine, theirs = place.folder(method), other.folder(method)
        until(lambda folder=RunFolder(mine): not folder.held(), "the end of the worker")
        assert sorted(path.name for path in mine.iterdir()) == sorted(path.name for path in theirs.iterdir())
        for name in FILES:
            assert (mine / name).read_bytes() == (theirs / name).read_bytes(), (method, name)
        for key in SAME:
            assert place.record(method)[key] == other.record(method)[key], (method, key)


def notes(place: Place) -> list[list[list[str]]]:
    """Return what each array that was submitted for a store holds."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in place.runs.glob(".engines/slurm/*/jobs.json")]
