"""The SLURM engine: jobs as tasks of arrays, submitted with submitit; they go on without the command."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self

from filelock import FileLock
from pydantic import ConfigDict, Field, model_validator

from kdbench.engine import GIB, Engine, Needs, ResourceOptions
from kdbench.errors import ConfigError
from kdbench.execution import slurm_commands as slurm
from kdbench.execution.jobs import Job
from kdbench.execution.polling import QueueExecutor
from kdbench.execution.queues import Queue, State, Ticket, subjects
from kdbench.execution.seam import Opening
from kdbench.execution.slurm_task import ERR, OUT, PROCESS, REPORT, Task
from kdbench.files import write_atomic
from kdbench.hooks import hookimpl
from kdbench.storage.places import Url, Where

FOLDER = Path(".engines", "slurm")  # in the store, which all nodes see; no run's name begins with a dot
NOTE = "jobs.json"
MOST_TASKS = 1000  # in the queue at a time, all in one array; SLURM's own default limit is 1001
PAUSES = (5.0, 20.0, 60.0, 120.0)  # seconds before a job is handed over again to a controller that is busy
EVER = 10**6  # how often submitit may queue a job again whose time was over: each time it is further
_log = logging.getLogger(__name__)


class SlurmOptions(ResourceOptions):
    """Options of the SLURM engine."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    partition: str | None = Field(None, description="partition")
    account: str | None = Field(None, description="account that is charged")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features that nodes must have")
    reservation: str | None = Field(None, description="reservation")
    gres: str | None = Field(None, description="generic resources, where gpus is not enough")
    setup: tuple[str, ...] = Field((), description="shell commands before the worker starts, as [module load cuda]")
    signal: int = Field(90, ge=5, description="seconds before the time limit at which a job saves and is queued again")
    poll: float = Field(10.0, gt=0, description="seconds between two looks at the queue")
    queue_size: int = Field(
        MOST_TASKS, ge=1, description="most jobs in the queue at a time, and in an array: what MaxArraySize and limits "
        "on submitted jobs allow",
    )  # fmt: skip
    folder: str | None = Field(None, description="folder of logs and notes that all nodes see; null = in the store")
    cluster: Literal["slurm", "local"] = Field("slurm", description="local = processes of this machine, to try it out")

    @model_validator(mode="after")
    def _leaves_time_to_work(self) -> Self:
        """Refuse what would let a job be told to stop as soon as it has begun, again and again."""
        if self.time is not None and 60 * self.time < 2 * self.signal:
            raise ValueError(
                f"time is {self.time:g} minutes and signal {self.signal} seconds: that leaves less than half of the "
                "time to work; give more time or a smaller signal"
            )
        return self

    def of_sbatch(self) -> dict[str, Any]:
        """Return what sbatch is told besides what submitit has parameters for."""
        named = {"account": self.account, "qos": self.qos, "reservation": self.reservation}
        return {"requeue": True, **{name: value for name, value in named.items() if value is not None}}


