"""Importing foreign checkpoints: one network chosen of what a file holds, fitted to a backbone, measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from kdbench.artefacts import TeacherManifest, sha256_of
from kdbench.backbones.base import Backbone, Network
from kdbench.config.loading import read_yaml
from kdbench.config.schema import Name
from kdbench.datasets.base import DatasetInfo, Split
from kdbench.datasets.splits import channel_statistics
from kdbench.errors import ConfigError, ProblemList
from kdbench.evaluation import TestSet, evaluate
from kdbench.files import sweep_dead
from kdbench.plan import dataset_ref, open_source
from kdbench.training.cohort import Workplace
from kdbench.training.foreign import Contents, State, read_checkpoint, some
from kdbench.training.naming import ALIASES, claims, meant_by
from kdbench.training.networks import fit_state
from kdbench.training.teachers import write_artefact
from kdbench.types import StageShape

# Published input constants, (mean, std) per channel.
CONSTANTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_COUNTER = "num_batches_tracked"
_MODEL = "model."
_TRIED_IMAGES = 2000


@dataclass(frozen=True)
class Foreign:
    """A checkpoint somebody else saved, and what is known of it.

    Args:
        file: ``.safetensors``, or anything :func:`kdbench.training.foreign.read_checkpoint` reads.
        dataset: What it was trained for.
        backbone: What it fits, by our name or another program's; None = the only registered backbone that does.
        name: Name of the artefact; None = from the file name.
        normalisation: A name, six numbers, or ``auto``.
        mapping: YAML file of renamed keys: key in the file -> key of the backbone.
        part: Which network of a file that holds several; None = the only one, or the only one that fits the backbone.
    """

    file: Path
    dataset: str
    backbone: str | None = None
    name: str | None = None
    normalisation: str = "auto"
    mapping: Path | None = None
    part: str | None = None


def import_teacher(foreign: Foreign, place: Workplace) -> tuple[TeacherManifest, list[str]]:
    """Make an artefact of a foreign checkpoint; return its manifest and what was decided on the way.

    Raises:
        ConfigError: If it cannot be read safely, fits no backbone, or would replace another artefact.
    """
    source = open_source(foreign.dataset, place.registry, place.data_root)
    info = source.info
    name = _artefact_name(foreign)
    reference = dataset_ref(info, None)
    digest = sha256_of(foreign.file) if foreign.file.is_file() else ""
    if place.teachers.exists(reference, name):
        old = place.teachers.manifest(reference, name)
        if old.recipe_sha256 == digest:
            return old, [f"{name} was imported before from the same file; to import it otherwise, give --name"]
        raise ConfigError(f"teacher '{name}': exists already, from another file or recipe; give --name")
    foreign, notes = _in_our_words(foreign, place)
    contents = read_checkpoint(foreign.file)
    part = _part(foreign, contents, info, place, notes)
    backbone, network = _fit(foreign, contents, part, info, place, notes)
    backbone_entry = place.registry.backbones[backbone]
    network.place(place.machine.device, channels_last=backbone_entry.channels_last)
    notes += _normalise(network.eval(), foreign.normalisation, source.train(), info, place)
    predictions = TestSet(source, place.machine.device, batch_size=500).predict(network)
    sweep_dead(place.teachers.folder(reference, name))  # of imports that were killed; none claims the folder
    manifest = write_artefact(
        place.teachers, network, predictions, info, reference,
        name=name, backbone=backbone, origin="imported", recipe=foreign.file.name, recipe_sha256=digest,
    )  # fmt: skip
    return manifest, notes


def _artefact_name(foreign: Foreign) -> str:
    name = foreign.name or "-".join(filter(None, (foreign.file.stem, foreign.part)))
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ConfigError(
            f"--name '{name}': not the name of an artefact; allowed are up to 64 letters, digits, '.', '_' and '-', "
            "the first a letter or digit"
        ) from error


def renamed(state: State, mapping: Path | None) -> State:
    """Return the state with the keys a YAML mapping renames.

    Raises:
        ConfigError: If the mapping names a key the checkpoint lacks.
    """
    if mapping is None:
        return state
    table: dict[str, Any] = read_yaml(mapping)
    if missing := [key for key in table if key not in state]:
        raise ConfigError(f"{mapping}: {missing[0]}: no such key in the checkpoint; it has {some(state)}")
    names = [str(table.get(key, key)) for key in state]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{mapping}: {twice[0]}: two keys of the checkpoint get this name; rename each to its own")
    return dict(zip(names, state.values(), strict=True))


def _names(place: Workplace) -> list[str]:
    # Those that start with published weights are the networks of others, by another name.
    return [backbone.name for backbone in place.registry.backbones.values() if not backbone.pretrained]


def _in_our_words(foreign: Foreign, place: Workplace) -> tuple[Foreign, list[str]]:
    """Replace another program's name of a backbone by ours."""
    names = _names(place)
    ours = ALIASES.get(foreign.backbone or "")
    if foreign.backbone in names or ours not in names:
        return foreign, []
    return replace(foreign, backbone=ours), [f"{foreign.backbone} is backbone {ours} here"]


