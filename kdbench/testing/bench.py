"""The workbench of the kit: tiny real networks, and steps taken in the order and with the seeds of the trainer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import registry
from kdbench.backbones.base import Backbone, Network
from kdbench.config.loading import load_anchor
from kdbench.config.schema import Anchor
from kdbench.errors import FAULTS, Unsupported
from kdbench.method import AnyMethod, Batch, Interlude, Losses, Mix, Options, Phase, Setup, Viewed, total, trainable
from kdbench.modes import evaluating
from kdbench.options import apply_deviations, deviations_of
from kdbench.schedule import loss_protocol
from kdbench.seeds import stream
from kdbench.testing.failure import CheckFailure
from kdbench.training.optimizer import Optimizers, set_rate
from kdbench.types import Context, Features, NetworkInfo, Pair, PairInfo, StageShape

CLASSES, BATCH, TRAIN_SIZE, EPOCHS, SIZE = 5, 8, 32, 4, 16
VALIDATION_SIZE = 2 * BATCH
STEPS = TRAIN_SIZE // BATCH  # per epoch
RATE = 0.05
ANCHOR = "fair_baseline"
PAIR = Pair("kit", "resnet8_w4", ("resnet14_w8",), "digits", "tiny networks for the conformance kit")
# For methods that one teacher is not enough for.
TWO_TEACHERS = Pair("kit_two", "resnet8_w4", ("resnet14_w8", "resnet8_w4"), "digits", "the same with two teachers")


@cache
def known() -> registry.Registry:
    """Return everything registered in this process, loaded once."""
    return registry.load()


@cache
def shipped_anchor(name: str) -> Anchor:
    """Return an anchor that comes with kdbench."""
    return load_anchor(name, known().anchors.as_mapping())


@dataclass(frozen=True)
class Place:
    """Where in a run a step stands: index of its phase, and 0-based step in that phase."""

    phase: int
    step: int


class Bench:
    """A method class on a pair of tiny networks.

    Args:
        method_type: The method to check.
        pair: Backbones of student and teachers; None = one teacher, or two if the method declines one.
        validation: Images of the validation split, whole batches; 0 = there is none.

    Raises:
        ConfigError: If a backbone is not registered.
    """

    def __init__(
        self, method_type: type[AnyMethod], pair: Pair | None = None, validation: int = VALIDATION_SIZE
    ) -> None:
        self.method_type, self.pair, self.validation = method_type, pair or pair_for(method_type), validation
        self.student_backbone = known().backbones[self.pair.student]
        size = _fitting_size([self.student_backbone, *(known().backbones[name] for name in self.pair.teachers)])
        self.image = StageShape((3, size, size))
        self.labels = torch.arange(TRAIN_SIZE) % CLASSES

    def __str__(self) -> str:
        return f"method '{getattr(self.method_type, 'name', self.method_type.__name__)}'"

    @cached_property
    def info(self) -> PairInfo:
        """Shapes of the networks, as ``supports`` sees them."""
        student, *teachers = (_info(name, self.image) for name in (self.pair.student, *self.pair.teachers))
        return PairInfo(self.pair.name, student, tuple(teachers), self.image)

    @cached_property
    def context(self) -> Context:
        """What the method may know when it is built."""
        return Context(self.info, TRAIN_SIZE, EPOCHS, STEPS, BATCH, seed=0, validation_size=self.validation)

    @cached_property
    def options(self) -> Options:
        """The method's options under the kit's protocol."""
        recommended = self.method_type.recommended(ANCHOR, self.pair)
        return self.method_type.options_type.model_validate(dict(recommended))

    @cached_property
    def anchor(self) -> Anchor:
        """The protocol, with the method's declared deviations."""
        anchor = shipped_anchor(ANCHOR)
        return apply_deviations(anchor, deviations_of(self.method_type, anchor, self.options))

    @property
    def teachers(self) -> tuple[Network, ...]:
        """Frozen teachers in eval mode."""
        return tuple(_teacher(name, index) for index, name in enumerate(self.pair.teachers))

    def build(self) -> AnyMethod:
        """Return the method as the trainer builds it."""
        torch.manual_seed(stream(0, "method"))
        return self.method_type(self.options, self.context)

    def start(self) -> Run:
        """Return a run before its first step."""
        return Run(self)