class SubmititQueue:
    """What is common to SLURM and to submitit's processes of this machine.

    Args:
        opening: What the engine was opened with.
        folder: Folder of all submissions.
    """

    out, err = OUT, ERR
    answers = True

    def __init__(self, opening: Opening, folder: Path) -> None:
        assert isinstance(opening.options, SlurmOptions)
        self.opening, self.options, self.folder = opening, opening.options, folder

    def turn(self) -> AbstractContextManager[object]:
        """Keep other commands from submitting meanwhile."""
        return FileLock(self.folder / "turn.lock")

    def submit(self, jobs: Sequence[Job], at_once: int) -> list[Ticket]:
        """Submit jobs as one array.

        The note of what an array holds is there before the array, whose name leads to it: a command that is killed in
        between leaves nothing that the next one does not find.
        """
        name = slurm.PREFIX + time.strftime("%Y%m%d_%H%M%S_") + secrets.token_hex(4)
        folder = (self.folder / name).absolute()
        write_atomic(folder / NOTE, json.dumps([subjects(job) for job in jobs]))
        tickets, settings = [Ticket(folder, index) for index in range(len(jobs))], self.opening.settings
        commands = [job.command(settings, settings.devices[0]) for job in jobs]
        tasks = [Task(words, str(ticket.path(""))) for words, ticket in zip(commands, tickets, strict=True)]
        if submitted := self._submitted(tasks, folder, self._parameters(name, jobs, at_once)):
            self._note(dict(zip(tickets, submitted, strict=True)))
        return tickets

    def _submitted(self, tasks: Sequence[Task], folder: Path, parameters: dict[str, Any]) -> list[Any]:
        """Submit tasks, several times if the controller is busy; return their jobs as submitit knows them.

        Returns:
            Nothing, if they are in the queue although sbatch has said otherwise: its answer came too late.
        """
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        words = ""
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            if words and (arrived := self._has_arrived(folder)) is not False:
                if arrived:
                    return []
                continue  # nobody knows, and all would be done twice
            executor = AutoExecutor(folder=folder, cluster=self.options.cluster, slurm_max_num_timeout=EVER)
            executor.update_parameters(**parameters)
            try:
                with executor.batch():
                    return [executor.submit(task) for task in tasks]
            except (FailedJobError, FailedSubmissionError) as error:
                words = (str(error).strip() or type(error).__name__).splitlines()[-1]
                if not slurm.is_busy(str(error)):
                    raise self._refusal(folder, words) from error
            _log.warning("%s; jobs that were submitted go on, and it is tried again", words)
        raise self._refusal(folder, words)

    def _refusal(self, folder: Path, words: str) -> ConfigError:
        remedy = "start the same command again later" if slurm.is_busy(words) else (
            "correct --executor-option (kdbench show slurm); limits on the number of jobs are told by queue_size"
        )  # fmt: skip
        return ConfigError(f"--executor slurm: sbatch refused {folder.name}: {words}; {remedy}")

    def _has_arrived(self, folder: Path) -> bool | None:  # noqa: ARG002 (of processes it is known at once)
        """Return whether what was submitted is in the queue; None if nobody knows."""
        return False

    def outcome(self, ticket: Ticket) -> int | None:
        """Return the exit code in a task's report."""
        try:
            return int(json.loads(ticket.path(REPORT).read_text(encoding="utf-8"))["exit_code"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _note(self, submitted: Mapping[Ticket, Any]) -> None:
        """Keep what is needed of submitit's jobs."""

    def _parameters(self, name: str, jobs: Sequence[Job], at_once: int) -> dict[str, Any]:
        """Return what submitit is told: all tasks of an array get the same, so the one that needs most decides."""
        most = Needs.largest([self.options.over(self.opening.needs(job)) for job in jobs])
        options = self.options
        found = {
            "name": name,
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": most.cpus,
            "gpus_per_node": most.gpus or None,
            "mem_gb": most.memory / GIB,
            "timeout_min": max(1, round(most.seconds / 60)),
            "slurm_partition": options.partition,
            "slurm_constraint": options.constraint,
            "slurm_gres": options.gres,
            "slurm_setup": list(options.setup) or None,
            "slurm_signal_delay_s": options.signal,
            "slurm_array_parallelism": at_once,
            "slurm_additional_parameters": options.of_sbatch(),
        }
        return {key: value for key, value in found.items() if value is not None}


class SlurmQueue(SubmititQueue):
    """The queue of SLURM, by its own commands: they work on clusters that keep no accounts, too."""

    def __init__(self, opening: Opening, folder: Path) -> None:
        super().__init__(opening, folder)
        slurm.check()
        self._ids: dict[Ticket, str] = {}
        self._seen: Mapping[Ticket, State] = {}

    def takes(self, room: int) -> int:
        """Return how many tasks an array may have; of one that is alone SLURM starts so many at a time by itself.

        One beside others would have the room that there is now to its end, when there is more: it gets no more tasks
        than that.
        """
        free = self.options.queue_size - len(self._seen)
        return max(0, free if room >= self.opening.jobs else min(room, free))

    def look(self) -> Mapping[Ticket, State]:
        """Return our tasks in the queue; what was seen before, while SLURM does not answer."""
        entries = slurm.queue()
        self.answers = entries is not None
        if entries is not None:
            mine = {(self.folder / entry.name).absolute(): entry.name for entry in entries}
            known = {name for folder, name in mine.items() if (folder / NOTE).is_file()}
            tickets = {
                Ticket((self.folder / entry.name).absolute(), entry.index): entry
                for entry in entries
                if entry.name in known
            }
            self._ids |= {ticket: entry.job for ticket, entry in tickets.items()}
            self._seen = {
                ticket: State.RUNNING if entry.running else State.WAITING for ticket, entry in tickets.items()
            }
        return self._seen

    def owners(self) -> Mapping[str, Ticket]:
        """Return which task in the queue does a run, or makes a teacher, whoever submitted it."""
        found: dict[str, Ticket] = {}
        notes: dict[Path, list[list[str]]] = {}
        for ticket in self.look():
            if ticket.folder not in notes:
                notes[ticket.folder] = json.loads((ticket.folder / NOTE).read_text(encoding="utf-8"))
            found |= dict.fromkeys(notes[ticket.folder][ticket.index], ticket)
        return found

    def fate(self, ticket: Ticket) -> tuple[bool, str]:
        """Return whether somebody cancelled a task or its worker never began, and what SLURM says of its end."""
        job = self._ids.get(ticket, "")
        state, began = slurm.state(job), ticket.path(PROCESS).exists()
        how = "has ended" if began else "has ended before its worker began"
        return state == "CANCELLED" or not began, f"SLURM job {job} {how} ({state}), see the logs in {ticket.folder}"

    def stop(self, tickets: Sequence[Ticket]) -> None:
        """Take those that wait out of the queue, and let those that run save."""
        jobs = self._jobs(tickets)
        slurm.cancel(jobs, "--state=PENDING")
        slurm.cancel(jobs, "--signal=INT")

    def kill(self, tickets: Sequence[Ticket]) -> None:
        """End tasks, as soon as SLURM does that."""
        slurm.cancel(self._jobs(tickets))

    def _note(self, submitted: Mapping[Ticket, Any]) -> None:
        """Take tasks for waiting until SLURM says more: it has them, but may not answer the next look."""
        self._ids |= {ticket: str(job.job_id) for ticket, job in submitted.items()}
        self._seen = {**self._seen, **dict.fromkeys(submitted, State.WAITING)}

    def _has_arrived(self, folder: Path) -> bool | None:
        arrived = any(ticket.folder == folder for ticket in self.look())
        return arrived if self.answers else None

    def _jobs(self, tickets: Sequence[Ticket]) -> list[str]:
        self.look()
        return [self._ids[ticket] for ticket in tickets if ticket in self._ids]


def _open(opening: Opening) -> QueueExecutor:
    from kdbench.execution.slurm_here import HereQueue

    assert isinstance(opening.options, SlurmOptions)
    logging.getLogger("submitit").setLevel(logging.WARNING)
    folder = _folder(opening.options, opening.settings.store)
    folder.mkdir(parents=True, exist_ok=True)
    queue: Queue = SlurmQueue(opening, folder) if opening.options.cluster == "slurm" else HereQueue(opening, folder)
    return QueueExecutor(queue, opening, opening.options.poll)


def _folder(options: SlurmOptions, store: Where) -> Path:
    if options.folder:
        return Path(options.folder)
    if isinstance(store, Url):
        raise ConfigError(
            f"--executor slurm: --out {store} is no folder, and logs need one that all nodes see; name it: "
            "--executor-option folder=PATH"
        )
    return store / FOLDER


@hookimpl
def kdbench_executors() -> list[Engine]:
    """Return the engine."""
    about = "arrays in the queue of a SLURM cluster, which go on without this command"
    return [
        Engine(
            "slurm", about, _open, SlurmOptions, where="cluster", jobs=16, queue="queue_size", packages=("submitit",),
            requirement="kdbench[slurm]",
        )
    ]  # fmt: skip
