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
MOST_TASKS = 1000  # of an array: all that is in the queue at a time; SLURM's own default limit is 1001
EVER = 10**6  # how often submitit may queue a job again whose time was over: each time it is further


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
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        name = slurm.PREFIX + time.strftime("%Y%m%d_%H%M%S_") + secrets.token_hex(4)
        folder = (self.folder / name).absolute()
        write_atomic(folder / NOTE, json.dumps([subjects(job) for job in jobs]))
        executor = AutoExecutor(folder=folder, cluster=self.options.cluster, slurm_max_num_timeout=EVER)
        executor.update_parameters(**self._parameters(name, jobs, at_once))
        settings = self.opening.settings
        commands = [job.command(settings, settings.devices[0]) for job in jobs]
        try:
            with executor.batch():
                submitted = [executor.submit(Task(words, str(folder / str(i)))) for i, words in enumerate(commands)]
        except (FailedJobError, FailedSubmissionError) as error:
            reason = str(error).strip().splitlines()
            raise ConfigError(
                f"--executor slurm: sbatch refused {folder.name}: {reason[-1] if reason else error}; correct "
                "--executor-option (kdbench show slurm)"
            ) from error
        tickets = [Ticket(folder, index) for index in range(len(jobs))]
        self._note(dict(zip(tickets, submitted, strict=True)))
        return tickets

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
        """Return how many tasks an array may have, however many may run at a time: SLURM starts the others."""
        return MOST_TASKS if room > 0 else 0

    def look(self) -> Mapping[Ticket, State]:
        """Return our tasks in the queue; what was seen before, while SLURM does not answer."""
        entries = slurm.queue()
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
            "slurm", about, _open, SlurmOptions, where="cluster", jobs=16, queue=MOST_TASKS, packages=("submitit",),
            requirement="kdbench[slurm]",
        )
    ]  # fmt: skip
