"""The driver and other commands on the same folder: what they hold is left to them, and taken over in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from commandline import Place
from scripted import Scripted, write

from kdbench.artefacts import TeacherStore
from kdbench.execution.driver import MAX_ATTEMPTS, Cancelled, Order, carry_out
from kdbench.execution.jobs import Job, runs_job
from kdbench.spec import RunSpec
from kdbench.store import RECORD, RunStore
from kdbench.training.teachers import recipes_of, training_folder


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


class Others:
    """Another command: it holds what is locked until the driver has paused so often, then writes records or dies."""

    def __init__(self, pauses: int, end: Callable[[], None]) -> None:
        self.pauses, self.end = pauses, end

    def pause(self, _seconds: float) -> None:
        self.pauses -= 1
        if self.pauses == 0:
            self.end()


def test_runs_that_another_command_holds_are_left_to_it(
    order: Order, finished: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunStore(order.settings.store).folder(order.specs[0].run_id)  # student, seed 0
    theirs = runs_job([order.specs[0].run_id], order.settings.store)
    with contextlib.ExitStack() as other:
        other.enter_context(folder.claimed())

        def end() -> None:
            write(order, theirs, finished)
            other.close()

        monkeypatch.setattr("time.sleep", Others(3, end).pause)
        engine = Scripted(lambda job, _: (write(order, job, finished), (0, ""))[1])
        assert len(carry_out(order, engine)) == 4
    assert sorted(engine.started) == [("student/seed1", "vanilla_kd/seed1"), ("vanilla_kd/seed0",)]
    (told,) = caplog.messages
    assert told == f"another command is at run {order.specs[0].run_id}; waiting for it"


def test_what_another_command_left_undone_is_taken_over(
    order: Order, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as other:
        for spec in order.specs:
            other.enter_context(RunStore(order.settings.store).folder(spec.run_id).claimed())
        monkeypatch.setattr("time.sleep", Others(2, other.close).pause)
        engine = Scripted(lambda job, _: (write(order, job, finished), (0, ""))[1])
        assert len(carry_out(order, engine)) == 4
    assert engine.started == [("student/seed0", "vanilla_kd/seed0"), ("student/seed1", "vanilla_kd/seed1")]


def test_what_another_command_leaves_is_begun_while_jobs_are_under_way_here(order: Order, finished: Place) -> None:
    """Of two workers one is free: it does not wait for the end of the other's job."""
    theirs = order.specs[0].run_id
    with contextlib.ExitStack() as other:
        other.enter_context(RunStore(order.settings.store).folder(theirs).claimed())
        engine = Scripted(lambda job, _: (write(order, job, finished), (0, ""))[1])
        engine.looks = [lambda: None, other.close]
        alone = replace(order, jobs=4, cohorts=lambda specs: [(spec,) for spec in specs])
        assert len(carry_out(alone, engine)) == 4
    assert engine.looks == []
    assert engine.started[-1] == ("student/seed0",)
    assert engine.most == 4


def test_a_run_whose_worker_lives_on_is_waited_for_and_not_recorded_as_dead(
    order: Order, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may lose a worker that is still saving: its run is held, and ends well."""
    one = replace(order, specs=order.specs[:1])
    folder = RunStore(order.settings.store).folder(one.specs[0].run_id)
    with contextlib.ExitStack() as worker:
        monkeypatch.setattr("kdbench.execution.driver.wait_for_others", lambda _jobs, _settings: worker.close())

        def act(job: Job, start: int) -> tuple[int, str]:
            if start == MAX_ATTEMPTS:
                worker.enter_context(folder.claimed())
            if start <= MAX_ATTEMPTS:
                return -9, ""
            write(order, job, finished)
            return 0, ""

        engine = Scripted(act)
        (record,) = carry_out(one, engine)
    assert record.status == "ok"
    assert len(engine.started) == MAX_ATTEMPTS + 1


def test_a_run_that_another_command_took_meanwhile_is_waited_for(
    order: Order, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker came too late, and said so; the attempt that starts when the other has died is a new one."""
    with contextlib.ExitStack() as other:
        monkeypatch.setattr("time.sleep", Others(8, other.close).pause)

        def act(job: Job, start: int) -> tuple[int, str]:
            if start == 1:
                for run_id in job.run_ids:
                    other.enter_context(RunStore(order.settings.store).folder(run_id).claimed())
                return 75, "kdbench: another process is training this run"
            write(order, job, finished)
            return 0, ""

        engine = Scripted(act)
        assert len(carry_out(order, engine)) == 4
    together = ("student/seed0", "vanilla_kd/seed0")
    assert engine.started == [together, ("student/seed1", "vanilla_kd/seed1"), together]


def test_a_teacher_that_another_command_trains_is_waited_for(
    order: Order, specs: tuple[RunSpec, ...], finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipe,) = recipes_of(specs)
    store = TeacherStore(order.settings.teachers)
    with contextlib.ExitStack() as other:
        other.enter_context(training_folder(recipe, store).claimed())

        def end() -> None:
            monkeypatch.setattr(TeacherStore, "exists", lambda _self, _dataset, _name: True)
            other.close()

        monkeypatch.setattr("time.sleep", Others(2, end).pause)
        engine = Scripted(lambda job, _: (write(order, job, finished), (0, ""))[1])
        assert len(carry_out(replace(order, specs=specs), engine)) == 4
    assert () not in engine.started, "no teacher was trained here"


def test_a_failed_run_that_another_command_tries_again_keeps_its_record(order: Order, finished: Place) -> None:
    engine = Scripted(lambda job, _: (write(order, job, finished), (0, ""))[1])
    carry_out(order, engine)
    folder = RunStore(order.settings.store).folder(order.specs[0].run_id)
    record = folder.record()
    assert record is not None
    (folder.path / RECORD).unlink()
    folder.write_record(failed := record.model_copy(update={"status": "infra_failed", "accuracy": None}))
    with folder.claimed():
        assert carry_out(replace(order, retry_failed=True), engine)[0] == failed


def test_cancelled_runs_are_not_begun_again_until_the_command_is(order: Order, finished: Place) -> None:
    """One of a cohort is cancelled: its worker stops, and the others go on without it."""
    ids = [spec.run_id for spec in order.specs]
    store = RunStore(order.settings.store)

    def act(job: Job, start: int) -> tuple[int, str]:
        if start == 1:
            store.folder(ids[0]).cancel()  # while it is trained
            store.folder(ids[3]).cancel()  # before it was
            return 75, "kdbench: stopped; every run was saved and continues with the same command"
        write(order, job, finished)
        return 0, ""

    engine = Scripted(act)
    with pytest.raises(Cancelled) as caught:
        carry_out(order, engine)
    assert str(caught.value) == (
        f"cancelled: {ids[0]}, {ids[3]}; they were saved, and the same command goes on with them"
    )
    assert caught.value.exit_code == 75
    assert engine.started == [("student/seed0", "vanilla_kd/seed0"), ("student/seed1",), ("vanilla_kd/seed0",)]
    assert len(carry_out(order, engine)) == 4
    assert engine.started[3:] == [("student/seed0",), ("vanilla_kd/seed1",)]
