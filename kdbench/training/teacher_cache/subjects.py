"""What files of the cache have to be told apart by: the teacher and the inputs it is asked about."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdbench import __version__
from kdbench.artefacts import TeacherManifest
from kdbench.config.schema import Data
from kdbench.spec import DatasetRef
from kdbench.training.environment import Machine
from kdbench.training.inputs import BatchStream
from kdbench.training.teacher_cache.key import Arithmetic, CacheKey, Kind, Part, Teaching
from kdbench.types import NetworkInfo


@dataclass(frozen=True)
class Subject:
    """A teacher as the cache knows it.

    Args:
        teaching: Who it is, and what it is asked about.
        batch: Images of a batch.
        widths: Numbers of an entry of each part.
        channels_last: Whether it is laid out so.
    """

    teaching: Teaching
    batch: int
    widths: dict[Part, int]
    channels_last: bool

    def key(self, part: Part, kind: Kind, precision: str, machine: Machine) -> CacheKey:
        """Return the key of a file."""
        here = machine.describe(precision)
        arithmetic = Arithmetic(
            precision=precision,
            batch=self.batch,
            channels_last=self.channels_last,
            device=here.device,
            machine=here.machine,
            threads=here.threads,
            cudnn=bool(torch.backends.cudnn.enabled),
            torch=here.torch,
            kdbench=__version__,
        )
        return CacheKey(teaching=self.teaching, arithmetic=arithmetic, part=part, width=self.widths[part], kind=kind)


def subject_of(
    manifest: TeacherManifest,
    info: NetworkInfo,
    batches: BatchStream,
    dataset: DatasetRef,
    data: Data,
    *,
    channels_last: bool,
) -> Subject:
    """Return a teacher as the cache knows it.

    Args:
        manifest: Its artefact.
        info: Its shapes.
        batches: The batch stream it is asked about.
        dataset: What the stream is made of.
        data: How.
        channels_last: Whether the teacher is laid out so.
    """
    teaching = Teaching(
        teacher=manifest.sha256,
        name=manifest.name,
        backbone=manifest.backbone,
        mean=manifest.mean,
        std=manifest.std,
        dataset=dataset,
        validation_fraction=data.validation_fraction,
        images=batches.size,
        crops=batches.crops.count,
        crop_padding=batches.padding,
        padding_mode=data.padding_mode,
    )
    return Subject(teaching, batches.batch_size, {"logits": info.classes, "embedding": info.embedding}, channels_last)
