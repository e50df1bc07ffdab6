"""Importing foreign checkpoints: read without running code, stripped of wrappers, fitted to a backbone, measured."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from kdbench.artefacts import TeacherManifest, sha256_of
from kdbench.backbones.base import Network
from kdbench.config.loading import read_yaml
from kdbench.config.schema import Name
from kdbench.datasets.base import DatasetInfo, Split
from kdbench.datasets.splits import channel_statistics
from kdbench.errors import ConfigError, ProblemList
from kdbench.evaluation import TestSet, evaluate
from kdbench.plan import dataset_ref, open_source
from kdbench.training.cohort import Workplace
from kdbench.training.networks import fit_state
from kdbench.training.teachers import write_artefact

# Published input constants, (mean, std) per channel.
CONSTANTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "teacher", "student", "weights", "params")
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "net.", "network.", "teacher.", "student.")
_COUNTER = "num_batches_tracked"
_CODE = re.compile(r"(?:GLOBAL|unrecognized function|unsupported class) (\S+)")  # in torch's refusals
_MOST_WRAPPERS = 8
_TRIED_IMAGES = 2000


@dataclass(frozen=True)
class Foreign:
    """A checkpoint somebody else saved, and what is known of it.

    Args:
        file: ``.safetensors``, or anything ``torch.load(weights_only=True)`` reads.
        dataset: What it was trained for.
        backbone: What it fits; None = the only registered backbone that does.
        name: Name of the artefact; None = from the file name.
        normalisation: A name, six numbers, or ``auto``.
        mapping: YAML file of renamed keys: key in the file -> key of the backbone.
    """

    file: Path
    dataset: str
    backbone: str | None = None
    name: str | None = None
    normalisation: str = "auto"
    mapping: Path | None = None


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
    state = renamed(read_state(foreign.file), foreign.mapping)
    backbone, network = _fit(foreign, state, info, place)
    notes = [] if foreign.backbone else [f"fits backbone {backbone}"]
    backbone_entry = place.registry.backbones[backbone]
    network.place(place.machine.device, channels_last=backbone_entry.channels_last)
    notes += _normalise(network.eval(), foreign.normalisation, source.train(), info, place)
    predictions = TestSet(source, place.machine.device, batch_size=500).predict(network)
    manifest = write_artefact(
        place.teachers, network, predictions, info, reference,
        name=name, backbone=backbone, origin="imported", recipe=foreign.file.name, recipe_sha256=digest,
    )  # fmt: skip
    return manifest, notes


def _artefact_name(foreign: Foreign) -> str:
    name = foreign.name or foreign.file.stem
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ConfigError(
            f"--name '{name}': not the name of an artefact; allowed are up to 64 letters, digits, '.', '_' and '-', "
            "the first a letter or digit"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under plain keys; nothing in the file is executed.

    Raises:
        ConfigError: If it is missing, damaged, holds code, or holds no state dict.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the path of a checkpoint")
    try:
        if path.suffix == ".safetensors":
            tree: object = load_file(path)
        else:
            _check_archive(path)
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ConfigError(f"{path}: {_why_unreadable(error)}") from error
    return _strip(_unwrap(tree, path))


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and (found := _CODE.search(str(error))):
        return (
            f"holds more than tensors ({found[1]}), and kdbench runs no code from files; save only the state dict "
            "(torch.save(model.state_dict(), ...)) with the program that made it"
        )
    detail = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:100]
    return f"not a readable checkpoint (damaged or foreign): {type(error).__name__}: {detail}; get the file again"


def _check_archive(path: Path) -> None:
    """Refuse what torch does not look at: compressed entries, which expand without limit, and wrong checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ConfigError(f"{path}: a checkpoint with compressed entries is not one torch wrote; refused")
            if bad := archive.testzip():
                raise ConfigError(f"{path}: damaged: checksum of {bad} is wrong; get the file again")


def _unwrap(tree: object, path: Path) -> dict[str, Tensor]:
    for _ in range(_MOST_WRAPPERS):  # a pickle may hold itself
        if not isinstance(tree, Mapping):
            break
        # Wrappers first: training programs put tensors such as the best accuracy beside the state dict.
        inner = [tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping)]
        tensors = {str(key): value for key, value in tree.items() if isinstance(value, Tensor)}
        if not inner and tensors:
            _refuse_views(tensors, path)
            return tensors
        if not inner:
            break
        tree = inner[0]
    keys = ", ".join(map(str, list(tree)[:8])) if isinstance(tree, Mapping) else type(tree).__name__
    raise ConfigError(f"{path}: no state dict in it (found: {keys}); known wrappers: {', '.join(_WRAPPERS)}")


def _refuse_views(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A few stored bytes can claim to be a tensor of any size by a stride of zero; a meta tensor has none at all."""
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ConfigError(f"{path}: {key}: not a plain dense tensor; save an unquantised, dense state dict")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{path}: {key}: claims {tuple(tensor.shape)}, more than the file holds; refused")


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop prefixes that every key has, such as the ``module.`` of data-parallel training."""
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def renamed(state: dict[str, Tensor], mapping: Path | None) -> dict[str, Tensor]:
    """Return the state with the keys a YAML mapping renames.

    Raises:
        ConfigError: If the mapping names a key the checkpoint lacks.
    """
    if mapping is None:
        return state
    table: dict[str, Any] = read_yaml(mapping)
    if missing := [key for key in table if key not in state]:
        raise ConfigError(f"{mapping}: {missing[0]}: no such key in the checkpoint; it has {_some(state)}")
    names = [str(table.get(key, key)) for key in state]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{mapping}: {twice[0]}: two keys of the checkpoint get this name; rename each to its own")
    return dict(zip(names, state.values(), strict=True))


def _fit(foreign: Foreign, state: dict[str, Tensor], info: DatasetInfo, place: Workplace) -> tuple[str, Network]:
    """Return the backbone the state fits, with the state loaded."""
    registry = place.registry
    names = [foreign.backbone] if foreign.backbone else [b.name for b in registry.backbones.values()]
    fitting = [name for name in names if _same_keys(name, state, info, place)]
    if foreign.backbone is None and len(fitting) != 1:
        what = f"fits {', '.join(fitting)}" if fitting else "fits no registered backbone"
        raise ConfigError(
            f"{foreign.file}: {what} with {len(info.classes)} classes; its keys: {_some(state)}; say which with "
            "--backbone, or rename keys with --map"
        )
    name = fitting[0] if fitting else names[0]
    network = registry.backbones[name].build(len(info.classes), info.image.channels)
    fit_state(network, _with_counters(state, network), f"{foreign.file}: backbone '{name}'")
    return name, network


def _same_keys(name: str, state: dict[str, Tensor], info: DatasetInfo, place: Workplace) -> bool:
    backbone = place.registry.backbones[name]
    try:
        with torch.device("meta"):
            own = backbone.build(len(info.classes), info.image.channels).state_dict()
    except Exception:  # one that lacks its library does not keep the others from being found
        return False
    wanted = {key: tensor.shape for key, tensor in own.items() if not key.endswith(_COUNTER)}
    return wanted == {key: tensor.shape for key, tensor in state.items() if not key.endswith(_COUNTER)}


def _with_counters(state: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
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


def _some(keys: Iterable[str], most: int = 6) -> str:
    listed = list(keys)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
