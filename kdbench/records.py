"""What a run leaves behind: the record, the report of each epoch, and how both are read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from kdbench.config.schema import Section
from kdbench.errors import StoreError
from kdbench.seal import unsealed
from kdbench.spec import DatasetRef, DeclaredDeviation, PluginRef, VariantName

Status = Literal["ok", "diverged", "infra_failed", "skipped"]
M = TypeVar("M", bound=BaseModel)


class Corrupt(StoreError):
    """A file is half-written or foreign: reading it again, or with another kdbench, will not help."""

    exit_code = 2


class TeacherUsed(Section):
    """A teacher as the run saw it: sha256 of its weights file, test accuracy in percent."""

    name: str
    sha256: str
    accuracy: float


class Accuracy(Section):
    """Test accuracies in percent, from integer counts. ``last`` is the score; ``best`` is never ranked."""

    last: float
    best: float
    last5_mean: float
    top5: float


class Cost(Section):
    """What the run cost, and what its result costs to use.

    Args:
        train_seconds: Time in training steps over all attempts (with a safe retry, those from it on); evaluation and
            start-up are not in it.
        images_per_second: Training images per such second.
        student_forwards: Images the student was run on in training.
        teacher_forwards: Images run through teachers for this run (in a cohort: its share of the shared pass).
        peak_memory_bytes: Peak of the device, or of the process on a CPU.
        train_only_parameters: Scalars of student and method that are not deployed.
        deployed_parameters: Scalars of the deployed module.
        deployed_flops: Floating-point operations of the deployed module for one image.
    """

    train_seconds: float
    images_per_second: float
    student_forwards: int
    teacher_forwards: int
    peak_memory_bytes: int
    train_only_parameters: int
    deployed_parameters: int
    deployed_flops: int


class Environment(Section):
    """The five things equal bits depend on (python, torch, device, threads, commit) and a few more."""

    python: str
    torch: str
    device: str
    threads: int
    commit: str
    precision: str = ""
    world_size: int = 1
    machine: str = ""


class Attempt(Section):
    """One start of the run: when, how it ended, where it went on.

    Args:
        started_at: ISO time.
        ended_at: ISO time.
        outcome: How it ended.
        from_epoch: First epoch it trained.
        settings: In what it was computed otherwise than the anchor says; empty = in nothing.
        retry_sha256: Where its end made the run start once more with safe settings, the config_sha256 of both.
    """

    started_at: str
    ended_at: str
    outcome: str
    from_epoch: int = 0
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    retry_sha256: str = ""

    @model_serializer(mode="wrap")
    def _without_empty_additions(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what came after the first published records and says nothing: a copied record keeps its bytes."""
        kept: dict[str, Any] = dump(self)
        return {key: value for key, value in kept.items() if value or key not in {"settings", "retry_sha256"}}


class StepReport(Section):
    """The first step of a phase: unweighted loss terms with their weights, and the method's own numbers."""

    run_id: str
    phase: str
    losses: dict[str, float | None]
    weights: dict[str, float | None]
    metrics: dict[str, float | None] = Field(default_factory=dict)


class EpochReport(Section):
    """One finished epoch. Losses are unweighted means over its images, null if not finite; accuracies in percent.

    ``metrics`` are the method's own: means over the images, or what it found out at the end of the epoch. ``epoch``
    counts from 0 in each phase, ``number`` over all phases of the run: a worker that goes on where another one ended
    goes on counting, and an epoch that had to be done again has the same number.
    ``student_epoch`` counts the student's epochs where the main phase comes in parts; null in other phases.
    """

    run_id: str
    phase: str
    epoch: int
    epochs: int
    number: int = 0
    student_epoch: int | None = None
    learning_rate: float
    losses: dict[str, float | None]
    metrics: dict[str, float | str | None] = Field(default_factory=dict)
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    images_per_second: float
    seconds: float

    def named(self) -> dict[str, float | str | None]:
        """Return every value of the epoch under a name of its own, such as ``losses.ce``; None where there is none."""
        return {
            "learning_rate": self.learning_rate,
            **{f"losses.{name}": value for name, value in self.losses.items()},
            **{f"metrics.{name}": value for name, value in self.metrics.items()},
            "train_accuracy": self.train_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "test_accuracy": self.test_accuracy,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
        }


class Record(Section):
    """The result of one run. A failed run has a record too: its status says so, and ``reason`` why."""

    schema_version: Literal[1] = 1
    kdbench_version: str
    run_id: str
    config_sha256: str
    status: Status
    reason: str = ""
    method: str
    method_version: int
    variant: VariantName = ""
    plugin: PluginRef
    options: dict[str, JsonValue]
    division: Literal["closed", "open"]
    deviations: tuple[DeclaredDeviation, ...] = ()
    pair: str
    student: str
    dataset: str
    dataset_ref: DatasetRef
    classes: int
    anchor: str
    anchor_sha256: str
    seed: int
    teachers: tuple[TeacherUsed, ...] = ()
    accuracy: Accuracy | None = None
    nll: float | None = None
    ece: float | None = None
    agreement_with_teacher: float | None = None
    cost: Cost | None = None
    environment: Environment
    started_at: str
    ended_at: str
    attempts: tuple[Attempt, ...] = Field(default_factory=tuple)

    def numbers(self) -> dict[str, float]:
        """Return the results that are there, each under a name of its own, such as ``accuracy.last``."""
        parts = (("accuracy.", self.accuracy), ("cost.", self.cost))
        found = {f"{prefix}{name}": value for prefix, part in parts if part for name, value in part}
        found.update(nll=self.nll, ece=self.ece, agreement_with_teacher=self.agreement_with_teacher)
        return {name: float(value) for name, value in found.items() if value is not None}

    @property
    def safe_mode(self) -> bool:
        """Whether the result is that of the safe retry."""
        finished = self.status in {"ok", "diverged"}
        return finished and bool(self.attempts and self.attempts[-1].settings)


def parse_json(model: type[M], path: Path) -> M:
    """Return the file as a ``model``.

    Raises:
        Corrupt: If it is truncated, changed or foreign.
        StoreError: If it cannot be read, or is of a newer schema.
    """
    kind = model.__name__.lower()
    try:
        tree = json.loads(path.read_bytes())
        version = tree.get("schema_version", 1) if isinstance(tree, dict) else None
        if isinstance(version, int) and version > 1:
            raise StoreError(f"{path}: {kind} schema {version}, this kdbench reads 1; upgrade kdbench")
        said, fits = unsealed(tree) if isinstance(tree, dict) else (tree, True)
        if not fits:
            raise Corrupt(f"{path}: damaged: its content does not fit its seal; bring back the file as it was written")
        return model.model_validate(said)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise Corrupt(f"{path}: not a {kind} of kdbench: {key}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path}: not JSON (half-written or foreign): {error}") from error
