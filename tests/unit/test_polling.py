"""Jobs in a queue that follows a script: handed over once, watched, stopped, and judged by what they left."""

# ruff: noqa: ARG002 (signatures are given)

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from kdbench.errors import StoreError
from kdbench.execution import polling
from kdbench.execution.events import Event
from kdbench.execution.jobs import Ended, Job, Settings
from kdbench.execution.polling import ASKED_ABOUT, LAST_LOOKS, QueueExecutor
from kdbench.execution.queues import State, Ticket, subjects
from kdbench.execution.seam import Opening


def job(*run_ids: str) -> Job:
    return Job(f"run {run_ids[0]}", ("run-one", *run_ids), run_ids)


class Scripted:
    """A queue in which jobs stay until the test takes them out."""

    out, err = ".out", ".err"
    answers = True

    def __init__(self, folder: Path, most: int = 100) -> None:
        self.folder, self.most = folder, most
        self.arrays: list[tuple[list[str], int]] = []
        self.states: dict[Ticket, State] = {}
        self.held: dict[str, Ticket] = {}
        self.codes: dict[Ticket, int] = {}
        self.cancelled = False
        self.said: list[tuple[str, list[int]]] = []
        self.looks = 0

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def takes(self, room: int) -> int:
        return min(self.most, 100 if room > 0 else 0)

    def owners(self) -> Mapping[str, Ticket]:
        return self.held

    def submit(self, jobs: Sequence[Job], at_once: int) -> list[Ticket]:
        folder = self.folder / str(len(self.arrays))
        folder.mkdir()
        self.arrays.append(([each.name for each in jobs], at_once))
        tickets = [Ticket(folder, index) for index in range(len(jobs))]
        self.states |= dict.fromkeys(tickets, State.RUNNING)
        return tickets

    def look(self) -> Mapping[Ticket, State]:
        self.looks += 1
        return dict(self.states)

    def outcome(self, ticket: Ticket) -> int | None:
        return self.codes.get(ticket)

    def fate(self, ticket: Ticket) -> tuple[bool, str]:
        return self.cancelled, "it has ended"

    def stop(self, tickets: Sequence[Ticket]) -> None:
        self.said.append(("stop", [ticket.index for ticket in tickets]))

    def kill(self, tickets: Sequence[Ticket]) -> None:
        self.said.append(("kill", [ticket.index for ticket in tickets]))
        for ticket in tickets:
            self.states.pop(ticket)

    def end(self, ticket: Ticket, code: int | None, error: str = "") -> None:
        self.states.pop(ticket)
        ticket.path(".err").write_text(error)
        if code is not None:
            self.codes[ticket] = code


