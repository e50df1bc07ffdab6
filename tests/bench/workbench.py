"""What the benchmarks share: networks of a pair, random images, steps of the real trainer, and interleaved timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from kdbench.backbones.base import Network
from kdbench.config.schema import Anchor
from kdbench.datasets.base import Source, Split
from kdbench.evaluation import TestSet
from kdbench.method import AnyMethod, Options, Setup
from kdbench.options import parse_setting, resolve_options
from kdbench.registry import Registry
from kdbench.spec import DatasetRef, PluginRef, RunSpec
from kdbench.training.inputs import BatchStream
from kdbench.training.lane import Lane
from kdbench.training.meters import Position
from kdbench.training.trainer import Observer, Trainer
from kdbench.types import Context, Pair, PairInfo, StageShape

CPU = torch.device("cpu")
IMAGE = StageShape((3, 32, 32))
CLASSES = 100


def random_split(size: int) -> Split:
    """Return random images with labels."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, *IMAGE.dims), dtype=torch.uint8, generator=draws)
    return Split(images, torch.randint(0, CLASSES, (size,), generator=draws))


class NoTest(Source):
    """A dataset without test images; nothing is evaluated here."""

    def test(self) -> Split:
        return random_split(1)


def network(registry: Registry, name: str) -> Network:
    """Return a network with random weights."""
    torch.manual_seed(0)
    built = registry.backbones[name].build(CLASSES, StageShape((3, 32, 32)))
    built.set_normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    built.place(CPU, channels_last=registry.backbones[name].channels_last)
    return built


@dataclass(frozen=True)
class Row:
    """A row of a board: a method, and what is set of its options, each ``OPTION=VALUE``."""

    method: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """What all rows of a board share: plugins, protocol, pair, images and teacher."""

    registry: Registry
    anchor: Anchor
    pair: Pair
    split: Split
    teacher: Network

    def context(self, seed: int = 0) -> Context:
        """Return what methods may know of it."""
        pair, size = self.pair, self.anchor.data.batch_size
        infos = [self.registry.backbones[name].info(CLASSES, IMAGE) for name in (pair.student, *pair.teachers)]
        shapes = PairInfo(pair.name, infos[0], tuple(infos[1:]), IMAGE)
        steps = len(self.split) // size
        return Context(shapes, len(self.split), self.anchor.schedule.epochs, steps, size, seed)

    def options(self, row: Row) -> Options:
        """Return a row's options under the protocol."""
        settings = [parse_setting(f"{row.method}.{setting}") for setting in row.settings]
        return resolve_options(self.registry.methods[row.method], self.anchor, self.pair, settings)


class Cohort:
    """Lanes of the real trainer in their main phase, which do as many steps as they are told.

    Args:
        place: What they share.
        rows: What each lane trains.
        seed: Of the batches and of every lane.

    Raises:
        Unsupported: If a method declines the pair.
    """

    def __init__(self, place: Place, rows: Sequence[Row], seed: int = 0) -> None:
        batches = BatchStream(place.split, place.anchor.data, seed, CPU, mirror=True)
        self.lanes = [_lane(place, row, seed) for row in rows]
        self._raise_failures(self.lanes)
        test, observer = TestSet(NoTest(), CPU, 1), Observer(save=lambda _lane: None)
        self.trainer = Trainer(self.lanes, batches, [place.teacher], None, test, observer)
        self.teach = self.trainer._teacher_pass(self.lanes)
        for lane in self.lanes:
            lane.start_epoch(self.trainer.onlooker)
        batches.start_epoch(0)

    def step(self, index: int, lanes: int | None = None) -> None:
        """Do a step of the epoch, 0-based, with the first lanes, by default with all."""
        group = self.lanes[:lanes]
        for lane in group:
            lane.position.step = index
        self.trainer._run_step(group, self.teach, index)
        self._raise_failures(group)

    @staticmethod
    def _raise_failures(lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            if lane.failure is not None:
                raise lane.failure


def _lane(place: Place, row: Row, seed: int) -> Lane:
    registry, pair = place.registry, place.pair
    method = registry.methods[row.method]
    spec = RunSpec(
        method=method.name, method_version=1, plugin=PluginRef(distribution="kdbench", version="0"),
        options=place.options(row).model_dump(mode="json"),
        pair=pair.name, student=pair.student, teachers=pair.teachers,
        dataset=DatasetRef(name="bench", slug="bench", fingerprint="0"), anchor=place.anchor, seed=seed,
    )  # fmt: skip
    setup = Setup(place.split.labels.clone(), (place.teacher,))
    lane = Lane(spec, method, network(registry, pair.student), place.context(seed), CPU, setup)
    main = next(index for index, phase in enumerate(lane.phases) if phase.is_main)
    if main:
        lane.position = Position(main)
        lane.optimizer = lane._phase_optimizer()
    return lane


def trainer_step(
    registry: Registry, anchor: Anchor, pair: Pair, split: Split, teacher: Network, method: type[AnyMethod]
) -> Callable[[int], None]:
    """Return a function that does one step of the trainer in a method's main phase.

    Raises:
        Unsupported: If the method declines the pair.
    """
    return Cohort(Place(registry, anchor, pair, split, teacher), [Row(method.name)]).step


def seconds(step: Callable[[int], None], steps: int) -> float:
    """Return the mean time of one of some steps."""
    started = time.perf_counter()
    for index in range(steps):
        step(index)
    return (time.perf_counter() - started) / steps


def interleaved(contenders: Mapping[str, tuple[Callable[[int], None], int]], rounds: int) -> dict[str, list[float]]:
    """Return each contender's seconds per step in each round, after one round that is not counted.

    Args:
        contenders: By name, a step and how many of them are timed in a round.
        rounds: How many; every other one goes backwards, so that a drift of the machine favours nobody.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name in contenders:
        seconds(*contenders[name])
    for number in range(rounds):
        for name in reversed(contenders) if number % 2 else contenders:
            times[name].append(seconds(*contenders[name]))
    return times


def ratios(times: Mapping[str, Sequence[float]], above: str, below: str) -> list[float]:
    """Return the ratio of two contenders in each round."""
    return [a / b for a, b in zip(times[above], times[below], strict=True)]
