"""Safe retry: a run ended by its numbers or its device is started once more, whole, with settings that are recorded."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from kdbench.errors import ConfigError, KdbenchError
from kdbench.execution.driver import Order, carry_out
from kdbench.execution.grouping import groups_of
from kdbench.execution.jobs import Ended, Job, Settings
from kdbench.leaderboard.build import build
from kdbench.leaderboard.model import Cell
from kdbench.leaderboard.notes import notes
from kdbench.records import Attempt, EpochReport
from kdbench.store import PREDICTIONS, SPEC, WEIGHTS, RunStore
from kdbench.training import attempts, cohort, results, retry, runs
from kdbench.training.environment import Machine
from kdbench.training.lock import differences
from kdbench.training.networks import TeacherPass
from kdbench.training.runs import forget_failure, record_dead, run_cohort
from kdbench.training.safe_mode import AS_PLANNED, SAFE, applied, quiet_about_tf32
from kdbench.training.trainer import Interrupted

NOT_FINITE = "non-finite loss in phase 'main', epoch 2"
DEAD_GPU = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(autouse=True)
def errors(toys: ModuleType) -> Iterator[list[Exception]]:
    """Errors in line for the method that is hit by them."""
    line: list[Exception] = toys.Hit.errors
    line.clear()
    yield line
    assert not line, "an attempt is missing"


def _retrying(lab: Any, **changes: Any) -> Any:
    return lab.anchor(**{"step__precision": "bf16", "step__safe_retry": True, **changes})


def _files(lab: Any, spec: Any, where: str) -> list[bytes]:
    (folder,) = lab.folders([spec], where)
    return [(folder.path / name).read_bytes() for name in (WEIGHTS, PREDICTIONS)]


def _in_float32(lab: Any, method: str) -> list[bytes]:
    """Return the results of a run that was never disturbed, under an anchor that says float32."""
    spec = lab.spec(method, anchor=lab.anchor())
    lab.run([spec], "undisturbed")
    return _files(lab, spec, "undisturbed")


# --- what is retried, and how it ends ------------------------------------------------------------------------------


def test_a_loss_that_only_low_precision_breaks(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    planned = spec.config_sha256
    (record,) = lab.run([spec], "runs")
    first, second = record.attempts
    assert (record.status, record.reason, record.environment.precision) == ("ok", "", "fp32")
    assert (first.outcome, first.settings, first.retry_sha256) == (NOT_FINITE, {}, planned)
    assert (second.outcome, second.from_epoch, second.retry_sha256) == ("ok", 0, "")
    assert second.settings == {"precision": "fp32", "cudnn": False, "cudnn_benchmark": False, "tf32": False}
    assert first.started_at <= first.ended_at <= second.started_at <= second.ended_at
    assert record.started_at == first.started_at
    (folder,) = lab.folders([spec], "runs")
    stored = folder.spec()
    assert (stored.anchor.step.precision, stored.config_sha256, record.config_sha256) == ("bf16", planned, planned)
    assert not folder.checkpoints.exists()
    assert not (folder.path / attempts.ATTEMPTS).exists()
    assert len((folder.path / "epochs.jsonl").read_text().splitlines()) == 3
    assert caplog.messages == [f"{spec.run_id}: {NOT_FINITE}; it is started once more in safe mode"]
    # The bits of a float32 run that never had another precision: nothing of the first attempt is in them.
    assert _files(lab, spec, "runs") == _in_float32(lab, "toy_low")


def test_what_always_diverges_has_diverged_after_two_attempts(lab: Any) -> None:
    (record,) = lab.run([lab.spec("toy_nan", anchor=_retrying(lab))], "runs")
    assert record.status == "diverged"
    assert record.reason == f"{NOT_FINITE}; this was the safe retry, the attempt before it ended by: {NOT_FINITE}"
    assert [bool(attempt.settings) for attempt in record.attempts] == [False, True]
    assert [attempt.outcome for attempt in record.attempts] == [NOT_FINITE, NOT_FINITE]


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("[enforce fail] DefaultCPUAllocator: no")])
def test_out_of_memory_once(lab: Any, errors: list[Exception], error: Exception) -> None:
    errors.append(error)
    spec = lab.spec("toy_hit", anchor=_retrying(lab, step__precision="fp32"))
    (record,) = lab.run([spec], "runs")
    assert record.status == "ok"
    kind = type(error).__name__
    assert record.attempts[0].outcome == f"method 'toy_hit' failed in phase 'main', epoch 2: {kind}: {error}"
    assert _files(lab, spec, "runs") == _in_float32(lab, "toy_hit"), "bank, table and helper start anew as well"


def test_a_failed_retry_is_a_failed_run(lab: Any, errors: list[Exception]) -> None:
    errors += [MemoryError("again"), MemoryError("once")]
    spec = lab.spec("toy_hit", anchor=_retrying(lab))
    (record,) = lab.run([spec], "runs")
    assert (record.status, record.accuracy, record.environment.precision) == ("infra_failed", None, "fp32")
    assert [attempt.outcome.rpartition(" ")[2] for attempt in record.attempts] == ["once", "again"]
    assert "MemoryError: again; this was the safe retry" in record.reason
    assert record.reason.endswith("MemoryError: once")


def test_tried_again_by_hand_it_stays_in_safe_mode(lab: Any, errors: list[Exception]) -> None:
    errors += [MemoryError("again"), MemoryError("once")]
    spec = lab.spec("toy_hit", anchor=_retrying(lab))
    lab.run([spec], "runs")
    forget_failure(lab.folders([spec], "runs")[0])
    (record,) = lab.run([spec], "runs")
    assert record.status == "ok"
    assert [bool(attempt.settings) for attempt in record.attempts] == [False, True, True]
    assert record.attempts[-1].from_epoch == 1, "it goes on from the retry's own checkpoint"
    assert _files(lab, spec, "runs") == _in_float32(lab, "toy_hit")


@pytest.mark.parametrize("error", [None, MemoryError("no room")])
def test_without_the_policy_one_attempt_is_all(lab: Any, errors: list[Exception], error: Exception | None) -> None:
    errors += [error] if error else []
    (record,) = lab.run(
        [lab.spec("toy_hit" if error else "toy_low", anchor=lab.anchor(step__precision="bf16"))], "runs"
    )
    assert record.status == ("infra_failed" if error else "diverged")
    assert (len(record.attempts), record.environment.precision) == (1, "bf16")
    assert set(record.model_dump()["attempts"][0]) == {"started_at", "ended_at", "outcome", "from_epoch"}


def test_a_methods_own_fault_is_not_retried(lab: Any) -> None:
    (record,) = lab.run([lab.spec("toy_bad", "where=losses", anchor=_retrying(lab))], "runs")
    assert (record.status, len(record.attempts)) == ("infra_failed", 1)


def test_learning_nothing_is_not_retried(lab: Any) -> None:
    anchor = _retrying(lab, optimizer__lr=1e-12, schedule__min_lr=0.0, schedule__epochs=5)
    (record,) = lab.run([lab.spec("student", anchor=anchor)], "runs")
    assert (record.status, len(record.attempts)) == ("diverged", 1)


def test_a_fault_in_the_shared_teacher_pass(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lane is to blame, so none is left; a run that was alone has its retry all the same."""
    original, calls = TeacherPass.__call__, []

    def full(self: TeacherPass, images: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError("no room for a teacher")
        return original(self, images)

    monkeypatch.setattr(TeacherPass, "__call__", full)
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    (record,) = lab.run([spec], "runs")
    assert [attempt.outcome for attempt in record.attempts] == ["MemoryError: no room for a teacher", "ok"]
    assert _files(lab, spec, "runs") == _in_float32(lab, "toy_low")


def test_a_fault_in_the_final_evaluation(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = results._measure, []

    def full(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no room")
        return original(*arguments)

    monkeypatch.setattr(results, "_measure", full)
    (record,) = lab.run([lab.spec("student", anchor=_retrying(lab))], "runs")
    assert record.status == "ok"
    assert record.attempts[0].outcome == "method 'student' failed in the final evaluation: MemoryError: no room"


# --- cohorts -------------------------------------------------------------------------------------------------------


def test_one_lane_of_three_is_retried_alone(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    student, low, dkd = (lab.spec(name, anchor=_retrying(lab)) for name in ("student", "toy_low", "dkd"))
    trained: list[list[str]] = []

    def noted(specs: Any, *arguments: Any) -> Any:
        trained.append([spec.method for spec in specs])
        return cohort.train_cohort(specs, *arguments)

    monkeypatch.setattr(runs, "train_cohort", noted)
    records = lab.run([student, low, dkd], "runs")
    assert trained == [["student", "toy_low", "dkd"], ["toy_low"]]
    assert [record.method for record in records] == ["student", "toy_low", "dkd"]
    assert [record.status for record in records] == ["ok"] * 3
    assert [len(record.attempts) for record in records] == [1, 2, 1]
    assert [record.environment.precision for record in records] == ["bf16", "fp32", "bf16"]
    lab.run([student, dkd], "without")
    for spec in (student, dkd):
        assert _files(lab, spec, "runs") == _files(lab, spec, "without")
    assert _files(lab, low, "runs") == _in_float32(lab, "toy_low")


def test_a_stop_in_the_retry_keeps_the_others_records(lab: Any) -> None:
    specs = [lab.spec(name, anchor=_retrying(lab)) for name in ("student", "toy_low")]
    with pytest.raises(Interrupted):
        lab.run(specs, "runs", should_stop=lab.stop_after(3 * lab.steps + 5))
    before = [folder.record() for folder in lab.folders(specs, "runs")]
    assert before[0] is not None
    assert before[1] is None
    after = lab.run(specs, "runs")
    assert after[0] == before[0]
    assert [bool(attempt.settings) for attempt in after[1].attempts] == [False, True, True]


def test_a_device_fault_of_several_runs_is_told_and_left_to_the_driver(lab: Any, errors: list[Exception]) -> None:
    errors.append(MemoryError("no room"))
    specs = [lab.spec(name, anchor=_retrying(lab)) for name in ("toy_hit", "student")]
    with pytest.raises(MemoryError):
        lab.run(specs, "runs")
    for spec, folder in zip(specs, lab.folders(specs, "runs"), strict=True):
        (attempt,) = attempts.earlier(folder)
        assert (attempt.outcome, attempt.retry_sha256) == ("MemoryError: no room", "")
        lab.run([spec], "runs")  # as the driver goes on: each in a worker of its own
    assert _files(lab, specs[0], "runs") != _in_float32(lab, "toy_hit"), "it ended well as its anchor says"


# --- kills and stops -----------------------------------------------------------------------------------------------


def _killed_at(lab: Any, spec: Any, step: int) -> None:
    """Run in a child that kills itself after so many steps, those of the first attempt included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not use
        pid = os.fork()
    if not pid:
        try:
            due = lab.stop_after(step)
            lab.run([spec], "runs", should_stop=lambda: due() and os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("steps", "went_on"), [((9,), 0), ((14,), 1), ((14, 5, 3), 2)])
def test_killed_in_the_retry_it_goes_on_with_it(lab: Any, steps: tuple[int, ...], went_on: int) -> None:
    """The first attempt takes eight steps, the retry twelve; a kill loses the steps of the epoch it falls into."""
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    for step in steps:
        _killed_at(lab, spec, step)
    (record,) = lab.run([spec], "runs")
    assert [attempt.outcome for attempt in record.attempts] == [NOT_FINITE, *["killed"] * len(steps), "ok"]
    assert [bool(attempt.settings) for attempt in record.attempts] == [False, *[True] * len(steps), True]
    assert record.attempts[-1].from_epoch == went_on
    assert _files(lab, spec, "runs") == _in_float32(lab, "toy_low")


@pytest.mark.parametrize("left", [2, 1, 0])
def test_killed_before_the_retry_began(lab: Any, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """The first attempt's checkpoints are still there, all or some of them: none gets into the retry."""
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    _stopped_before_retry(lab, spec, monkeypatch)
    files = sorted(lab.folders([spec], "runs")[0].checkpoints.glob("*.pt"))
    assert len(files) == 2
    for path in files[: 2 - left]:
        path.unlink()
    (record,) = lab.run([spec], "runs")
    assert [attempt.outcome for attempt in record.attempts] == [NOT_FINITE, "ok"]
    assert record.attempts[-1].from_epoch == 0
    assert _files(lab, spec, "runs") == _in_float32(lab, "toy_low")


def _stopped_before_retry(lab: Any, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retry, "prepare", stop)
        with pytest.raises(KeyboardInterrupt):
            lab.run([spec], "runs")


@pytest.mark.parametrize(("started", "resumed"), [(AS_PLANNED, SAFE), (SAFE, AS_PLANNED)])
def test_a_checkpoint_fits_the_settings_it_was_made_under(lab: Any, started: Any, resumed: Any) -> None:
    spec = lab.spec("dkd", anchor=lab.anchor(step__precision="bf16"))
    folders, methods = lab.folders([spec], "runs"), lab.place.registry.methods
    cohort.train_cohort([spec], folders, lab.place, lambda _: methods["dkd"], started)
    with pytest.raises(ConfigError, match="was started with settings"):
        cohort.train_cohort([spec], folders, lab.place, lambda _: methods["dkd"], resumed)


# --- the lock ------------------------------------------------------------------------------------------------------


def _edit(lab: Any, spec: Any) -> None:
    path = lab.folders([spec], "runs")[0].path / SPEC
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["options"]["epoch"] = 2
    path.write_text(json.dumps(tree), encoding="utf-8")


def test_a_spec_edited_in_the_first_attempt_is_found_before_the_retry(lab: Any) -> None:
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    seen: list[EpochReport] = []

    def watch(report: EpochReport) -> None:
        seen.append(report)
        _edit(lab, spec)

    expected = r"changed before its safe retry \(in .*spec\.json: changed options\.epoch 1 -> 2\); nothing is recorded"
    with pytest.raises(KdbenchError, match=expected):
        lab.run([spec], "runs", epoch_ended=watch)
    assert len(seen) == 2, "there was no retry"
    assert lab.folders([spec], "runs")[0].record() is None


def test_a_spec_edited_in_the_retry_is_found_after_it(lab: Any) -> None:
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    seen: list[EpochReport] = []

    def watch(report: EpochReport) -> None:
        seen.append(report)
        if len(seen) == 4:
            _edit(lab, spec)

    with pytest.raises(KdbenchError, match=r"changed during the run \(in .*spec\.json: changed options\.epoch 1 -> 2"):
        lab.run([spec], "runs", epoch_ended=watch)
    assert lab.folders([spec], "runs")[0].record() is None


def test_a_spec_edited_between_two_processes_is_found(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    _stopped_before_retry(lab, spec, monkeypatch)
    _edit(lab, spec)
    with pytest.raises(KdbenchError, match=rf"before its safe retry \(config_sha256 {spec.config_sha256[:12]} then"):
        run_cohort([spec.run_id], RunStore(lab.root / "runs"), lab.place)


def test_a_spec_edited_as_it_starts_is_found(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, begin = lab.spec("toy_low"), attempts.begin

    def meddle(*arguments: Any) -> Any:
        _edit(lab, spec)
        return begin(*arguments)

    monkeypatch.setattr(attempts, "begin", meddle)
    with pytest.raises(KdbenchError, match="its configuration changed before the run"):
        lab.run([spec], "runs", epoch_ended=lambda _: pytest.fail("it was trained"))


def test_differences_by_hand() -> None:
    locked = {"a": {"x": 1, "y": [1, 2]}, "b": None, "e": {}}
    assert differences(locked, {"a": {"x": 1, "y": [2, 1]}, "c": True, "e": {}}) == (
        "added c = True; removed b; changed a.y [1, 2] -> [2, 1]"
    )
    many = {f"k{number}": number for number in range(7)}
    assert differences(many, {}) == "removed k0, k1, k2, k3, k4 and 2 more"
    assert differences(locked, locked) == ""


# --- devices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "device", "fresh"),
    [
        (MemoryError(), True, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, True),
        (RuntimeError(DEAD_GPU), True, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error: says a method"), False, False),
        (None, False, False),
    ],
)
def test_which_errors_are_the_devices(error: Exception | None, device: bool, fresh: bool) -> None:
    assert (retry.is_device_fault(error), retry.needs_fresh_process(error)) == (device, fresh)


def test_a_broken_device_is_left_to_a_fresh_process(lab: Any, errors: list[Exception]) -> None:
    errors.append(RuntimeError(DEAD_GPU))
    seen: list[EpochReport] = []
    spec = lab.spec("toy_hit", anchor=_retrying(lab))
    with pytest.raises(retry.FreshProcess, match=rf"its device failed \(RuntimeError: {DEAD_GPU}\)") as caught:
        lab.run([spec], "runs", epoch_ended=seen.append)
    # Two epochs of its own phase and one of the main phase; in the second its device failed, and nothing followed.
    assert len(seen) == 3
    assert caught.value.exit_code == 75
    (attempt,) = attempts.earlier(lab.folders([spec], "runs")[0])
    assert attempt.retry_sha256 == spec.config_sha256
    (record,) = lab.run([spec], "runs")
    assert (record.status, len(record.attempts)) == ("ok", 2)
    assert _files(lab, spec, "runs") == _in_float32(lab, "toy_hit")


class Workers:
    """An engine whose workers run in this process and end as theirs would."""

    def __init__(self, work: Callable[[Job], object]) -> None:
        self.work, self.jobs, self.codes = work, list[Job](), list[int]()

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def knows(self, job: Job) -> bool:  # noqa: ARG002
        return False

    @property
    def running(self) -> int:
        return len(self.jobs)

    def wait(self, seconds: float | None = None) -> Ended:  # noqa: ARG002
        job, code, words = self.jobs.pop(0), 0, ""
        try:
            self.work(job)
        except KdbenchError as error:
            code, words = error.exit_code, f"kdbench: {error}"
        except MemoryError as error:
            code, words = 1, f"MemoryError: {error}"
        self.codes.append(code)
        return Ended(job, code, words)

    def cancel(self) -> None:
        self.jobs.clear()

    def close(self) -> None:
        pass


def _carried_out(lab: Any, specs: list[Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[int]]:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    store = lab.root / "runs"
    workers = Workers(lambda job: run_cohort(job.run_ids, RunStore(store), lab.place))
    settings = Settings(store, lab.place.teachers.root, lab.root, ("cpu",), 1)
    order = Order(tuple(specs), "small", {"tiny": 10}, settings, groups_of)
    return carry_out(order, workers), workers.codes


def test_the_driver_starts_the_fresh_process(
    lab: Any, errors: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors.append(RuntimeError(DEAD_GPU))
    (record,), codes = _carried_out(lab, [lab.spec("toy_hit", anchor=_retrying(lab))], monkeypatch)
    assert codes == [75, 0]
    assert (record.status, record.environment.precision) == ("ok", "fp32")


def test_the_driver_finds_the_run_that_asks_too_much(
    lab: Any, errors: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors += [MemoryError("alone"), MemoryError("together")]
    specs = [lab.spec(name, anchor=_retrying(lab)) for name in ("student", "toy_hit")]
    (student, hit), codes = _carried_out(lab, specs, monkeypatch)
    assert codes == [1, 0, 0]
    assert (student.status, student.environment.precision) == ("ok", "bf16")
    assert [attempt.outcome.rpartition(" ")[2] for attempt in hit.attempts] == ["together", "alone", "ok"]
    assert hit.environment.precision == "fp32"


def test_a_worker_that_dies_in_the_retry(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    _stopped_before_retry(lab, spec, monkeypatch)
    (folder,) = lab.folders([spec], "runs")
    attempts.begin(folder, SAFE)
    record = record_dead(folder, 10, Machine(torch.device("cpu"), 1).describe("bf16"), "its worker was killed")
    assert (record.status, record.environment.precision, record.accuracy) == ("infra_failed", "fp32", None)
    assert record.reason == f"its worker was killed; {retry.told('', record.attempts).removeprefix('; ')}"
    assert [attempt.outcome for attempt in record.attempts] == [NOT_FINITE, "killed"]


# --- settings, records and boards ----------------------------------------------------------------------------------


def _switches() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    with quiet_about_tf32():
        return cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()


def test_switches_are_set_for_the_retry_alone(lab: Any) -> None:
    before, seen = _switches(), []
    spec = lab.spec("toy_low", anchor=_retrying(lab))
    lab.run([spec], "runs", epoch_ended=lambda _: seen.append(_switches()))
    safe = (False, False, False, "highest")
    assert before[0] is True, "this test can see a change"
    assert seen == [before] * 2 + [safe] * 3
    assert _switches() == before


def _fail_unless_switched(before: object) -> None:
    if _switches() != before:
        raise ZeroDivisionError


def test_switches_are_put_back_after_an_error() -> None:
    before = _switches()
    with pytest.raises(ZeroDivisionError), applied(SAFE):
        _fail_unless_switched(before)
    assert _switches() == before


def test_an_attempt_without_settings_reads_and_writes_as_ever() -> None:
    old = {"started_at": "a", "ended_at": "b", "outcome": "ok", "from_epoch": 3}
    assert Attempt.model_validate(old).model_dump() == old
    new = {**old, "settings": {"cudnn": False}, "retry_sha256": "0" * 64}
    assert json.loads(Attempt.model_validate(new).model_dump_json()) == new


def test_a_board_counts_them_only_when_there_are_any(lab: Any) -> None:
    specs = [lab.spec(name, anchor=_retrying(lab)) for name in ("student", "toy_low")]
    cells = [Cell(spec, record) for spec, record in zip(specs, lab.run(specs, "runs"), strict=True)]
    (table,) = build(cells, ["student"]).tables
    assert [note for note in notes(table) if "safe" in note] == [
        "1 run finished in safe mode (fp32): toy_low seed 0; its first attempt had ended by a non-finite loss or a "
        "device error."
    ]
    (plain,) = build(cells[:1], ["student"]).tables
    assert not [note for note in notes(plain) if "safe" in note]
