"""The data of a cohort: training and validation split in memory, the test set behind its evaluator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdbench.config.schema import Data, Evaluation
from kdbench.datasets.base import DatasetInfo, Source, Split
from kdbench.datasets.splits import channel_statistics, cut_validation, per_class_subset
from kdbench.errors import ConfigError
from kdbench.evaluation import TestSet
from kdbench.spec import DatasetRef


@dataclass(frozen=True)
class CohortData:
    """What lanes of one cohort are trained and evaluated on.

    Args:
        info: The dataset's description.
        train: Training images, without the validation split.
        validation: Validation images, or None.
        test: The test set.
        mean, std: Normalisation of networks trained here: published constants, or measured on the training images.
    """

    info: DatasetInfo
    train: Split
    validation: Split | None
    test: TestSet
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_data(
    source: Source, reference: DatasetRef, data: Data, evaluation: Evaluation, device: torch.device
) -> CohortData:
    """Read a dataset and cut its splits.

    Raises:
        ConfigError: If it is not the dataset the spec names, or an image or label is wrong.
    """
    info = source.info
    if info.fingerprint != reference.fingerprint:
        raise ConfigError(
            f"dataset '{reference.name}': its content changed since the run was planned (fingerprint "
            f"{info.fingerprint[:12]}, planned {reference.fingerprint[:12]}); restore it or plan into another --out"
        )
    train = source.train()
    if reference.per_class is not None:
        train = per_class_subset(train, reference.per_class, info.classes)
    mean, std = info.normalisation or channel_statistics(train)
    rest, validation = cut_validation(train, data.validation_fraction, info.classes)
    return CohortData(info, rest, validation, TestSet(source, device, evaluation.batch_size), mean, std)
