"""The values that travel between networks, methods and the trainer: all frozen, none knows a method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Stages = Literal["all"] | tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """Where a method, backbone or number comes from.

    Args:
        title: Title of the paper.
        year: Year of publication.
        url: Link to the paper.
        code: ``owner/repository@commit`` of the reference the implementation follows, if any.
        deviations: How the implementation differs from the paper, in one sentence; empty if it does not.
    """

    title: str
    year: int
    url: str
    code: str = ""
    deviations: str = ""


@dataclass(frozen=True)
class StageShape:
    """Shape of one stage's output without the batch axis: a map (C,H,W) or tokens (T,D)."""

    dims: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Number of channels C of a map, or width D of a token."""
        return self.dims[0] if self.is_map else self.dims[1]

    @property
    def height(self) -> int:
        """Height of a map in pixels; 1 for tokens."""
        return self.dims[1] if self.is_map else 1

    @property
    def width(self) -> int:
        """Width of a map in pixels; the number of tokens otherwise."""
        return self.dims[2] if self.is_map else self.dims[0]

    @property
    def is_map(self) -> bool:
        """Whether the stage is a feature map (else a sequence of tokens)."""
        return len(self.dims) == 3

    def __str__(self) -> str:
        return "x".join(map(str, self.dims))


@dataclass(frozen=True)
class Taps:
    """What a method needs from a network besides the logits; a network returns only what is asked for.

    Args:
        stages: Stage indices, 0 = stem, negative counts from the deepest; or ``"all"``.
        pre_activation: The same stages before their last activation, too.
        embedding: The pooled penultimate vector.
    """

    stages: Stages = ()
    pre_activation: bool = False
    embedding: bool = False

    def resolve(self, count: int) -> Taps:
        """Return the same taps with stage indices in 0..count-1, shallow to deep like the outputs, each once.

        Raises:
            IndexError: If a stage does not exist.
        """
        wanted = range(count) if self.stages == "all" else self.stages
        resolved = tuple(sorted({index + count if index < 0 else index for index in wanted}))
        if bad := [index for index in resolved if not 0 <= index < count]:
            raise IndexError(f"stage {bad[0]} does not exist: the network has stages 0..{count - 1}")
        return replace(self, stages=resolved)

    def __or__(self, other: Taps) -> Taps:
        """Return the union; both sides must be resolved unless one asks for all stages."""
        stages: Stages = "all"
        if self.stages != "all" and other.stages != "all":
            stages = tuple(sorted({*self.stages, *other.stages}))
        return Taps(stages, self.pre_activation or other.pre_activation, self.embedding or other.embedding)


@dataclass(frozen=True)
class Features:
    """What a network says about a batch of N images.

    Args:
        logits: (N, C), before softmax.
        embedding: (N, D), pooled penultimate vector, input of the head; ``None`` unless tapped.
        stages: Tapped stage outputs, shallow to deep, (N, C, H, W) or (N, T, D), after activation.
        pre_stages: The same stages before activation; empty unless tapped.
        indices: Stage index of each entry of ``stages``.
    """

    logits: Tensor
    embedding: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    pre_stages: tuple[Tensor, ...] = ()
    indices: tuple[int, ...] = ()

    def tensors(self) -> list[Tensor]:
        """Return all tensors there are."""
        there = [self.logits] if self.embedding is None else [self.logits, self.embedding]
        return [*there, *self.stages, *self.pre_stages]

    def rows(self, part: slice) -> Features:
        """Return the features of some of the images."""
        return Features(
            self.logits[part],
            None if self.embedding is None else self.embedding[part],
            tuple(stage[part] for stage in self.stages),
            tuple(stage[part] for stage in self.pre_stages),
            self.indices,
        )

    def narrow(self, taps: Taps) -> Features:
        """Return only what resolved ``taps`` ask for, in their order."""
        at = {index: place for place, index in enumerate(self.indices)}
        order = self.indices if taps.stages == "all" else taps.stages
        pre = tuple(self.pre_stages[at[i]] for i in order) if taps.pre_activation else ()
        stages = tuple(self.stages[at[i]] for i in order)
        return Features(self.logits, self.embedding if taps.embedding else None, stages, pre, tuple(order))


@dataclass(frozen=True)
class NetworkInfo:
    """What is known of a network from a dry run, before any weights are loaded.

    Args:
        name: Backbone name.
        stages: Stage shapes, shallow to deep, stem first.
        embedding: Width D of the penultimate vector.
        classes: Number of classes of its head.
        parameters: Trainable scalars.
        pretrained: Whether students of this backbone start with published weights.
    """

    name: str
    stages: tuple[StageShape, ...]
    embedding: int
    classes: int
    parameters: int
    pretrained: bool = False


@dataclass(frozen=True)
class PairInfo:
    """The networks of a pair as ``Method.supports`` sees them, from dry runs."""

    name: str
    student: NetworkInfo
    teachers: tuple[NetworkInfo, ...]
    image: StageShape


@dataclass(frozen=True)
class Context:
    """Everything a method may know when it is built; it holds no data and no weights.

    Args:
        pair: Shapes of student and teachers.
        train_size: Number of training images.
        epochs: Epochs of the main phase.
        steps_per_epoch: Optimizer steps per epoch.
        batch_size: Images per forward pass: the anchor's batch size, or the smallest part of it when it accumulates.
        seed: Seed of the run; ``kdbench.stream(seed, "method")`` keys the method's own random draws.
        validation_size: Number of validation images, 0 without a split.
        freezing: Whether the anchor lets methods freeze parts of the student.
    """

    pair: PairInfo
    train_size: int
    epochs: int
    steps_per_epoch: int
    batch_size: int
    seed: int
    validation_size: int = 0
    freezing: bool = False

    def epochs_for(self, share: float) -> int:
        """Return the length of an extra phase as a share of the main one's epochs: at least one, or none for 0."""
        return max(1, round(share * self.epochs)) if share > 0 else 0

    @property
    def student(self) -> NetworkInfo:
        """Shapes of the student."""
        return self.pair.student

    @property
    def teachers(self) -> tuple[NetworkInfo, ...]:
        """Shapes of the teachers."""
        return self.pair.teachers


@dataclass(frozen=True)
class Term:
    """One part of a loss: ``value`` is the raw scalar, the trainer adds ``weight * value``.

    A weight that depends on the batch is a tensor without gradient, so that nothing waits for the device.
    """

    value: Tensor
    weight: float | Tensor = 1.0


@dataclass(frozen=True)
class Deviation:
    """A key of the anchor that a method changes; declared, shown beside its row, and it opens the division.

    Args:
        key: Dotted anchor key, e.g. ``loss.tau``.
        value: The value the method uses instead.
        reason: Why, in one sentence.
    """

    key: str
    value: object
    reason: str


@dataclass(frozen=True)
class LossWeights:
    """Published weights of the supervised and the logit-KD term, used by anchors with ``loss.weights: published``."""

    ce: float
    kd: float


@dataclass(frozen=True)
class Pair:
    """A student and its teachers, with the dataset they are usually trained on.

    Args:
        name: Registered name.
        student: Backbone of the student.
        teachers: Backbones of the teachers.
        dataset: Dataset used unless the command names another.
        description: One line for ``kdbench list pairs``.
        overlap_pct: Percentage of the classes that two teachers have in common; None = both know all of them.
        overlap_seed: Seed of the split of the classes.
    """

    name: str
    student: str
    teachers: tuple[str, ...]
    dataset: str
    description: str = ""
    overlap_pct: int | None = None
    overlap_seed: int = 42
