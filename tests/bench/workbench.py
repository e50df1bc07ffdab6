"""What the benchmarks share: networks of a pair, random images, and one step of the real trainer."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kdbench.backbones.base import Network
from kdbench.config.schema import Anchor
from kdbench.datasets.base import Source, Split
from kdbench.evaluation import TestSet
from kdbench.method import AnyMethod, Setup
from kdbench.options import resolve_options
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
    built.place(CPU, channels_last=True)
    return built


def trainer_step(
    registry: Registry, anchor: Anchor, pair: Pair, split: Split, teacher: Network, method: type[AnyMethod]
) -> Callable[[int], None]:
    """Return a function that does one step of the trainer in a method's main phase.

    Raises:
        Unsupported: If the method declines the pair.
    """
    infos = [registry.backbones[name].info(CLASSES, IMAGE) for name in (pair.student, *pair.teachers)]
    batches = BatchStream(split, anchor.data, 0, CPU, mirror=True)
    shapes = PairInfo(pair.name, infos[0], tuple(infos[1:]), IMAGE)
    size = batches.batch_size
    context = Context(shapes, len(split), anchor.schedule.epochs, batches.steps, size, seed=0)
    spec = RunSpec(
        method=method.name, method_version=1, plugin=PluginRef(distribution="kdbench", version="0"),
        options=resolve_options(method, anchor, pair, ()).model_dump(mode="json"),
        pair=pair.name, student=pair.student, teachers=pair.teachers,
        dataset=DatasetRef(name="bench", slug="bench", fingerprint="0"), anchor=anchor, seed=0,
    )  # fmt: skip
    lane = Lane(spec, method, network(registry, pair.student), context, CPU, Setup(split.labels.clone(), (teacher,)))
    main = next(index for index, phase in enumerate(lane.phases) if phase.is_main)
    if lane.failure is None and main:
        lane.position = Position(main)
        lane.optimizer = lane._phase_optimizer()
    trainer = Trainer([lane], batches, [teacher], None, TestSet(NoTest(), CPU, 1), Observer(save=lambda _lane: None))
    teach = trainer._teacher_pass([lane])
    lane.start_epoch(trainer.onlooker)
    batches.start_epoch(0)

    def step(index: int) -> None:
        lane.position.step = index
        trainer._run_step([lane], teach, index)
        if lane.failure is not None:
            raise lane.failure

    return step


def seconds(step: Callable[[int], None], steps: int) -> float:
    """Return the mean time of one of some steps."""
    started = time.perf_counter()
    for index in range(steps):
        step(index)
    return (time.perf_counter() - started) / steps
