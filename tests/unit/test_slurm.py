"""What SLURM is asked and what is made of its answers, with commands that say what the test wrote down for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdbench.engine import GIB, Needs
from kdbench.errors import ConfigError
from kdbench.execution import slurm
from kdbench.execution import slurm_commands as commands
from kdbench.execution.jobs import Job, Settings
from kdbench.execution.queues import State, Ticket
from kdbench.execution.seam import Opening
from kdbench.execution.slurm import SlurmOptions, SlurmQueue
from kdbench.execution.slurm_task import ERR, OUT, PROCESS, REPORT, Task

ANSWER = """#!/bin/sh
echo "$0 $*" >> {log}
cat {folder}/$(basename $0).out
cat {folder}/$(basename $0).err >&2
exit $(cat {folder}/$(basename $0).code)
"""


class Answers:
    """The commands of SLURM, each with what it prints and its exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        for name in ("sbatch", "squeue", "scancel", "scontrol"):
            path = folder / name
            path.write_text(ANSWER.format(log=self.log, folder=folder))
            path.chmod(0o755)
            self.say(name, "")

    def say(self, name: str, out: str, err: str = "", code: int = 0) -> None:
        for suffix, text in (("out", out), ("err", err), ("code", str(code))):
            (self.folder / f"{name}.{suffix}").write_text(text)

    def asked(self, name: str) -> list[str]:
        """Return the words each call of a command was given."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0].endswith(f"/{name}")]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return Answers(tmp_path / "bin")


def queue(folder: Path, **options: object) -> SlurmQueue:
    settings = Settings(folder, folder, folder, ("cpu",), 1)
    opening = Opening(settings, lambda _event: None, SlurmOptions.model_validate(options))
    return SlurmQueue(opening, folder)


def noted(folder: Path, name: str, *subjects: list[str]) -> Path:
    (folder / name).mkdir()
    (folder / name / "jobs.json").write_text(json.dumps(subjects))
    return folder / name


def test_only_our_arrays_of_this_store_are_seen(answers: Answers, tmp_path: Path) -> None:
    mine = noted(tmp_path, "kdbench_a", ["x", "y"], ["z"])
    lines = ["7_0|kdbench_a|RUNNING", "7_1|kdbench_a|PENDING", "8|kdbench_other|RUNNING", "9|somebody|RUNNING", "?"]
    answers.say("squeue", "\n".join(lines))
    ours = queue(tmp_path)
    assert ours.look() == {Ticket(mine, 0): State.RUNNING, Ticket(mine, 1): State.WAITING}
    assert ours.owners() == {"x": Ticket(mine, 0), "y": Ticket(mine, 0), "z": Ticket(mine, 1)}
    assert answers.asked("squeue")[0] == f"--noheader --array --user={os.getuid()} --format=%i|%j|%T"


def test_a_job_alone_is_the_first_of_its_array(answers: Answers, tmp_path: Path) -> None:
    mine = noted(tmp_path, "kdbench_a", ["x"])
    answers.say("squeue", "7|kdbench_a|COMPLETING")
    assert queue(tmp_path).look() == {Ticket(mine, 0): State.RUNNING}


def test_nothing_is_lost_while_slurm_does_not_answer(
    answers: Answers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = noted(tmp_path, "kdbench_a", ["x"])
    answers.say("squeue", "7|kdbench_a|RUNNING")
    ours = queue(tmp_path)
    assert len(ours.look()) == 1
    answers.say("squeue", "", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    assert ours.look() == {Ticket(mine, 0): State.RUNNING}
    assert caplog.messages == [
        "squeue: slurm_load_jobs error: Unable to contact slurm controller; jobs go on, and it is asked again"
    ]


ONE_BY_ONE = """#!/bin/sh
echo "$0 $*" >> {log}
said=$(head -n 1 {folder}/sbatch.says)
sed -i 1d {folder}/sbatch.says
case "$said" in *[!0-9]*) echo "$said" >&2; exit 1;; esac
echo "Submitted batch job $said"
"""
BUSY = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


def says(answers: Answers, *words: str) -> None:
    """Let sbatch say one thing after the other: the number of a job, or what is wrong."""
    (answers.folder / "sbatch.says").write_text("".join(f"{said}\n" for said in words))
    for name, text in (("sbatch", ONE_BY_ONE), ("srun", "#!/bin/sh\n")):  # submitit looks whether there is the second
        (answers.folder / name).write_text(text.format(log=answers.log, folder=answers.folder))
        (answers.folder / name).chmod(0o755)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pytest.importorskip("submitit")
    pauses: list[float] = []
    # Not the sleep of the whole process: subprocess waits for the end of a command with it.
    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=pauses.append, strftime=time.strftime))
    return pauses


JOBS = (Job("run x", ("run-one", "x"), ("x",)), Job("run y", ("run-one", "y"), ("y",)))


@pytest.mark.usefixtures("pauses")
def test_a_queue_that_does_not_answer_after_a_submission_has_it(answers: Answers, tmp_path: Path) -> None:
    says(answers, "7")
    ours = queue(tmp_path)
    answers.say("squeue", "", "Socket timed out", 1)
    tickets = ours.submit(JOBS, 2)
    for _ in range(5):
        assert ours.look() == dict.fromkeys(tickets, State.WAITING)
    assert not ours.answers
    assert ours.owners() == {"x": tickets[0], "y": tickets[1]}
    answers.say("squeue", f"7_1|{tickets[0].folder.name}|RUNNING")
    assert ours.look() == {tickets[1]: State.RUNNING}
    assert ours.answers
    ours.fate(tickets[0])
    assert answers.asked("scontrol")[-1].endswith(" 7_0"), "its number is known, though it was never seen"


def test_a_busy_controller_is_asked_again(
    answers: Answers, tmp_path: Path, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    says(answers, BUSY, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", "7")
    ours = queue(tmp_path)
    tickets = ours.submit(JOBS, 2)
    assert ours.look() == {}, "it says what SLURM says"
    assert len(tickets) == 2
    assert pauses == [0.0, *slurm.PAUSES[:2]]
    assert len(answers.asked("sbatch")) == 3
    assert caplog.messages[0] == f"{BUSY}; jobs that were submitted go on, and it is tried again"
    assert len(list(tmp_path.glob("kdbench_*/jobs.json"))) == 1


def test_a_controller_that_stays_busy_is_given_up(answers: Answers, tmp_path: Path, pauses: list[float]) -> None:
    says(answers, *[BUSY] * 9)
    with pytest.raises(ConfigError) as caught:
        queue(tmp_path).submit(JOBS, 2)
    assert str(caught.value).endswith(f": {BUSY}; start the same command again later")
    assert pauses == [0.0, *slurm.PAUSES]


def test_what_was_taken_although_the_answer_came_too_late_is_not_submitted_again(
    answers: Answers, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    says(answers, BUSY, "8")
    ours = queue(tmp_path)

    def arrive(seconds: float) -> None:
        pauses.append(seconds)
        for note in tmp_path.glob("kdbench_*/jobs.json"):
            if len(pauses) == 2:
                answers.say("squeue", "", "Socket timed out", 1)
            elif len(pauses) > 2:
                answers.say("squeue", f"7_0|{note.parent.name}|PENDING\n7_1|{note.parent.name}|PENDING")

    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=arrive, strftime=time.strftime))
    tickets = ours.submit(JOBS, 2)
    assert pauses == [0.0, *slurm.PAUSES[:2]], "while nobody knows whether it was taken, it is not submitted, either"
    assert len(answers.asked("sbatch")) == 1
    assert ours.look() == dict.fromkeys(tickets, State.WAITING)


def test_what_is_wrong_with_a_job_is_said_at_once(answers: Answers, tmp_path: Path, pauses: list[float]) -> None:
    says(answers, "sbatch: error: Batch job submission failed: Invalid job array specification", "7")
    with pytest.raises(ConfigError) as caught:
        queue(tmp_path).submit(JOBS, 2)
    assert str(caught.value).endswith(
        ": sbatch: error: Batch job submission failed: Invalid job array specification; correct --executor-option "
        "(kdbench show slurm); limits on the number of jobs are told by queue_size"
    )
    assert pauses == [0.0]


def test_no_more_than_the_option_says_is_in_the_queue(answers: Answers, tmp_path: Path) -> None:
    mine = noted(tmp_path, "kdbench_a", ["x"], ["y"])
    ours = queue(tmp_path, queue_size=5)
    assert (queue(tmp_path).takes(1), ours.takes(1), ours.takes(0)) == (1000, 5, 0)
    answers.say("squeue", "7_0|kdbench_a|RUNNING\n7_1|kdbench_a|PENDING")
    assert set(ours.look()) == {Ticket(mine, 0), Ticket(mine, 1)}
    assert ours.takes(1) == 3


def test_an_array_beside_others_is_no_larger_than_its_share(answers: Answers, tmp_path: Path) -> None:
    """SLURM would start that few at a time to its end, when the others have long ended."""
    settings = Settings(tmp_path, tmp_path, tmp_path, ("cpu",), 1)
    ours = SlurmQueue(Opening(settings, lambda _event: None, SlurmOptions(queue_size=9), jobs=4), tmp_path)
    assert [ours.takes(room) for room in (-3, 0, 1, 3, 4)] == [0, 0, 1, 3, 9]


def test_a_slurm_that_does_not_answer_is_told_before_any_work(answers: Answers, tmp_path: Path) -> None:
    answers.say("squeue", "", "Unable to contact slurm controller", 1)
    with pytest.raises(ConfigError, match=r"^--executor slurm: squeue: Unable to contact slurm controller; SLURM must"):
        queue(tmp_path)


def test_waiting_tasks_are_cancelled_and_running_ones_told(answers: Answers, tmp_path: Path) -> None:
    mine = noted(tmp_path, "kdbench_a", ["x"], ["y"])
    answers.say("squeue", "7_0|kdbench_a|RUNNING\n7_1|kdbench_a|PENDING")
    ours = queue(tmp_path)
    ours.stop([Ticket(mine, 0), Ticket(mine, 1), Ticket(mine, 5)])
    ours.kill([Ticket(mine, 0)])
    assert answers.asked("scancel") == ["--state=PENDING 7_0 7_1", "--signal=INT 7_0 7_1", "7_0"]


@pytest.mark.parametrize(
    ("state", "began", "expected"),
    [
        ("CANCELLED", True, (True, "SLURM job 7 has ended (CANCELLED), see the logs in ")),
        ("NODE_FAIL", True, (False, "SLURM job 7 has ended (NODE_FAIL), see the logs in ")),
        ("FAILED", False, (True, "SLURM job 7 has ended before its worker began (FAILED), see the logs in ")),
        ("", True, (False, "SLURM job 7 has ended (unknown), see the logs in ")),
    ],
)
def test_the_fate_of_a_task(
    state: str, began: bool, expected: tuple[bool, str], answers: Answers, tmp_path: Path
) -> None:
    mine = noted(tmp_path, "kdbench_a", ["x"])
    answers.say("squeue", "7|kdbench_a|RUNNING")
    answers.say("scontrol", f"JobId=7 JobState={state} Reason=None" if state else "", code=0 if state else 1)
    if began:
        Ticket(mine, 0).path(PROCESS).touch()
    ours = queue(tmp_path)
    ours.look()
    over, words = ours.fate(Ticket(mine, 0))
    assert (over, words) == (expected[0], f"{expected[1]}{mine}")


def test_an_array_asks_for_what_its_largest_task_needs(answers: Answers, tmp_path: Path) -> None:
    answers.say("squeue", "")
    needs = {"a": Needs(0, 2, 3 * GIB, 1800.0), "b": Needs(1, 1, 5 * GIB, 600.0)}
    settings = Settings(tmp_path, tmp_path, tmp_path, ("cuda",), 1)
    options = SlurmOptions(partition="gpu", account="lab", time=90, setup=("module load x",), signal=60)
    opening = Opening(settings, lambda _event: None, options, needs=lambda job: needs[job.name])
    found = SlurmQueue(opening, tmp_path)._parameters("kdbench_x", [Job("a", ()), Job("b", ())], 4)
    assert found == {
        "name": "kdbench_x", "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 2, "gpus_per_node": 1, "mem_gb": 5.0,
        "timeout_min": 90, "slurm_partition": "gpu", "slurm_setup": ["module load x"], "slurm_signal_delay_s": 60,
        "slurm_array_parallelism": 4, "slurm_additional_parameters": {"requeue": True, "account": "lab"},
    }  # fmt: skip


def test_reports_that_are_none_count_as_none(answers: Answers, tmp_path: Path) -> None:
    ours, ticket = queue(tmp_path), Ticket(tmp_path, 0)
    assert ours.outcome(ticket) is None
    for text in ("", "[]", "{}", '{"exit_code": []}', "\x00"):
        ticket.path(REPORT).write_text(text)
        assert ours.outcome(ticket) is None
    ticket.path(REPORT).write_text('{"exit_code": -9}')
    assert ours.outcome(ticket) == -9


def test_a_long_list_of_jobs_is_more_than_one_command(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "WORDS", 2)
    commands.cancel(["1", "2", "3"])
    commands.cancel([])
    assert answers.asked("scancel") == ["1 2", "3"]


# --- on the node ------------------------------------------------------------------------------------------------------

OBEYS = """
import os, signal, time
signal.signal({number}, lambda *_: os._exit(75))
print("ready", flush=True)
time.sleep(60)
"""


def started(stem: Path, script: str, told: int = 0) -> subprocess.Popen[bytes]:
    """Start a task in a process of its own, and tell it something when its worker is ready."""
    code = (
        "import sys, time; from kdbench.execution import slurm_task as t; t.KILL_SECONDS = 30.0\n"
        f"sys.exit(t.Task([sys.executable, '-c', {script!r}], {str(stem)!r})() % 256)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while told and time.monotonic() < deadline:
        if (path := Path(f"{stem}{OUT}")).exists() and path.read_text() == "ready\n":
            process.send_signal(told)
            break
        time.sleep(0.02)
    return process


def report(stem: Path) -> object:
    return json.loads(Path(f"{stem}{REPORT}").read_text())["exit_code"]


def test_a_task_runs_its_command_and_reports(tmp_path: Path) -> None:
    stem = tmp_path / "0"
    Path(f"{stem}{REPORT}").write_text('{"exit_code": 99}')
    Path(f"{stem}{ERR}").write_text("of an earlier start")
    process = started(stem, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(65)")
    assert process.wait() == 65
    assert report(stem) == 65
    assert (Path(f"{stem}{OUT}").read_text(), Path(f"{stem}{ERR}").read_text()) == ("out\n", "err\n")
    assert set(json.loads(Path(f"{stem}{PROCESS}").read_text())) == {"task", "worker"}


def test_a_task_told_to_stop_ends_when_its_worker_has_saved(tmp_path: Path) -> None:
    stem = tmp_path / "0"
    process = started(stem, OBEYS.format(number=int(signal.SIGINT)), signal.SIGINT)
    assert process.wait() == 75
    assert report(stem) == 75


def test_a_task_told_of_its_end_waits_for_it(tmp_path: Path) -> None:
    """It would count as done otherwise, and never be queued again. Its worker dies of the signal: it has not begun."""
    stem = tmp_path / "0"
    process = started(stem, "import time; print('ready', flush=True); time.sleep(60)", signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    assert report(stem) == 75, "that costs no attempt"
    process.kill()
    process.wait()


def test_a_worker_that_dies_of_something_else_is_told_as_it_is(tmp_path: Path) -> None:
    process = started(tmp_path / "0", "import os; os.kill(os.getpid(), 9)")
    process.wait()
    assert report(tmp_path / "0") == -9


def test_a_checkpoint_is_a_new_task_when_the_worker_has_ended(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    task = Task(["true"], str(tmp_path / "0"))
    assert task() == 0
    again = task.checkpoint().function
    assert (again.command, again.stem) == (task.command, task.stem)