def _part(foreign: Foreign, contents: Contents, info: DatasetInfo, place: Workplace, notes: list[str]) -> str:
    """Return which network of the file is meant; note how it was chosen, and what is left out beside it."""
    parts = contents.parts
    if foreign.part is not None and foreign.part not in parts:
        held = "one network, whose part it does not say; leave --part out" if "" in parts else ", ".join(parts)
        raise ConfigError(f"{foreign.file}: --part {foreign.part}: no such part in the file; it holds {held}")
    if contents.helpers:
        notes.append(
            f"left out, as it is not part of the network: {some(contents.helpers)} (a network that was trained to be "
            "used through it is worth little alone)"
        )
    if foreign.part is not None or len(parts) == 1:
        return foreign.part or min(parts)
    if foreign.backbone:
        fitting = [part for part, state in parts.items() if _same_keys(foreign.backbone, state, info, place)]
        if len(fitting) == 1:
            notes.append(f"part {fitting[0]}: the only one that fits backbone {foreign.backbone}")
            return fitting[0]
    listed = (f"{part} ({_what_fits(state, info, place)})" for part, state in parts.items())
    raise ConfigError(f"{foreign.file}: holds several networks: {', '.join(listed)}; say which with --part")


def _what_fits(state: State, info: DatasetInfo, place: Workplace) -> str:
    fitting = [name for name in _names(place) if _same_keys(name, state, info, place)]
    return f"fits {' and '.join(fitting)}" if fitting else f"{len(state)} tensors, fits no registered backbone"


def _fit(
    foreign: Foreign, contents: Contents, part: str, info: DatasetInfo, place: Workplace, notes: list[str]
) -> tuple[str, Network]:
    """Return the backbone that a part fits, with its state loaded."""
    registry = place.registry
    state = renamed(contents.parts[part], foreign.mapping)
    names = [foreign.backbone] if foreign.backbone else _names(place)
    fitting = [name for name in names if _same_keys(name, state, info, place)]
    if len(fitting) > 1:
        fitting = _told_apart(fitting, foreign, contents, part, place, notes)
    if foreign.backbone is None and len(fitting) != 1:
        what = f"fits {', '.join(fitting)}" if fitting else "fits no registered backbone"
        raise ConfigError(
            f"{foreign.file}: {what} with {len(info.classes)} classes; its keys: {some(state)}; say which with "
            "--backbone, or rename keys with --map"
        )
    name = fitting[0] if fitting else names[0]
    network = registry.backbones[name].build(len(info.classes), info.image)
    state = _as_ours(state, network.state_dict())
    fit_state(network, _with_counters(state, network), f"{foreign.file}: backbone '{name}'")
    if foreign.backbone is None:
        notes.append(f"fits backbone {name}")
    return name, network


def _told_apart(
    fitting: list[str], foreign: Foreign, contents: Contents, part: str, place: Workplace, notes: list[str]
) -> list[str]:
    """Return the one of several equal backbones that file or folder names, or all of them if none is named."""
    for where, text in claims(contents.options, part, foreign.file):
        # Among all names, so that one of a backbone which does not fit is not taken for a shorter one which does.
        named = meant_by(text, _names(place))
        if named in fitting:
            notes.append(f"fits {' and '.join(fitting)}; {where} says {named}")
            return [named]
    return fitting


def _same_keys(name: str, state: State, info: DatasetInfo, place: Workplace) -> bool:
    wanted = _shapes(place.registry.backbones[name], len(info.classes), info.image)
    found = {key: tensor.shape for key, tensor in _as_ours(state, wanted).items() if not key.endswith(_COUNTER)}
    return bool(wanted) and wanted == found


@cache
def _shapes(backbone: Backbone, classes: int, image: StageShape) -> dict[str, torch.Size]:
    """Return the shapes of a network's state by key; none for one that cannot be built, which must not hide others."""
    try:
        own = backbone.on_meta(classes, image).state_dict()
    except Exception:
        return {}
    return {key: tensor.shape for key, tensor in own.items() if not key.endswith(_COUNTER)}


def _as_ours(state: State, own: Iterable[str]) -> State:
    """Return a library's state under our keys: there its model is a part of the network."""
    inside = all(key.startswith(_MODEL) for key in own) and not any(key.startswith(_MODEL) for key in state)
    return {f"{_MODEL}{key}": value for key, value in state.items()} if inside else state


def _with_counters(state: State, network: Network) -> State:
    """Old checkpoints lack BatchNorm's step counters, which nothing here reads."""
    own = network.state_dict()
    return {**{key: own[key] for key in own if key.endswith(_COUNTER)}, **state}


def _normalise(network: Network, wanted: str, train: Split, info: DatasetInfo, place: Workplace) -> list[str]:
    """Set the input constants; with ``auto`` those under which training images are least surprising."""
    known: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
        "dataset": info.normalisation or channel_statistics(train),
        **(CONSTANTS if info.image.channels == 3 else {"none": ((0.0,), (1.0,)), "half": ((0.5,), (0.5,))}),
    }
    if wanted != "auto":
        network.set_normalisation(*_constants(wanted, known, info.image.channels))
        return []
    step = max(1, len(train) // _TRIED_IMAGES)
    sample = train.select(torch.arange(0, len(train), step))
    losses = {}
    for name, (mean, std) in known.items():
        network.set_normalisation(mean, std)
        losses[name] = evaluate(network, sample, place.machine.device, batch_size=500).nll
    best = min(losses, key=losses.__getitem__)
    network.set_normalisation(*known[best])
    tried = ", ".join(f"{name} {loss:.4f}" for name, loss in sorted(losses.items(), key=lambda item: item[1]))
    return [f"normalisation {best}: smallest loss on {len(sample)} training images ({tried})"]


def _constants(text: str, known: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if text in known:
        mean, std = known[text]
        return tuple(mean), tuple(std)
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    sound = all(map(math.isfinite, numbers)) and all(std > 0 for std in numbers[channels:])
    if len(numbers) != 2 * channels or not sound:
        raise ProblemList(
            [f"--normalisation {text}: give {', '.join(known)}, auto, or {2 * channels} numbers: means, then stds > 0"]
        )
    return numbers[:channels], numbers[channels:]