@pytest.fixture(autouse=True)
def done(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the runs that are not to be done any more; there is no store."""
    done: set[str] = set()
    monkeypatch.setattr(polling, "left", lambda job, _settings: [run for run in job.run_ids if run not in done])
    return done


@pytest.fixture
def queue(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


def opened(queue: Scripted, seen: list[Event] | None = None, jobs: int = 2, patience: float = 0.0) -> QueueExecutor:
    settings = Settings(queue.folder, queue.folder, queue.folder, ("cpu",), 1)
    see = (seen if seen is not None else []).append
    return QueueExecutor(queue, Opening(settings, see, jobs=jobs, patience=patience), seconds=0.0)


def test_what_comes_together_is_one_array_and_so_many_run_at_a_time(queue: Scripted) -> None:
    engine = opened(queue, jobs=2)
    for name in "abc":
        engine.submit(job(name))
    assert engine.running == 3
    engine._look()
    assert queue.arrays == [(["run a", "run b", "run c"], 2)]
    engine._look()
    assert len(queue.arrays) == 1
    for index, code in enumerate((0, 65, -9)):
        queue.end(Ticket(queue.folder / "0", index), code, f"said {index}")
    ends = [engine.wait() for _ in range(3)]
    assert [(ended.job.name, ended.exit_code, ended.error) for ended in ends] == [
        ("run a", 0, "said 0"), ("run b", 65, "said 1"), ("run c", -9, "said 2"),
    ]  # fmt: skip
    assert engine.running == 0


def test_a_retry_waits_for_room_so_that_no_more_run_at_a_time(queue: Scripted) -> None:
    engine = opened(queue, jobs=2)
    for name in "abc":
        engine.submit(job(name))
    engine._look()
    queue.end(Ticket(queue.folder / "0", 0), -9)
    engine.submit(engine.wait().job)
    engine._look()
    assert len(queue.arrays) == 1, "two may be running"
    queue.end(Ticket(queue.folder / "0", 1), 0)
    engine.wait()
    engine._look()
    assert queue.arrays[1:] == [(["run a"], 1)]


def test_a_queue_that_starts_nothing_by_itself_gets_what_has_room(queue: Scripted) -> None:
    queue.most = 1
    engine = opened(queue)
    engine.submit(job("a"))
    engine.submit(job("b"))
    engine._look()
    assert [names for names, _ in queue.arrays] == [["run a"]]


def test_what_is_in_the_queue_is_not_submitted_again(queue: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """Two jobs of which one is there as it is, and one as a part of another; a third is new."""
    (queue.folder / "old").mkdir()
    first, second = Ticket(queue.folder / "old", 0), Ticket(queue.folder / "old", 1)
    queue.states = {first: State.RUNNING, second: State.WAITING}
    queue.held = {"a": first, "b": second, "c": second}
    first.path(".out").write_text(Event("warning", {"message": "old"}).to_line())
    seen: list[Event] = []
    engine = opened(queue, seen)
    for each in (job("a"), job("b"), job("d")):
        engine.submit(each)
    engine._look()
    assert queue.arrays == []
    assert caplog.messages == ["2 jobs are in the queue already; they are watched, not submitted again"]
    with first.path(".out").open("a") as file:
        file.write(Event("warning", {"message": "new"}).to_line())
    queue.end(first, 0)
    queue.end(second, 0)
    ended = {each.job.name: each.exit_code for each in (engine.wait(), engine.wait())}
    assert ended == {"run a": 0, "run b": 75}, "of a part it is not known whether it was done"
    assert [event.data["message"] for event in seen] == ["new"]
    engine._look()
    assert queue.arrays == [(["run d"], 2)]


def test_what_an_earlier_command_left_in_the_queue_is_known(queue: Scripted) -> None:
    engine = opened(queue)
    assert not engine.knows(job("a"))
    queue.held = {"b": Ticket(queue.folder / "old", 0)}
    assert [engine.knows(each) for each in (job("a"), job("b"), job("a", "b"))] == [False, True, True]


def test_events_come_as_they_are_written_and_half_a_line_waits(queue: Scripted) -> None:
    seen: list[Event] = []
    engine = opened(queue, seen)
    engine.submit(job("a"))
    engine._look()
    path, line = queue.folder / "0" / "0.out", Event("warning", {"message": "one"}).to_line()
    for text, expected in (("noise\n" + line[:5], 0), (line[5:], 1), (line + "\xff\n" + line, 3)):
        with path.open("a", encoding="latin-1") as file:
            file.write(text)
        engine._look()
        assert len(seen) == expected


@pytest.mark.parametrize("line", ["x" * 200_000, "x" * 200_000 + "\n"])
def test_a_line_without_end_stops_nothing(queue: Scripted, line: str) -> None:
    seen: list[Event] = []
    engine = opened(queue, seen)
    engine.submit(job("a"))
    engine._look()
    (queue.folder / "0" / "0.out").write_text(line + "\n" + Event("warning", {"message": "one"}).to_line())
    engine._look()
    assert len(seen) == 1


def test_one_that_left_no_word_is_looked_for_and_then_lost(queue: Scripted) -> None:
    engine = opened(queue)
    engine.submit(job("a"))
    engine._look()
    before = queue.looks
    queue.end(Ticket(queue.folder / "0", 0), None, "last words")
    ended = engine.wait()
    assert (ended.exit_code, ended.error) == (-9, "last words\nit has ended")
    assert queue.looks == before + LAST_LOOKS


def test_none_counts_as_lost_while_the_queue_does_not_answer(queue: Scripted) -> None:
    engine = opened(queue)
    engine.submit(job("a"))
    engine._look()
    ticket = Ticket(queue.folder / "0", 0)
    queue.end(ticket, None)
    queue.answers = False
    for _ in range(2 * LAST_LOOKS):
        engine._look()
    assert engine.running == 1
    queue.codes[ticket] = 0
    assert engine.wait() == Ended(job("a"), 0, ""), "what it has left is believed all the same"


def wait_in(queue: Scripted, *indices: int) -> None:
    for index in indices:
        queue.states[Ticket(queue.folder / "0", index)] = State.WAITING


def test_what_waits_for_nothing_is_taken_out_of_the_queue(queue: Scripted, done: set[str]) -> None:
    engine = opened(queue, jobs=1)
    for each in (job("a"), job("b", "c"), job("d"), Job("teacher x", ("teacher", "train", "x"))):
        engine.submit(each)
    engine._look()
    wait_in(queue, 1, 2, 3)
    done |= {"a", "b"}
    engine._look()
    assert queue.said == [], "it runs and stops by itself; half of it is wanted; of a teacher nothing is known"
    done.add("c")
    engine._look()
    assert queue.said == [("stop", [1])]
    queue.cancelled = True  # as the queue sees it; but it was this command
    queue.end(Ticket(queue.folder / "0", 1), None)
    assert engine.wait() == Ended(job("b", "c"), 75, "")
    assert engine.running == 3


def test_few_of_those_that_wait_are_asked_about_at_a_time(queue: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(polling, "left", lambda job, _settings: asked.append(job.run_ids[0]) or ["something"])
    names = [f"r{number}" for number in range(2 * ASKED_ABOUT + 1)]
    engine = opened(queue, jobs=1)
    for name in names:
        engine.submit(job(name))
    engine._hand_over()
    wait_in(queue, *range(len(names)))
    engine._look()
    assert asked == names[:ASKED_ABOUT]
    engine._look()
    engine._look()
    assert asked == [*names, *names[: ASKED_ABOUT - 1]]


def test_a_store_that_does_not_answer_is_asked_again(queue: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_job: Job, _settings: Settings) -> list[str]:
        raise StoreError("away")

    engine = opened(queue)
    engine.submit(job("a"))
    engine._hand_over()
    wait_in(queue, 0)
    monkeypatch.setattr(polling, "left", away)
    engine._look()
    assert (engine.running, queue.said) == (1, [])


@pytest.mark.parametrize("code", [None, 75])
def test_one_that_somebody_cancelled_is_not_tried_again(queue: Scripted, code: int | None) -> None:
    engine = opened(queue)
    engine.submit(job("a"))
    engine._look()
    queue.cancelled = True
    queue.end(Ticket(queue.folder / "0", 0), code)
    ended = engine.wait()
    assert ended.exit_code == 4
    assert ended.error == "kdbench: run a: it has ended; start the same command again to go on"


def test_one_that_was_stopped_and_left_the_queue_may_go_on(queue: Scripted) -> None:
    engine = opened(queue)
    engine.submit(job("a"))
    engine._look()
    queue.end(Ticket(queue.folder / "0", 0), 75)
    assert engine.wait().exit_code == 75


def test_silence_of_a_running_job_is_not_endured_and_waiting_is_no_silence(queue: Scripted) -> None:
    engine = opened(queue, patience=1e-6)
    engine.submit(job("a"))
    engine._hand_over()
    ticket = Ticket(queue.folder / "0", 0)
    queue.states[ticket] = State.WAITING
    for _ in range(3):
        engine._look()
    assert queue.said == []
    queue.states[ticket] = State.RUNNING
    ended = engine.wait()
    assert queue.said == [("kill", [0])]
    assert ended.exit_code == -9
    assert "it showed no progress for" in ended.error


def test_a_stop_reaches_those_that_start_meanwhile_and_a_second_one_kills(queue: Scripted) -> None:
    engine = opened(queue, jobs=1)
    engine.submit(job("a"))
    engine._look()
    engine.submit(job("b"))  # not handed over: there is no room
    queue.states[Ticket(queue.folder / "0", 0)] = State.WAITING
    engine.cancel()
    assert engine.running == 1, "what is not in the queue is forgotten"
    engine._look()
    queue.states[Ticket(queue.folder / "0", 0)] = State.RUNNING
    engine._look()
    engine._look()
    assert queue.said == [("stop", [0])] * 3, "at once, as it waits, and as it runs"
    engine.cancel()
    assert queue.said[3:] == [("kill", [0])]
    assert engine.wait().exit_code == 75


def test_a_teacher_is_known_by_the_words_that_make_it() -> None:
    assert subjects(Job("teacher x", ("teacher", "train", "x"))) == ("teacher train x",)
    assert json.loads(json.dumps(subjects(job("a", "b")))) == ["a", "b"]
