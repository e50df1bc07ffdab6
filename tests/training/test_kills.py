"""R4: a run that is killed again and again, inside saves as well, ends in the bits of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from kdbench import files
from kdbench.store import PREDICTIONS, WEIGHTS

KILLS = 14
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def _in_child(work: Callable[[], object]) -> int:
    """Start ``work`` in a child that shares this process's imports, and return its pid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which these children do not use
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def _kill_in_write(number: int) -> None:
    """Let this process kill itself when its ``number``-th file is on disk under its temporary name only."""
    left, original = [number], files.os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(descriptor)

    files.os.fsync = fsync  # type: ignore[attr-defined]


@pytest.mark.parametrize("more", [{}, {"stopping__patience": 7, "optimizer__lr": 0.6}], ids=["last", "best"])
def test_kills_at_random_moments(lab: Any, more: dict[str, Any]) -> None:
    spec = lab.spec("toy_bank", anchor=lab.anchor(schedule__epochs=8, step__ema_decay=0.9, **more))
    (left_alone,) = lab.run([spec], "whole")
    folder, whole = lab.folders([spec], "killed")[0], lab.folders([spec], "whole")[0]
    draws, killed, torn = random.Random(0), 0, 0
    for attempt in range(KILLS):
        reader, writer = os.pipe()

        def work(into: int = writer, inside: bool = attempt % 2 == 1, number: int = draws.randint(4, 8)) -> None:
            if inside:
                _kill_in_write(number)
            lab.run([spec], "killed", should_stop=lambda: os.write(into, b".") == 0)

        pid = _in_child(work)
        os.close(writer)
        if attempt % 2 == 0:  # from outside: some steps in, and then a moment that no code chose
            for _ in range(draws.randint(1, 7)):
                os.read(reader, 1)
            time.sleep(draws.random() * 0.01)
            os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        os.close(reader)
        torn += len([*folder.path.rglob(f"{files.TEMPORARY}*")]) > 0
    assert killed == KILLS, "the run ended before it was killed often enough"
    assert torn > 0, "no kill fell into a write"
    (record,) = lab.run([spec], "killed")
    for name in (WEIGHTS, PREDICTIONS):
        assert (folder.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert record.accuracy == left_alone.accuracy
    # An attempt that was killed before it could say that it began has left no trace.
    assert 10 <= len(record.attempts) - 1 <= KILLS
    assert {attempt.outcome for attempt in record.attempts[:-1]} == {"killed"}
    assert (record.status, record.attempts[-1].outcome) == (left_alone.status, left_alone.attempts[-1].outcome)
    assert record.attempts[-1].from_epoch > 0
    assert not [*folder.path.rglob(f"{files.TEMPORARY}*"), *folder.path.rglob("*.corrupt")]
    assert not folder.checkpoints.exists()


def test_a_kill_between_the_files_of_the_result(lab: Any) -> None:
    """The last checkpoint is kept until the record is safe, whichever of the files was the last one."""
    spec = lab.spec("student")
    lab.run([spec], "whole")
    whole, folder = (lab.folders([spec], where)[0] for where in ("whole", "killed"))
    lab.train([spec], "killed")  # all epochs are done, nothing is written but checkpoints
    for number in (
        5,
        7,
        9,
        11,
    ):  # lease and attempts.json, then weights, predictions, epochs and record, two syncs each
        pid = _in_child(lambda number=number: (_kill_in_write(number), lab.run([spec], "killed")))
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert folder.record() is None
    (record,) = lab.run([spec], "killed")
    assert record.status == "ok"
    for name in (WEIGHTS, PREDICTIONS):
        assert (folder.path / name).read_bytes() == (whole.path / name).read_bytes(), name
