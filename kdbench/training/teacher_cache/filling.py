"""Filling the cache in advance: every crop of every training image, once; what is there is not computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kdbench.artefacts import TeacherManifest
from kdbench.config.schema import Anchor
from kdbench.errors import ConfigError, StoreError
from kdbench.plan import network_info, open_source
from kdbench.spec import DatasetRef
from kdbench.training.cohort import Workplace, check_measured_on, teacher_network
from kdbench.training.data import load_data
from kdbench.training.inputs import BatchStream, Inputs
from kdbench.training.networks import TeacherPass
from kdbench.training.teacher_cache.applies import why_not
from kdbench.training.teacher_cache.building import cache_of
from kdbench.training.teacher_cache.memory import Memory
from kdbench.training.teacher_cache.shapes import Say
from kdbench.types import Taps


@dataclass(frozen=True)
class Filled:
    """What was done.

    Args:
        entries: Crops of training images.
        known: Of these the ones that were there before.
        size: Bytes of the files.
    """

    entries: int
    known: int
    size: int


def fill(
    manifest: TeacherManifest,
    dataset: DatasetRef,
    anchor: Anchor,
    workplace: Workplace,
    *,
    embedding: bool = False,
    done: Callable[[int, int], None] = lambda _done, _all: None,
) -> Filled:
    """Keep what a teacher says of every crop that runs of a protocol may ask about.

    Args:
        manifest: The teacher.
        dataset: What the runs are trained on; all of the teacher's images, or a subset.
        anchor: Their protocol.
        workplace: With what, and where it is kept.
        embedding: Whether embeddings are kept, too.
        done: Told, now and then, of how many crops it is done with, and of how many there are.

    Raises:
        ConfigError: If runs of the protocol would not use the cache here, or it has no room.
        StoreError: If the disk is full; what was kept remains, and the same call goes on.
    """
    device = workplace.machine.device
    if reason := why_not(anchor, device.type):
        raise ConfigError(f"anchor {anchor.name}: runs of it use no teacher cache here: {reason}")
    check_measured_on(manifest, dataset)
    source = open_source(dataset.name, workplace.registry, workplace.data_root)
    data = load_data(source, dataset, anchor.data, anchor.evaluation, device)
    network = teacher_network(manifest, data, workplace, layout=anchor.step.channels_last)
    batches = BatchStream(data.train, anchor.data, 0, device, mirror=data.info.mirror)
    info = network_info(manifest.backbone, len(manifest.classes), data.info.image, workplace.registry)
    taught_by = (network, info)
    cache = cache_of([manifest], [taught_by], batches, dataset, anchor, workplace.machine, workplace.cache)
    live = TeacherPass([network], [Taps(embedding=embedding)], anchor.step.precision, device)
    memory = cache.memory(live, 0, embedding=embedding) if cache else None
    if memory is None or not memory.files:
        raise ConfigError(f"teacher '{manifest.name}': its outputs cannot be kept here; the warning above says why")
    return _filled(memory, live.alone(0), batches, done)


def _filled(memory: Memory, say: Say, batches: BatchStream, done: Callable[[int, int], None]) -> Filled:
    total, size, known = batches.size * batches.crops.count, batches.batch_size, 0
    for start in range(0, total, size):
        first = min(start, total - size)  # the last batch is a whole one, too
        entries = torch.arange(first, first + size)
        index = (entries // batches.crops.count).to(batches.device)
        inputs = Inputs(batches.images_of(entries), batches.labels[index], index, None, entries)
        known += max(0, memory.of_batch(say, inputs).recalled - (start - first))
        for file in memory.files.values():
            if len(file.filled(entries.numpy())) < size:
                raise StoreError(f"{file.path}: cannot be written; free some space, and start the same command again")
        done(min(start + size, total), total)
    return Filled(total, known, sum(file.path.stat().st_size for file in memory.files.values()))
