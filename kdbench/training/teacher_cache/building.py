"""Whether a cohort has a cache, and that cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdbench.artefacts import TeacherManifest
from kdbench.backbones.base import Network
from kdbench.config.schema import Anchor
from kdbench.spec import DatasetRef
from kdbench.training.environment import Machine
from kdbench.training.inputs import BatchStream
from kdbench.training.teacher_cache.applies import rounds, why_not
from kdbench.training.teacher_cache.cache import TeacherCache
from kdbench.training.teacher_cache.place import CachePlace
from kdbench.training.teacher_cache.subjects import subject_of
from kdbench.types import NetworkInfo


def cache_of(
    manifests: Sequence[TeacherManifest],
    networks: Sequence[tuple[Network, NetworkInfo]],
    batches: BatchStream,
    dataset: DatasetRef,
    anchor: Anchor,
    machine: Machine,
    place: CachePlace | None,
) -> TeacherCache | None:
    """Return the cache of some teachers, or None where it would change nothing.

    Args:
        manifests: Artefacts of the teachers.
        networks: The same as networks, with their shapes.
        batches: The batch stream they are asked about.
        dataset: What it is made of.
        anchor: The protocol.
        machine: Where they run.
        place: Where it is kept; None = nowhere.
    """
    kept = place is not None and why_not(anchor, machine.device.type) is None
    if not manifests or not (kept or rounds(anchor)):
        return None
    subjects = [
        subject_of(
            manifest, info, batches, dataset, anchor.data, channels_last=network.memory_format is torch.channels_last
        )
        for manifest, (network, info) in zip(manifests, networks, strict=True)
    ]
    return TeacherCache(batches, subjects, anchor, machine, place)
