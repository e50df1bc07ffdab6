"""The local engine and workers that hang, print without end, or do not want to stop."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from kdbench.cli.run import _stops_as_interrupt
from kdbench.errors import PluginError
from kdbench.execution.children import KEPT_LINES, LONGEST_LINE
from kdbench.execution.events import Event
from kdbench.execution.inline import InlineExecutor
from kdbench.execution.jobs import Ended, Job, Settings
from kdbench.execution.local import LocalExecutor
from kdbench.execution.worker import STOP_SIGNALS

SETTINGS = Settings(Path("runs"), Path("teachers"), Path("data"), ("cpu",), 1)
EVENT = json.dumps({"kind": "warning", "data": {"message": "alive"}})


class Script(Job):
    """A job whose worker runs some Python."""

    def command(self, settings: Settings, device: str) -> list[str]:  # noqa: ARG002
        return [sys.executable, "-c", self.name]


def end_in(engine: LocalExecutor) -> Ended:
    ended = engine.wait()
    assert ended is not None
    return ended


def test_a_worker_that_shows_no_progress_is_killed_and_its_children_too() -> None:
    engine = LocalExecutor(SETTINGS, lambda _event: None, patience=0.5)
    engine.submit(
        Script("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])", ())
    )
    ended = end_in(engine)
    assert ended.exit_code == -9
    assert ended.error == "\nit showed no progress for 0.00833333 minutes (--timeout)"


def test_events_are_signs_of_life_and_print_is_none() -> None:
    seen: list[Event] = []
    engine = LocalExecutor(SETTINGS, seen.append, patience=5.0)
    talk = f"import time\nfor _ in range(12):\n    print({EVENT!r}, flush=True)\n    time.sleep(.25)"
    engine.submit(Script(talk, ()))
    engine.submit(Script(talk.replace(EVENT, "noise").replace("range(12)", "range(400)"), (), ("noisy",)))
    ended = [end_in(engine), end_in(engine)]
    assert sorted(end.exit_code for end in ended) == [-9, 0]
    assert len(seen) == 12


def test_output_without_end_does_not_fill_the_drivers_memory() -> None:
    seen: list[Event] = []
    engine = LocalExecutor(SETTINGS, seen.append)
    out = f"sys.stdout.write('x' * {60 * LONGEST_LINE})"
    flood = f"import sys\n{out}\n{out.replace('out', 'err', 1)}\nprint()\nprint({EVENT!r})"
    engine.submit(Script(flood, ()))
    ended = end_in(engine)
    assert ended.exit_code == 0
    assert len(ended.error) <= KEPT_LINES * LONGEST_LINE
    assert [event.data for event in seen] == [{"message": "alive"}]


def test_asked_twice_it_stops_even_if_it_ignores_the_signal() -> None:
    seen = threading.Event()
    engine = LocalExecutor(SETTINGS, lambda _event: seen.set())
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    engine.submit(Script(f"{deaf}; print({EVENT!r}, flush=True); time.sleep(99)", ()))
    waiter: list[int] = []
    thread = threading.Thread(target=lambda: waiter.append(end_in(engine).exit_code))
    thread.start()
    assert seen.wait(60)
    engine.cancel()
    time.sleep(0.2)
    assert engine.running == 1
    engine.cancel()
    thread.join(60)
    assert waiter == [-9]


def test_a_plugin_that_exits_does_not_end_the_command_as_if_all_were_done() -> None:
    def leave(_job: Job) -> None:
        sys.exit(0)

    engine = InlineExecutor(leave)
    engine.submit(Job("run x", ()))
    with pytest.raises(PluginError, match=r"run x: a plugin ended the process \(exit code 0\); repair it"):
        engine.wait()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_stops_the_command_and_then_is_as_it_was(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with pytest.raises(KeyboardInterrupt), _stops_as_interrupt():
        signal.raise_signal(number)
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before
