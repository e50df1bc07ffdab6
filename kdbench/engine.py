"""What an engine is: a way of running jobs, under the name that ``--executor`` takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdbench.config.loading import NOT_YAML, parse_yaml, validate
from kdbench.errors import ConfigError
from kdbench.method import Options

if TYPE_CHECKING:
    from kdbench.execution.seam import Executor, Opening

GIB = 2**30
Where = Literal["process", "machine", "cluster"]


@dataclass(frozen=True)
class Needs:
    """What one job asks of the machine that runs it.

    Args:
        gpus: GPUs, >= 0.
        cpus: CPU cores, >= 1.
        memory: Main memory in bytes.
        seconds: Wall time; a job that is stopped when it is over has saved, and goes on later.
    """

    gpus: int
    cpus: int
    memory: int
    seconds: float

    @classmethod
    def largest(cls, needs: Sequence[Needs]) -> Needs:
        """Return the most of each that any of some jobs asks for."""
        return cls(*(max(getattr(need, each.name) for need in needs) for each in fields(cls)))


class ResourceOptions(Options):
    """Options of an engine that reserves something for its jobs: what is given here is not estimated."""

    gpus: int | None = Field(None, ge=0, description="GPUs of a job; null = 1 with --device cuda, else 0")
    cpus: int | None = Field(None, ge=1, description="CPU cores of a job; null = --threads")
    memory: float | None = Field(None, gt=0, description="main memory of a job in GiB; null = estimated")
    time: float | None = Field(None, gt=0, description="wall time of a job in minutes; null = estimated")

    def over(self, needs: Needs) -> Needs:
        """Return what a job needs, as far as it is not said here."""
        said: dict[str, Any] = {
            "gpus": self.gpus,
            "cpus": self.cpus,
            "memory": None if self.memory is None else int(self.memory * GIB),
            "seconds": None if self.time is None else 60 * self.time,
        }
        return replace(needs, **{name: value for name, value in said.items() if value is not None})


@dataclass(frozen=True)
class Engine:
    """A registered engine: what may be said of it without starting it.

    Args:
        name: Registered name.
        description: One line for ``kdbench list executors``.
        open: Called with an :class:`~kdbench.execution.seam.Opening`; returns the executor. Its library is imported
            inside, not before. Raises ConfigError if there is no such cluster, or it cannot be reached.
        options_type: What ``--executor-option`` may set.
        where: Where its workers are: in this very ``process``, in others of this ``machine`` (whose devices and free
            memory are looked at), or on a ``cluster`` (each sees no GPUs but those given to its job).
        jobs: Workers at a time unless the command says; None = one for each device of this machine.
        queue: Jobs it is handed besides those that may run, because they wait in a queue of its own; a number, or the
            name of the option that says it.
        packages: Importable names of what it needs.
        requirement: What ``pip install`` takes to bring them.
    """

    name: str
    description: str
    open: Callable[[Opening], Executor] = field(repr=False)
    options_type: type[Options] = Options
    where: Where = "machine"
    jobs: int | None = None
    queue: int | str = 0
    packages: tuple[str, ...] = ()
    requirement: str = ""

    def waiting(self, options: Options) -> int:
        """Return how many jobs it is handed besides those that may run."""
        return self.queue if isinstance(self.queue, int) else int(getattr(options, self.queue))

    def missing(self) -> str:
        """Return the names of what cannot be imported, with commas between them."""
        return ", ".join(name for name in self.packages if importlib.util.find_spec(name) is None)

    def check_installed(self) -> None:
        """Raise ConfigError unless everything it needs can be imported."""
        if missing := self.missing():
            raise ConfigError(
                f"--executor {self.name}: needs {missing}, which is not installed; pip install '{self.requirement}'"
            )

    def options(self, texts: Iterable[str]) -> Options:
        """Return the options of a command.

        Args:
            texts: Each ``KEY=VALUE``, the value as YAML.

        Raises:
            ConfigError: If one is of another form.
            ProblemList: If the engine has no such option, or one is out of range.
        """
        return validate(self.options_type, dict(map(_setting, texts)), f"--executor-option of '{self.name}'")


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        if not (equals and name.strip() and value.strip()):
            raise ValueError
        return name.strip(), parse_yaml(value)
    except NOT_YAML as error:
        raise ConfigError(
            f"--executor-option {text}: not of the form KEY=VALUE with a YAML scalar or list as value"
        ) from error
