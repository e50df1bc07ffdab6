"""From the name of a dataset to an opened one: what runs of a pair, and its teachers, are trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kdbench.datasets.base import Dataset, DatasetInfo, Source
from kdbench.datasets.overlap import student_name, teacher_names
from kdbench.datasets.splits import cut_of
from kdbench.errors import ConfigError, unknown
from kdbench.registry import Registry
from kdbench.spec import DatasetRef
from kdbench.types import Pair


@dataclass(frozen=True)
class Opened:
    """A dataset, described but not read.

    Args:
        reference: How specs name it.
        info: Its description.
        teachers: Datasets of the teachers, in their order; empty = the same one.
    """

    reference: DatasetRef
    info: DatasetInfo
    teachers: tuple[DatasetRef, ...] = ()

    def sizes(self, validation_fraction: float) -> tuple[int, int]:
        """Return the numbers of training and of validation images.

        Both are what a run will have if all classes have equally many images, as with ``per_class``; otherwise they are
        near.

        Raises:
            ConfigError: If the validation split would leave nothing to train on.
        """
        per_class, classes = self.reference.per_class, self.info.occurring
        whole = self.info.train_size if per_class is None else per_class * classes
        if whole % classes:
            return whole - (cut := round(whole * validation_fraction)), cut
        each = whole // classes
        if (cut := cut_of(each, validation_fraction)) >= each:
            remedy = "use one with more images" if per_class is None else "raise --per-class"
            raise ConfigError(
                f"dataset '{self.reference.name}': of {each} training image(s) of each class the protocol's validation "
                f"split (data.validation_fraction {validation_fraction:g}) takes {cut}; {remedy}"
            )
        return whole - cut * classes, cut * classes


def open_for(pair: Pair, name: str, per_class: int | None, registry: Registry, root: Path) -> Opened:
    """Return the dataset of a pair's student, with those of its teachers where they are others.

    Args:
        pair: Student and teachers.
        name: Dataset that the pair is trained on; teachers whose classes overlap only in part see parts of it.
        per_class: Training images kept per class; None = all.
        registry: Where datasets come from.
        root: Where they live.

    Raises:
        ConfigError: If one cannot be opened, or is too small for ``per_class``.
    """
    whole = open_whole(name, per_class, registry, root)
    pct, seed = pair.overlap_pct, pair.overlap_seed
    if pct is None or pct == 100:
        return whole
    parts = [open_whole(part, per_class, registry, root) for part in teacher_names(name, pct, seed)]
    own = student_name(name, pct, seed, len(whole.info.classes))
    student = whole if own == name else open_whole(own, per_class, registry, root)
    return replace(student, teachers=tuple(part.reference for part in parts))


def open_whole(name: str, per_class: int | None, registry: Registry, root: Path) -> Opened:
    """Return a dataset after checking that it has ``per_class`` images of each class.

    Raises:
        ConfigError: If not, or if it cannot be opened.
    """
    info = open_source(name, registry, root).info
    most = info.train_size // info.occurring
    if per_class is not None and not 1 <= per_class <= most:
        raise ConfigError(
            f"--per-class {per_class}: dataset '{name}' has {info.train_size} training images in "
            f"{info.occurring} classes, at most {most} each"
        )
    return Opened(dataset_ref(info, per_class), info)


def dataset_ref(info: DatasetInfo, per_class: int | None) -> DatasetRef:
    """Return how specs name a dataset."""
    return DatasetRef(name=info.name, slug=info.slug, fingerprint=info.fingerprint, per_class=per_class)


def open_source(name: str, registry: Registry, root: Path) -> Source:
    """Return the opened dataset of a name such as ``digits``, ``npz:PATH``, or ``overlap:50,42,1:digits``.

    Raises:
        ConfigError: If the name is unknown, lacks a path, or has one it does not take.
    """
    kind, colon, argument = name.partition(":")
    if kind not in registry.datasets:
        raise ConfigError(unknown("dataset", name, registry.datasets.as_mapping()))
    dataset = registry.datasets[kind]
    if dataset.wrap is not None:
        return _open_wrapped(name, dataset, registry, root)
    if dataset.takes_path and not argument:
        raise ConfigError(f"dataset '{name}': needs a path; write {kind}:PATH")
    if colon and not dataset.takes_path:
        raise ConfigError(f"dataset '{name}': '{kind}' takes no path; write {kind}")
    return dataset.open(argument, root)


def _open_wrapped(name: str, dataset: Dataset, registry: Registry, root: Path) -> Source:
    _, _, rest = name.partition(":")
    argument, _, inner = rest.partition(":")
    if dataset.wrap is None or not argument or not inner:
        raise ConfigError(f"dataset '{name}': is made from another dataset; write {dataset.form}")
    return dataset.wrap(argument, open_source(inner, registry, root))
