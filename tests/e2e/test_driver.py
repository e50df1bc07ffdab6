"""The driver against an engine that follows a script: retries, splitting, and what stops everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from commandline import Place
from scripted import Scripted, write

from kdbench.errors import KdbenchError
from kdbench.execution.driver import MAX_ATTEMPTS, MAX_STOPS, Order, carry_out
from kdbench.execution.jobs import Job
from kdbench.spec import PluginRef, RunSpec
from kdbench.store import RunStore


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


def test_seeds_are_cohorts(order: Order, finished: Place) -> None:
    engine = Scripted(lambda job, _: (write(order, job, finished), (0, ""))[1])
    assert [record.run_id for record in carry_out(order, engine)] == [spec.run_id for spec in order.specs]
    assert engine.started == [("student/seed0", "vanilla_kd/seed0"), ("student/seed1", "vanilla_kd/seed1")]
    assert engine.most == 1
    assert carry_out(order, engine) is not None
    assert len(engine.started) == 2  # everything was there


def test_jobs_and_cohorts(order: Order, finished: Place) -> None:
    engine = Scripted(lambda job, _: (write(order, job, finished), (0, ""))[1])
    carry_out(replace(order, jobs=3, cohorts=lambda specs: [(spec,) for spec in specs]), engine)
    assert [len(ids) for ids in engine.started] == [1, 1, 1, 1]
    assert engine.most == 3


def test_the_store_is_the_truth_not_the_exit_code(order: Order, finished: Place) -> None:
    engine = Scripted(lambda job, _: (write(order, job, finished), (-11, ""))[1])
    assert len(carry_out(order, engine)) == 4
    assert len(engine.started) == 2


@pytest.mark.parametrize("code", [-9, -11, 137, 74, 0, 1])
def test_runs_of_a_dead_worker_go_on_one_by_one_and_the_deadly_one_is_recorded(
    code: int, order: Order, finished: Place
) -> None:
    def act(job: Job, _start: int) -> tuple[int, str]:
        if any("vanilla_kd/seed0" in run_id for run_id in job.run_ids):
            if len(job.run_ids) == 1:
                return code, "Traceback\nValueError: bad" if code == 1 else ""
            return code, ""
        write(order, job, finished)
        return 0, ""

    engine, guest = Scripted(act), PluginRef(distribution="guest", version="1", file_sha256="0" * 64)
    records = {record.run_id: record for record in carry_out(replace(order, plugins=(guest,)), engine)}
    (dead,) = [record for record in records.values() if record.status == "infra_failed"]
    assert dead.run_id == "fair_baseline_smoke-v1/digits-20pc/tiny/vanilla_kd/seed0"
    assert dead.plugins_loaded == (guest,)
    assert (dead.method, dead.seed, dead.classes, dead.accuracy) == ("vanilla_kd", 0, 10, None)
    message = dead.reason
    assert message.startswith("run fair_baseline_smoke-v1/digits-20pc/tiny/vanilla_kd/seed0: its worker ")
    assert (": ValueError: bad;" in message) == (code == 1)
    assert "Traceback" not in message
    assert [records[spec.run_id].status for spec in order.specs].count("ok") == 3
    killed = 3 if code not in {0, 1} else 2  # killed: once together, twice alone; otherwise it would only say it again
    assert sum("vanilla_kd/seed0" in ids for ids in engine.started) == killed


def test_a_stopped_worker_is_started_again_as_it_was(order: Order, finished: Place) -> None:
    def act(job: Job, start: int) -> tuple[int, str]:
        if start == 1:
            return 75, "kdbench: stopped; every run was saved"
        write(order, job, finished)
        return 0, ""

    engine = Scripted(act)
    assert len(carry_out(order, engine)) == 4
    together = ("student/seed0", "vanilla_kd/seed0")
    assert sorted(engine.started) == [together, together, ("student/seed1", "vanilla_kd/seed1")]


def test_a_busy_run_is_reported_with_the_workers_words(order: Order) -> None:
    engine = Scripted(lambda _job, _start: (75, "kdbench: x: another process is training this run; wait for it"))
    with pytest.raises(KdbenchError, match=r"^x: another process is training this run; wait for it$") as caught:
        carry_out(order, engine)
    assert caught.value.exit_code == 75
    assert len(engine.started) == 2 * (1 + MAX_STOPS)


def test_being_stopped_costs_no_attempt(order: Order, finished: Place) -> None:
    """Stopped more often than it may die, then killed twice: it is still started, and ends well."""
    ends = [75] * (MAX_ATTEMPTS + 1) + [-9] * (MAX_ATTEMPTS - 1)

    def act(job: Job, start: int) -> tuple[int, str]:
        if start <= len(ends):
            return ends[start - 1], ""
        write(order, job, finished)
        return 0, ""

    engine = Scripted(act)
    assert len(carry_out(replace(order, specs=order.specs[:1]), engine)) == 1
    assert len(engine.started) == len(ends) + 1


@pytest.mark.parametrize("code", [3, 73])
def test_what_would_stop_every_job_stops_at_once(code: int, order: Order) -> None:
    engine = Scripted(lambda _job, _start: (code, "some warning\nkdbench: no space left\nfree some"))
    with pytest.raises(KdbenchError, match=r"^no space left\nfree some$") as caught:
        carry_out(order, engine)
    assert caught.value.exit_code == code
    assert len(engine.started) == 1


def test_what_is_wrong_with_one_job_is_told_once_and_the_others_go_on(order: Order) -> None:
    engine = Scripted(lambda _job, _start: (2, "kdbench: unfit"))
    with pytest.raises(KdbenchError, match=r"^unfit$") as caught:
        carry_out(order, engine)
    assert caught.value.exit_code == 2
    assert len(engine.started) == 2


def test_one_run_that_is_refused_does_not_keep_its_cohort_from_being_done(order: Order, finished: Place) -> None:
    refused = order.specs[0].run_id
    assert refused.endswith("student/seed0")

    def act(job: Job, _start: int) -> tuple[int, str]:
        if refused in job.run_ids:
            return 2, f"kdbench: run {refused}: was started with torch 1"
        write(order, job, finished)
        return 0, ""

    engine = Scripted(act)
    with pytest.raises(KdbenchError, match=r"student/seed0: was started with torch 1$") as caught:
        carry_out(order, engine)
    assert caught.value.exit_code == 2
    store = RunStore(order.settings.store)
    assert [spec.run_id for spec in order.specs if store.folder(spec.run_id).result() is None] == [refused]
    assert engine.started[2:] == [("vanilla_kd/seed0",), ("student/seed0",)]


def test_several_refused_runs_leave_the_others_of_their_cohort_alone(order: Order, finished: Place) -> None:
    """A worker names the first one only, so the cohort is cut several times: that costs no attempts."""
    together = replace(order, cohorts=lambda specs: [specs])
    good = order.specs[-1].run_id

    def act(job: Job, _start: int) -> tuple[int, str]:
        if refused := [run_id for run_id in job.run_ids if run_id != good]:
            return 2, f"kdbench: run {refused[0]}: was started with torch 1"
        write(order, job, finished)
        return 0, ""

    engine = Scripted(act)
    with pytest.raises(KdbenchError, match="was started with torch 1"):
        carry_out(together, engine)
    assert len(order.specs) - 1 >= MAX_ATTEMPTS
    assert RunStore(order.settings.store).folder(good).result() is not None


def test_what_an_engine_says_of_a_whole_job_blames_none_of_its_runs(order: Order) -> None:
    """A job that somebody took out of the queue is not put back, however many runs it has."""
    engine = Scripted(lambda job, _start: (4, f"kdbench: {job.name}: was cancelled; start the same command again"))
    with pytest.raises(KdbenchError, match="was cancelled; start the same command again"):
        carry_out(order, engine)
    assert [len(run_ids) for run_ids in engine.started] == [2, 2]


def test_of_many_machines_one_may_be_full(order: Order, finished: Place) -> None:
    """On another one there is room; if there never is, everything stops."""
    full = [True]

    def act(job: Job, _start: int) -> tuple[int, str]:
        if full:
            full.pop()
            return 73, "kdbench: no space left"
        write(order, job, finished)
        return 0, ""

    away = replace(order, elsewhere=True)
    assert len(carry_out(away, Scripted(act))) == 4
    always = Scripted(lambda _job, _start: (73, "kdbench: no space left"))
    settings = replace(order.settings, store=order.settings.store.parent / "others")
    with pytest.raises(KdbenchError, match=r"^no space left$"):
        carry_out(replace(away, settings=settings), always)
    cohorts = 2
    assert MAX_ATTEMPTS <= len(always.started) <= cohorts * MAX_ATTEMPTS


def test_partly_done_cohorts_go_on_with_what_is_left(order: Order, finished: Place) -> None:
    def act(job: Job, start: int) -> tuple[int, str]:
        write(order, job, finished, but="vanilla_kd/seed0" if start == 1 else "nothing")
        return (-9, "") if start == 1 else (0, "")

    engine = Scripted(act)
    assert len(carry_out(order, engine)) == 4
    assert len(engine.started) == 3


def test_an_interrupt_lets_the_workers_save(order: Order) -> None:
    def act(_job: Job, _start: int) -> tuple[int, str]:
        raise KeyboardInterrupt

    engine = Scripted(act)
    with pytest.raises(KeyboardInterrupt):
        carry_out(replace(order, jobs=2), engine)
    assert engine.cancelled
    assert engine.running == 0
    assert len(engine.started) == 2


def test_teachers_come_first_and_their_failure_is_told(order: Order, specs: tuple[RunSpec, ...]) -> None:
    engine = Scripted(lambda _job, _start: (4, "kdbench: teacher 'x': training diverged: nan"))
    with pytest.raises(KdbenchError, match=r"^teacher 'x': training diverged: nan$") as caught:
        carry_out(replace(order, specs=specs), engine)
    assert caught.value.exit_code == 4
    assert engine.started == [()]
