"""What an anchor file may say: every key of the protocol, with its type, range and meaning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Precision = Literal["fp32", "bf16", "fp16"]
# Marks a key that came after records had been published: at its default it is no part of any hash, so that a protocol
# that never said it keeps the hash it was published under.
ADDED = "added after the first published records"


WHOLE = frozenset({"lr_by_student", "teacher_weights"})  # keys whose value is itself a mapping


def _form_of_weights(value: object) -> str:
    return "<by name>" if isinstance(value, dict) else "<in order>"


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("input should be a number")  # noqa: TRY004 (pydantic reports no TypeError)
    return value


_Weight = Annotated[Positive, BeforeValidator(_no_truth_value)]
# Messages leave the tags out; without them each wrong weight would be wrong in both forms.
TeacherWeights = Annotated[
    Annotated[tuple[_Weight, ...], Tag("<in order>")] | Annotated[dict[str, _Weight], Tag("<by name>")],
    Discriminator(_form_of_weights),
]


class Section(BaseModel):
    """A frozen group of keys; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_is_a_number(cls, tree: Any) -> Any:
        """YAML reads ``on`` and ``no`` as truth values, which pydantic would take for 1 and 0.

        For the whole section at once: boards read thousands of records with a hundred values each.
        """
        if not isinstance(tree, Mapping):
            return tree
        wrong = {key: _TruthValue(tree[key]) for key in _numbers(cls) if isinstance(tree.get(key), bool)}
        return {**tree, **wrong} if wrong else tree

    def unsaid(self) -> set[str]:
        """Return the added keys that are at their defaults: what was written before there were any lacks them."""
        return {key for key, default in _added(type(self)).items() if getattr(self, key) == default}

    def hashed(self, exclude: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what a hash of this value covers: all of it in JSON's types, but the added keys at their defaults.

        Args:
            exclude: What else to leave out, in pydantic's form; ``True`` stands for the whole of a key.
        """
        left_out = exclude or {}
        skipped = self.unsaid() | {key for key, inner in left_out.items() if inner is True}
        nested: dict[str, Any] = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            if key in skipped:
                continue
            if isinstance(value, Section):
                nested[key] = value.hashed(left_out.get(key))
            elif isinstance(value, tuple) and value and isinstance(value[0], Section):
                nested[key] = [item.hashed(left_out.get(key)) for item in value]
        # What is nested is dumped once, by itself: boards hash thousands of specs.
        return self.model_dump(mode="json", exclude=skipped | nested.keys()) | nested


class _TruthValue:
    """What is no number for pydantic, but looks the same in its messages.

    Args:
        value: What was said.
    """

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


@cache
def _numbers(section: type[Section]) -> tuple[str, ...]:
    """Return the keys whose values are plain numbers."""
    return tuple(key for key, field in section.model_fields.items() if field.annotation in {int, float})


@cache
def _added(section: type[Section]) -> dict[str, Any]:
    """Return the defaults of the keys that were added later; values are frozen, so that one serves for all."""
    fields = section.model_fields.items()
    return {key: field.get_default(call_default_factory=True) for key, field in fields if ADDED in field.metadata}


class Loss(Section):
    """Weights and temperature of the supervised and the logit-KD term."""

    ce_alpha: NonNegative = Field(description="weight of the supervised term")
    kd_alpha: NonNegative = Field(description="weight of the KD term; ce_alpha + kd_alpha must be 1")
    weights: Literal["anchor", "published"] = Field(
        "anchor", description="'anchor': these weights for every method; 'published': each method's own published ones"
    )
    kd_target: Literal["teacher", "avg", "weighted_conf"] = Field("avg", description="how K teachers become one target")
    kd_teacher_index: int = Field(0, ge=0, description="which teacher kd_target 'teacher' picks")
    teacher_weights: TeacherWeights | None = Field(
        None,
        description="weights of kd_target 'avg', a list in the teachers' order or {backbone: weight}; null = equal",
    )
    tau: Positive = Field(4.0, description="temperature of the KD term")
    tau_schedule: tuple[Positive, Positive] | None = Field(
        None, description="[first, last] temperature, linear over the epochs of each phase; replaces tau"
    )
    tau_start: Annotated[Positive | None, ADDED] = Field(
        None, description="first temperature of a course over all the student's epochs; replaces tau"
    )
    tau_end: Annotated[Positive | None, ADDED] = Field(None, description="where it ends; null = tau_start")
    tau_decay_power: Annotated[Positive, ADDED] = Field(1.0, description="power of the share that is left; 1 = linear")
    ce_label_smoothing: Fraction = Field(0.0, description="label smoothing of the supervised term")


class Optimizer(Section):
    """Optimizer of student and helper modules alike."""

    name: Literal["sgd", "adamw", "adam"] = Field("sgd", description="optimizer; adam couples its weight decay")
    lr: Positive = Field(description="initial learning rate")
    lr_by_student: dict[str, Positive] = Field(
        default_factory=dict, description="learning rate of named students, where the protocol's source sets it"
    )
    momentum: Fraction = Field(0.9, description="momentum of sgd")
    nesterov: bool = Field(False, description="Nesterov momentum of sgd")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="betas of adamw and adam")
    weight_decay: NonNegative = Field(description="weight decay, on all parameters")


class Schedule(Section):
    """Length of the training and the learning rate per epoch."""

    name: Literal["cosine", "step", "constant", "onecycle", "cosine_warm_restarts", "reduce_on_plateau"] = Field(
        "cosine", description="shape of the learning rate; 'step' is also known as multistep"
    )
    epochs: int = Field(ge=1, le=10_000, description="epochs of the student; its last one is scored")
    warmup_epochs: int = Field(0, ge=0, description="linear warm-up: lr * (epoch + 1) / warmup_epochs")
    min_lr: NonNegative = Field(0.0, description="where cosine and each restart's cosine end; least rate on a plateau")
    milestones: tuple[int, ...] = Field((), description="0-based epochs at which 'step' multiplies by gamma")
    gamma: Fraction = Field(0.1, description="factor of 'step'")
    period: Annotated[int, ADDED] = Field(0, ge=0, description="epochs before the first of 'cosine_warm_restarts'")
    multiplier: Annotated[int, ADDED] = Field(1, ge=1, description="each period is so many times the one before")
    restart_factor: Annotated[float, ADDED] = Field(1.0, gt=0, le=1, description="factor of the rate at each restart")
    plateau_factor: Annotated[float, ADDED] = Field(0.5, gt=0, lt=1, description="factor of 'reduce_on_plateau'")
    plateau_patience: Annotated[int, ADDED] = Field(
        5, ge=0, description="epochs without a better validation accuracy that 'reduce_on_plateau' lets pass"
    )

    @model_validator(mode="after")
    def _has_a_period(self) -> Schedule:
        if self.name == "cosine_warm_restarts" and self.period < 1:
            raise ValueError("name cosine_warm_restarts needs a period of at least 1 epoch; set period")
        return self


class Data(Section):
    """Batches, validation split, augmentation and input mixing."""

    batch_size: int = Field(ge=1, description="images per optimizer step, over all devices")
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="share of each class cut from train; same images for every method and seed"
    )
    crop_padding: int = Field(4, ge=0, description="random crop: pixels of padding at 32x32, scaled with the image")
    padding_mode: Literal["zeros", "reflect"] = Field("zeros", description="what the padding holds")
    mirror: bool = Field(True, description="horizontal flip with probability 1/2, where the dataset allows it")
    mixup_alpha: NonNegative = Field(0.0, description="Beta(a, a) of mixup; 0 = off")
    cutmix_alpha: NonNegative = Field(0.0, description="Beta(a, a) of cutmix; wins over mixup; 0 = off")


class Step(Section):
    """How one optimizer step is computed."""

    precision: Precision = Field("fp32", description="autocast type of the networks")
    teacher_precision: Annotated[Precision | None, ADDED] = Field(
        None, description="autocast type of the shared teachers; null = precision"
    )
    channels_last: bool = Field(True, description="channels-last memory format where the backbone profits")
    grad_clip_norm: NonNegative = Field(0.0, description="clip the gradient's total norm; 0 = off")
    accumulate: int = Field(1, ge=1, description="split each batch into this many backward passes")
    ema_decay: Fraction = Field(0.0, description="decay of the moving average of the weights that is scored; 0 = off")
    checkpointing: Annotated[bool, ADDED] = Field(
        False, description="compute activations again in the backward pass instead of keeping them: less memory"
    )
    compile: Annotated[bool, ADDED] = Field(
        False, description="student and shared teachers compiled in training steps; may end in other last bits"
    )
    teacher_cache: Annotated[Literal["exact", "half"], ADDED] = Field(
        "exact",
        description="how outputs of teachers may be kept: 'exact' = float32, where it gives the bits of live teachers; "
        "'half' = float16, everywhere, and what teachers say live is rounded, too",
    )
    batch_norm: Annotated[Literal["sync", "local"], ADDED] = Field(
        "sync",
        description="BatchNorm of runs on several devices: 'sync' = statistics of the whole batch, as on one device; "
        "'local' = each device's own, of fewer images",
    )
    safe_retry: Annotated[bool, ADDED] = Field(
        False,
        description="start a run once more, in fp32 without cuDNN, after a non-finite loss or a device error",
    )

    @model_validator(mode="after")
    def _compiled_or_checkpointed(self) -> Step:
        if self.compile and self.checkpointing:
            raise ValueError(
                "compile and checkpointing both decide what the backward pass computes again; set one of them to false"
            )
        return self


class Freezing(Section):
    """Partial freezing of the student; a method option of the same name must agree or be declared."""

    use_partial_freeze: bool = Field(False, description="whether parts of the student may be frozen")
    student_freeze_bn: bool = Field(False, description="whether the student's BatchNorm may be frozen")


class Evaluation(Section):
    """When and how the test split is read. The score is always that of the last epoch."""

    every: int = Field(1, ge=1, description="evaluate after every n-th epoch; the last five always")
    batch_size: int = Field(500, ge=1, description="images per forward pass")


class Stopping(Section):
    """Early stopping of a teacher; the best validation epoch's weights are kept. No student is stopped."""

    patience: Annotated[int, ADDED] = Field(0, ge=0, description="epochs without improvement that end it; 0 = off")
    min_delta: Annotated[NonNegative, ADDED] = Field(
        0.0, description="points of validation accuracy by which an improvement must exceed the best one before"
    )


class Anchor(Section):
    """A named, versioned protocol. Two runs are comparable only if their anchors have the same hash."""

    name: Name
    version: int = Field(1, ge=1)
    description: str = ""
    lineage: tuple[str, ...] = Field((), description="names of the anchors this one extends, nearest first")
    strict_mode: bool = Field(True, description="refuse other values for locked keys in anchors that extend this one")
    auto_renorm: bool = Field(False, description="divide ce_alpha and kd_alpha by their sum instead of refusing")
    locked: tuple[str, ...] = Field((), description="dotted keys that nothing may change")
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    data: Data
    step: Step
    freezing: Freezing = Freezing()
    evaluation: Evaluation = Evaluation()
    stopping: Annotated[Stopping, ADDED] = Stopping()
    pretrained: Annotated[bool, ADDED] = Field(
        False, description="start from the backbone's pretrained weights; for teachers only"
    )

    @model_validator(mode="before")
    @classmethod
    def _renormalise(cls, data: object) -> object:
        """Scale the two alphas to sum 1 where the file asks for it; strict_mode then has to be off."""
        loss = data.get("loss") if isinstance(data, dict) else None
        if isinstance(data, dict) and isinstance(loss, dict) and data.get("auto_renorm"):
            if data.get("strict_mode", True):
                raise ValueError("auto_renorm: true needs strict_mode: false")
            try:
                ce, kd = float(loss["ce_alpha"]), float(loss["kd_alpha"])
            except (KeyError, TypeError, ValueError):
                return data  # the fields say what is wrong with them
            shares = (ce / (ce + kd), kd / (ce + kd)) if ce + kd > 0 else (0.5, 0.5)
            return {**data, "loss": {**loss, "ce_alpha": shares[0], "kd_alpha": shares[1]}}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Anchor:
        total = self.loss.ce_alpha + self.loss.kd_alpha
        if abs(total - 1) > 1e-8:
            raise ValueError(
                f"loss.ce_alpha {self.loss.ce_alpha:g} + loss.kd_alpha {self.loss.kd_alpha:g} is {total:g}; the sum "
                "must be 1 (or set auto_renorm: true with strict_mode: false)"
            )
        known = self.keys() if self.locked else {}  # once: every spec that is read comes by here
        if bad := [key for key in self.locked if key not in known]:
            raise ValueError(f"locked: '{bad[0]}' is not a key of an anchor")
        if self.optimizer.name != "sgd" and self.optimizer.nesterov:
            raise ValueError("optimizer.nesterov belongs to sgd")
        if self.data.batch_size % self.step.accumulate:
            raise ValueError(
                f"step.accumulate {self.step.accumulate} must divide data.batch_size {self.data.batch_size}"
            )
        self._validated_where_it_must_be()
        return self

    def _validated_where_it_must_be(self) -> None:
        needs = [
            *(["schedule.name reduce_on_plateau"] if self.schedule.name == "reduce_on_plateau" else []),
            *(["stopping.patience"] if self.stopping.patience else []),
        ]
        if needs and not self.data.validation_fraction:
            raise ValueError(
                f"{needs[0]} goes by the validation accuracy, but data.validation_fraction is 0; set it, e.g. to 0.1"
            )

    def keys(self) -> dict[str, object]:
        """Return every protocol value under its dotted key, e.g. ``loss.tau``."""
        return dict(_flatten(self.model_dump(exclude={"name", "version", "description", "lineage", "locked"})))

    @property
    def family(self) -> str:
        """Name of the protocol this one descends from: the root of its lineage, or its own name."""
        return self.lineage[-1] if self.lineage else self.name

    @property
    def label(self) -> str:
        """``name-vN``, as it stands in paths and tables."""
        return f"{self.name}-v{self.version}"

    @property
    def sha256(self) -> str:
        """Hash of everything that can change a result (all but the description)."""
        return canonical_sha256(self.hashed({"description": True}))

    def learning_rate_of(self, student: str) -> float:
        """Return the initial learning rate for a student backbone."""
        return self.optimizer.lr_by_student.get(student, self.optimizer.lr)


def _flatten(tree: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict) and key not in WHOLE:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def canonical_json(value: object) -> str:
    """Return the JSON of a value with sorted keys, without spaces, in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_sha256(value: object) -> str:
    """Return the sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
