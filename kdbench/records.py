"""What a run leaves behind: the record, the report of each epoch, and how both are read back."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import from_json

from kdbench.config.schema import ADDED, Section
from kdbench.errors import StoreError
from kdbench.files import unreadable
from kdbench.seal import SEAL, unsealed
from kdbench.spec import DatasetRef, DeclaredDeviation, PluginRef, VariantName

Status = Literal["ok", "diverged", "infra_failed", "skipped"]
M = TypeVar("M", bound=BaseModel)


class Corrupt(StoreError):
    """A file is half-written or foreign: reading it again, or with another kdbench, will not help."""

    exit_code = 2


class Grown(Section):
    """What had fewer keys when the first records were published; a copied record keeps its bytes."""

    @model_serializer(mode="wrap")
    def _as_it_was_published(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unsaid = self.unsaid()
        return {key: value for key, value in dump(self).items() if key not in unsaid}


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


PARTS = ("data", "teacher", "student", "method", "evaluation")  # of the time of a run


class Cost(Grown):
    """What the run cost, and what its result costs to use.

    Args:
        train_seconds: Time in training steps over all attempts (with a safe retry, those from it on); evaluation and
            start-up are not in it.
        images_per_second: Training images per such second.
        student_forwards: Images the student was run on in training.
        teacher_forwards: Images run through teachers for this run (in a cohort: its share of the shared pass).
        teacher_cached: Images whose teachers' outputs were kept from earlier, counted likewise.
        peak_memory_bytes: Peak of the device, or of the process on a CPU.
        train_only_parameters: Scalars of student and method that are not deployed.
        deployed_parameters: Scalars of the deployed module.
        deployed_flops: Floating-point operations of the deployed module for one image.
        data_seconds: Of ``train_seconds``, making batches (in a cohort: its share).
        teacher_seconds: Of it, passes of the shared teachers (likewise).
        student_seconds: Of it, the student's passes, the whole backward pass, and the optimizer.
        method_seconds: Of it, losses, what the method does after steps and epochs, and phases that leave the student
            as it is.
        evaluation_seconds: Beside it, evaluation after the epochs and at the end.
    """

    train_seconds: float
    images_per_second: float
    student_forwards: int
    teacher_forwards: int
    teacher_cached: Annotated[int, ADDED] = 0
    peak_memory_bytes: int
    train_only_parameters: int
    deployed_parameters: int
    deployed_flops: int
    data_seconds: Annotated[float | None, ADDED] = None
    teacher_seconds: Annotated[float | None, ADDED] = None
    student_seconds: Annotated[float | None, ADDED] = None
    method_seconds: Annotated[float | None, ADDED] = None
    evaluation_seconds: Annotated[float | None, ADDED] = None

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part of the run's time; empty for a record from before they were metered."""
        found = {part: getattr(self, f"{part}_seconds") for part in PARTS}
        return {part: seconds for part, seconds in found.items() if seconds is not None}


class Environment(Grown):
    """The five things equal bits depend on (python, torch, device, threads, commit) and a few more.

    ``memory_formats`` says how each network lay in memory, by the name of the student's backbone and of each teacher.
    """

    python: str
    torch: str
    device: str
    threads: int
    commit: str
    precision: str = ""
    world_size: int = 1
    machine: str = ""
    memory_formats: Annotated[dict[str, str], ADDED] = Field(default_factory=dict)


class Attempt(Grown):
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
    settings: Annotated[dict[str, JsonValue], ADDED] = Field(default_factory=dict)
    retry_sha256: Annotated[str, ADDED] = ""


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


class Record(Grown):
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
    # Every plugin that was loaded, whatever it brought: each ran with the rights of this process.
    plugins_loaded: Annotated[tuple[PluginRef, ...], ADDED] = ()
    weights_sha256: Annotated[str, ADDED] = ""  # of the deployed weights' file; a flipped bit leaves a valid number

    @model_validator(mode="before")
    @classmethod
    def _as_now(cls, tree: Any) -> Any:
        """Read the first records, which had the reference to the dataset in place of its label."""
        if not isinstance(tree, dict) or "dataset_ref" in tree or not isinstance(tree.get("dataset"), dict):
            return tree
        return {**tree, "dataset": DatasetRef.model_validate(tree["dataset"]).label, "dataset_ref": tree["dataset"]}

    def numbers(self) -> dict[str, float]:
        """Return the results that are there, each under a name of its own, such as ``accuracy.last``."""
        parts = (("accuracy.", self.accuracy), ("cost.", self.cost))
        found = {f"{prefix}{name}": value for prefix, part in parts if part for name, value in part}
        found.update(nll=self.nll, ece=self.ece, agreement_with_teacher=self.agreement_with_teacher)
        return {name: float(value) for name, value in found.items() if value is not None}

    def findings(self) -> dict[str, object]:
        """Return in what equal runs agree: status, teachers and results, but not when, where and how fast."""
        numbers = {name: value for name, value in sorted(self.numbers().items()) if not name.startswith("cost.")}
        return {"status": self.status, "teachers (sha256)": [t.sha256[:12] for t in self.teachers], **numbers}

    @property
    def safe_mode(self) -> bool:
        """Whether the result is that of the safe retry."""
        finished = self.status in {"ok", "diverged"}
        return finished and bool(self.attempts and self.attempts[-1].settings)


def disagreements(one: Record, other: Record) -> list[str]:
    """Return in words in which findings two records of one run differ; empty = both found the same."""
    a, b = one.findings(), other.findings()
    return [f"{name} {a.get(name)} and {b.get(name)}" for name in {**a, **b} if a.get(name) != b.get(name)]


def parse_json(model: type[M], path: Path) -> M:
    """Return the file as a ``model``.

    Raises:
        Corrupt: If it is truncated, changed or foreign.
        StoreError: If it cannot be read, is of a newer schema, or fits its seal and has what only another kdbench
            knows.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_bytes(model, data, str(path))


def parse_bytes(model: type[M], data: bytes, where: str) -> M:
    """Return what a file says as a ``model``; raises like :func:`parse_json`.

    Args:
        model: What it should be.
        data: The whole file.
        where: How messages name it.
    """
    kind = model.__name__.lower()
    try:
        tree = from_json(data.removeprefix(codecs.BOM_UTF8))
        version = tree.get("schema_version", 1) if isinstance(tree, dict) else None
        newer = isinstance(version, int) and version > 1
        # A seal of a newer schema may be another one; but if it is ours with version 1, that digit alone is damaged.
        if newer and not (SEAL in tree and unsealed({**tree, "schema_version": 1})[1]):
            raise StoreError(f"{where}: {kind} schema {version}, this kdbench reads 1; upgrade kdbench")
        said, fits = unsealed(tree) if isinstance(tree, dict) else (tree, True)
        if not fits:
            raise Corrupt(f"{where}: damaged: its content does not fit its seal; bring back the file as it was written")
        return model.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if isinstance(tree, dict) and SEAL in tree:  # whole, as somebody wrote it: no damage, and not to be made again
            raise StoreError(
                f"{where}: a {kind} of another kdbench, which this one does not know: {problem}; upgrade kdbench"
            ) from error
        raise Corrupt(f"{where}: not a {kind} of kdbench: {problem}") from error
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{where}: not JSON (half-written or foreign): {error}") from error