def pair_for(method_type: type[AnyMethod]) -> Pair:
    """Return the pair that a method is tried on unless another one is named: the first it does not decline."""
    for pair in (PAIR, TWO_TEACHERS):
        bench = Bench(method_type, pair)
        try:
            with torch.random.fork_rng(devices=[]):
                if method_type.supports(bench.info) is None and bench.build():
                    return pair
        except Unsupported:
            continue
        except FAULTS:  # whatever else is wrong with it is for a check to say
            break
    return PAIR


class Run:
    """One student in training."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.student = _seeded(bench.student_backbone, "student").train()
        self.method = bench.build().train()
        self.method.prepare(Setup(bench.labels.clone(), bench.teachers if self.method.uses_teacher else ()))
        self.phases: tuple[Phase, ...] = self.method.phases()
        self._trained = [*trainable(self.student), *trainable(self.method)]
        self._optimizers = Optimizers(bench.anchor.optimizer, trainable(self.student))

    def batch(self, place: Place, *, mixed: bool = False) -> Batch:
        """Return what the trainer would hand to the method's losses at that place."""
        bench = self.bench
        draws = torch.Generator().manual_seed(place.step)
        images = torch.rand(BATCH, *bench.image.dims, generator=draws)
        index = torch.randperm(TRAIN_SIZE, generator=draws)[:BATCH]
        labels, mix = bench.labels[index], None
        if mixed and self.phases[place.phase].mixes:
            partners = torch.randperm(BATCH, generator=draws)
            images, mix = torch.lerp(images[partners], images, 0.7), Mix(labels[partners], 0.7)
        epochs, epoch = self.epochs(place), place.step // STEPS
        turned = [view.turned(images) for view in self.method.views]
        torch.manual_seed(stream(0, "dropout", place.phase, place.step))
        student, *viewed = self._student(place, [images, *turned])
        taught = self._teach if self.phases[place.phase].teachers else _untaught
        main = (self._student_epoch(place), EPOCHS) if self.phases[place.phase].is_main else None
        return Batch(
            images=images,
            labels=labels,
            index=index,
            student=student,
            teachers=taught(images),
            protocol=loss_protocol(bench.anchor, bench.method_type, epoch, epochs, bench.pair.teachers, main),
            epoch=epoch,
            progress=place.step / STEPS / epochs,
            mix=mix,
            views=tuple(Viewed(x, f, taught(x)) for x, f in zip(turned, viewed, strict=True)),
        )

    def _student(self, place: Place, inputs: Sequence[Tensor]) -> list[Features]:
        """Return the student's features of the images and of each view, from one forward pass."""
        if not self.phases[place.phase].runs_student:
            return [Features(torch.empty(BATCH, 0))] * len(inputs)
        trained = self.phases[place.phase].student == "train"
        if torch.is_grad_enabled():
            self.student.train(trained)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            taps = self.method.taps.student.resolve(self.student.stage_count)
            features = self.student(torch.cat(list(inputs)), taps)
        return [features.rows(slice(i * BATCH, (i + 1) * BATCH)) for i in range(len(inputs))]

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[Features, ...]:
        if not self.method.uses_teacher:
            return ()
        taught = []
        for index, teacher in enumerate(self.bench.teachers):
            taps = self.method.taps.of_teacher(index)
            everything = teacher(images, replace(taps, stages="all"))
            taught.append(everything.narrow(taps.resolve(teacher.stage_count)))
        return tuple(taught)

    def losses(self, place: Place, batch: Batch) -> Losses:
        """Return the terms of the phase."""
        return (self.phases[place.phase].losses or self.method.losses)(batch)

    def parameters(self, place: Place) -> list[nn.Parameter]:
        """Return what the phase trains."""
        return [parameter for group in self.optimizer(place).param_groups for parameter in group["params"]]

    def step(self, place: Place) -> None:
        """Do one optimizer step, and what comes before a phase and after an epoch."""
        if place.step == 0:
            self.before(place)
        self.train(place)
        if (place.step + 1) % STEPS == 0:
            self.after(place)

    def train(self, place: Place) -> None:
        """Do one optimizer step alone."""
        optimizer = self.optimizer(place)
        optimizer.zero_grad()
        batch = self.batch(place)
        total(self.losses(place, batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            self.method.after_step(batch)

    def before(self, place: Place) -> None:
        """Let the method begin the phase of a step."""
        with torch.no_grad(), evaluating(self.student, self.method):
            self.method.before_phase(self._interlude(place, 0, 0, {}))

    def after(self, place: Place) -> object:
        """Let the method end the epoch of a step, and return what it reports."""
        epoch = place.step // STEPS
        with torch.no_grad(), evaluating(self.student, self.method):
            return self.method.after_epoch(self._interlude(place, epoch, epoch + 1, {"total": 1.0}))

    def _interlude(self, place: Place, epoch: int, done: int, means: dict[str, float]) -> Interlude:
        phase, parts = self.phases[place.phase], self.bench.context.validation_size // BATCH
        accuracy = 50.0 if phase.is_main and done and parts else None
        share = done / self.epochs(place)

        def look(first: int | None) -> Iterator[Batch]:
            for number in range(parts)[:first]:
                yield replace(self.batch(Place(place.phase, number)), epoch=epoch, progress=share, views=())

        return Interlude(phase, done, self.student, look, means, accuracy)

    def _student_epoch(self, place: Place) -> int:
        before = sum(phase.epochs or 0 for phase in self.phases[: place.phase] if phase.is_main)
        return before + place.step // STEPS

    def optimizer(self, place: Place) -> torch.optim.Optimizer:
        """Return the optimizer of the phase, a new one when the phase starts unless it goes on with another.

        Raises:
            ValueError: If the phase may not train what it does.
        """
        optimizer = self._optimizers.of(self.phases[place.phase], self._trained, RATE)
        set_rate(optimizer, RATE)
        return optimizer

    def schedule(self) -> list[Place]:
        """Return the steps of a short run: first and last of an epoch in each phase, and one more in the main one."""
        steps = [(0, STEPS - 1, STEPS) if self.epochs(place) > 1 else (0, 1, STEPS - 1) for place in self.places()]
        return [
            Place(i, step)
            for i, phase in enumerate(self.phases)
            for step in (steps[i] if phase.is_main else (0, STEPS - 1))
        ]

    def places(self) -> list[Place]:
        """Return the first step of each phase."""
        return [Place(i, 0) for i in range(len(self.phases))]

    def epochs(self, place: Place) -> int:
        """Return the number of epochs of the phase, at least one."""
        own = self.phases[place.phase].epochs
        return EPOCHS if own is None else max(own, 1)

    def last(self, place: Place) -> Place:
        """Return the last step of the phase."""
        return Place(place.phase, self.epochs(place) * STEPS - 1)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, after a round trip through a file.

        Raises:
            CheckFailure: If the state does not survive it.
        """
        state = {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizers": self._optimizers.state(),
        }
        file = io.BytesIO()
        try:
            torch.save(state, file)
            file.seek(0)
            loaded: dict[str, Any] = torch.load(file, weights_only=True)
        except FAULTS as error:
            raise CheckFailure(
                f"{self.bench}: its state_dict() cannot be read back from a checkpoint: {_first_line(error)}. A state "
                "holds tensors, numbers, text, lists and dicts only; keep the rest out of get_extra_state()"
            ) from error
        return loaded

    def load(self, state: dict[str, Any], place: Place) -> None:
        """Continue after ``place``.

        Raises:
            CheckFailure: If a fresh method does not take the state.
        """
        self.student.load_state_dict(state["student"])
        try:
            self.method.load_state_dict(state["method"])
        except FAULTS as error:
            raise CheckFailure(
                f"{self.bench}: a fresh object does not load the state of an interrupted run: {_first_line(error)}. "
                "Make every buffer in __init__, in its final shape"
            ) from error
        self._optimizers.load(state["optimizers"], self.phases, place.phase, self._trained)


@cache
def _info(name: str, image: StageShape) -> NetworkInfo:
    return known().backbones[name].info(CLASSES, image)


@cache
def _teacher(name: str, index: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        network = _seeded(known().backbones[name], f"teacher{index}")
    return network.eval().requires_grad_(requires_grad=False)


def _seeded(backbone: Backbone, name: str) -> Network:
    torch.manual_seed(stream(0, "init", name))
    return backbone.build(CLASSES, StageShape((3, 32, 32)))


def _fitting_size(backbones: Iterable[Backbone]) -> int:
    """Return the smallest image size from 16 pixels on that all backbones take."""
    size = SIZE
    while any(backbone.unfit(StageShape((3, size, size))) for backbone in backbones):
        size += 1
    return size


def equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors agree in every entry; NaN, a common mark of what is not set yet, equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124 (only NaN differs from itself)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"


def _untaught(_images: Tensor) -> tuple[Features, ...]:
    return ()
