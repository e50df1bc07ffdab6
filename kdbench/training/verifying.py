"""Measuring a teacher's artefact again: all of it, or a quick look at some images."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.artefacts import TeacherManifest
from kdbench.errors import KdbenchError
from kdbench.evaluation import Predictions, TestSet
from kdbench.plan import open_source
from kdbench.training.cohort import Workplace
from kdbench.training.networks import load_teacher
from kdbench.training.precision import autocast


@dataclass(frozen=True)
class Check:
    """How to look at a teacher.

    Args:
        precision: Of the forward passes: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: Images per forward pass.
        max_batches: Batches to look at, from the first; None = all.
    """

    precision: str = "fp32"
    batch_size: int = 500
    max_batches: int | None = None


def verify_teacher(manifest: TeacherManifest, workplace: Workplace, check: Check = Check()) -> Predictions:
    """Check an artefact's files, run it on the test split, and return its predictions.

    A truncated look has fewer predictions than there are test images. Its accuracy is that of other images than the
    recorded one, so it is compared with nothing.

    Raises:
        KdbenchError: If a file is corrupt or the accuracy on the whole split is not the recorded one.
    """
    backbone, device = workplace.registry.backbones[manifest.backbone], workplace.machine.device
    source = open_source(manifest.dataset.name, workplace.registry, workplace.data_root)
    network = load_teacher(workplace.teachers, manifest, backbone, source.info.image)
    workplace.teachers.predicted(manifest)
    network.place(device, channels_last=backbone.channels_last)
    if source.info.fingerprint != manifest.dataset.fingerprint:
        raise KdbenchError(
            f"teacher '{manifest.name}': dataset '{manifest.dataset.name}' has changed since it was made (content "
            f"{source.info.fingerprint}, then {manifest.dataset.fingerprint}); bring the old data back, or make a new "
            "teacher"
        )
    test = TestSet(source, device, check.batch_size)
    first = len(test) if check.max_batches is None else min(len(test), check.max_batches * check.batch_size)
    with autocast(check.precision, device):
        predictions = test.predict(network, first)
    if first == len(test):
        _compare(manifest, predictions, check.precision)
    return predictions


def _compare(manifest: TeacherManifest, predictions: Predictions, precision: str) -> None:
    # Other devices and libraries may flip a handful of images whose two best logits are almost equal, and eight or
    # eleven bits of mantissa some more.
    share = 0.0005 if precision == "fp32" else 0.01
    tolerated = 100 * max(2, round(share * manifest.test_images)) / manifest.test_images
    if abs(predictions.accuracy - manifest.accuracy) > tolerated:
        how = "" if precision == "fp32" else f"; or {precision} is too coarse for it: try --precision fp32"
        raise KdbenchError(
            f"teacher '{manifest.name}': {predictions.accuracy:.2f} % on the test split, its manifest says "
            f"{manifest.accuracy:.2f} %; dataset or artefact changed{how}"
        )
