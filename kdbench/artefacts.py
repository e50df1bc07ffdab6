"""Teacher artefacts: weights with everything needed to trust and use them, in a folder of their own."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdbench.archives import UNREADABLE
from kdbench.config.schema import ADDED, Section
from kdbench.errors import ConfigError, KdbenchError, unknown
from kdbench.evaluation import read_predicted
from kdbench.files import set_aside, write_atomic
from kdbench.records import Corrupt, parse_json
from kdbench.seal import sealed
from kdbench.spec import DatasetRef
from kdbench.storage.mirror import Mirror, lasting_mirror
from kdbench.storage.places import Url, Where

WEIGHTS, MANIFEST, PREDICTIONS = "weights.safetensors", "teacher.json", "predictions.npz"
_AGAIN = "train or import the teacher again (its folder can be removed)"


class TeacherManifest(Section):
    """What ``teacher.json`` says.

    Args:
        name: Name of the artefact, unique per dataset.
        origin: ``trained`` by kdbench or ``imported``.
        recipe: Anchor label it was trained under, or where it was imported from.
        recipe_sha256: Hash of that anchor, or of the imported file.
        epochs: Epochs it was trained.
        best_epoch: 1-based epoch whose weights these are, where it is not the last: the best on the validation split.
        accuracy: Top-1 on the whole test split, in percent, measured by kdbench.
        mean, std: Its own input normalisation.
        sha256: Of the weights file.
        predictions_sha256: Of the file with the test predictions; older manifests do not say it.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
    backbone: str
    dataset: DatasetRef
    classes: tuple[str, ...]
    in_channels: int
    origin: Literal["trained", "imported"]
    recipe: str
    recipe_sha256: str
    seed: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    accuracy: float
    test_images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    predictions_sha256: Annotated[str, ADDED] = ""
    created_at: str
    kdbench_version: str = Field(description="version that wrote it")


class TeacherStore:
    """Artefacts under ``<dataset>/<name>/`` of a folder, or of a URL: then they are copied to this machine once.

    Args:
        where: The folder, which need not exist, or the URL.
    """

    def __init__(self, where: Where) -> None:
        self.where = where
        self.mirror: Mirror | None = None
        if isinstance(where, Url):
            self.mirror = lasting_mirror(where)
            self.root = self.mirror.root
        else:
            self.root = where

    def folder(self, dataset: DatasetRef, name: str) -> Path:
        """Return where an artefact lives or would live on this machine."""
        return self.root / dataset.label / name

    def exists(self, dataset: DatasetRef, name: str) -> bool:
        """Return whether a finished artefact is there."""
        return self._brought(self.folder(dataset, name) / MANIFEST).is_file()

    def all(self) -> list[TeacherManifest]:
        """Return the manifests of all artefacts, by dataset and name."""
        if self.mirror:
            names = self.mirror.refresh(lambda name: name.endswith(f"/{MANIFEST}") and name.count("/") == 2)
            return [parse_json(TeacherManifest, self.root / name) for name in names]
        return [parse_json(TeacherManifest, path) for path in sorted(self.root.glob(f"*/*/{MANIFEST}"))]

    def write(self, manifest: TeacherManifest, files: Mapping[str, bytes]) -> None:
        """Write an artefact, the manifest last.

        Raises:
            StoreError: If it cannot be written.
        """
        folder = self.folder(manifest.dataset, manifest.name)
        for name, data in {**files, MANIFEST: sealed(manifest).encode()}.items():
            write_atomic(folder / name, data)
            self._send(folder / name)

    def _brought(self, path: Path) -> Path:
        """Return a file as it is at the URL now, if the store is at one."""
        if self.mirror:
            self.mirror.pull(self.mirror.place_of(path))
        return path

    def _send(self, path: Path) -> None:
        if self.mirror:
            self.mirror.push_file(self.mirror.place_of(path))

    def _weights(self, manifest: TeacherManifest) -> Path:
        """Return the weights' file; one that is on this machine and has the right hash is not copied again."""
        path = self.folder(manifest.dataset, manifest.name) / WEIGHTS
        return path if path.is_file() and sha256_of(path) == manifest.sha256 else self._brought(path)

    def manifest(self, dataset: DatasetRef, name: str) -> TeacherManifest:
        """Return one manifest.

        Raises:
            ConfigError: If there is no such artefact; it names the nearest one and how to make it.
        """
        path = self._brought(self.folder(dataset, name) / MANIFEST)
        if not path.is_file():
            known = [found.name for found in self.all() if found.dataset.label == dataset.label]
            raise ConfigError(
                f"teacher '{name}' for dataset '{dataset.label}': not in {self.where}. "
                + unknown("teacher", name, known)
                + "; make it with kdbench teacher train, or bring it with kdbench teacher import"
            )
        manifest = parse_json(TeacherManifest, path)
        if (manifest.name, manifest.dataset.label) != (name, dataset.label):
            raise ConfigError(
                f"{path}: belongs to teacher '{manifest.name}' for dataset '{manifest.dataset.label}'; moving a folder "
                "neither renames its teacher nor makes it one for another dataset"
            )
        return manifest

    def made_by(self, dataset: DatasetRef, name: str, recipe_sha256: str) -> TeacherManifest:
        """Return the artefact that a recipe made.

        Raises:
            ConfigError: If the artefact of that name was imported, or made by another recipe or from other images.
        """
        manifest = self.manifest(dataset, name)
        found = (manifest.origin, manifest.recipe_sha256, manifest.dataset.fingerprint)
        if found != ("trained", recipe_sha256, dataset.fingerprint):
            raise ConfigError(
                f"teacher '{name}' in {self.where}: was made by another recipe ({manifest.origin}, recipe "
                f"{manifest.recipe_sha256[:12]}, dataset {manifest.dataset.fingerprint[:12]}; needed: trained, "
                f"{recipe_sha256[:12]}, {dataset.fingerprint[:12]}); raise the anchor's version, choose another "
                "--teachers folder, or ask for a teacher by --teacher NAME"
            )
        return manifest

    def is_damaged(self, dataset: DatasetRef, name: str) -> bool:
        """Return whether an artefact is there whose files are not what its manifest says.

        Raises:
            StoreError: If one cannot be read, or a newer kdbench wrote it.
        """
        return self.exists(dataset, name) and not self._sound(self.folder(dataset, name))

    def set_damaged_aside(self, dataset: DatasetRef, name: str) -> tuple[Path, ...]:
        """Check an artefact's files; if one is damaged, set all aside, so that it counts as missing.

        Returns:
            Where they are now; nothing if they are sound, or if there are none.

        Raises:
            StoreError: If one cannot be read, or a newer kdbench wrote it.
        """
        folder = self.folder(dataset, name)
        if not self.is_damaged(dataset, name):
            return ()
        # All are brought here first: one that is damaged may have kept others from it. The manifest is the last to go:
        # while it is there the others are checked, so that what a kill leaves is set aside the next time.
        found = [self._brought(folder / file) for file in (WEIGHTS, PREDICTIONS, MANIFEST)]
        return tuple(self._set_aside(path) for path in found if path.exists())

    def _set_aside(self, path: Path) -> Path:
        aside = set_aside(path, taken=lambda name: self._brought(name).exists())  # by other machines, too
        self._send(aside)
        self._send(path)
        return aside

    def _sound(self, folder: Path) -> bool:
        try:
            manifest = parse_json(TeacherManifest, folder / MANIFEST)
            predictions = self._brought(folder / PREDICTIONS)
            if manifest.predictions_sha256 not in {"", sha256_of(predictions)}:
                return False
            with zipfile.ZipFile(predictions) as archive:
                return sha256_of(self._weights(manifest)) == manifest.sha256 and archive.testzip() is None
        except (Corrupt, FileNotFoundError, *UNREADABLE):
            return False

    def weights(self, manifest: TeacherManifest) -> dict[str, Tensor]:
        """Return the state dict of an artefact after checking its hash.

        Raises:
            KdbenchError: If the file is missing, its bytes are not the ones the manifest names, or they are no weights.
        """
        path = self._weights(manifest)
        check_sha256(path, manifest.sha256, _AGAIN)
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
            raise KdbenchError(f"{path}: not the weights of a network ({error}); {_AGAIN}") from error

    def predicted(self, manifest: TeacherManifest) -> Tensor:
        """Return the classes (N,) that an artefact's network predicted for the test images.

        Raises:
            KdbenchError: If the file is missing or damaged, or of another number of images than the manifest says.
        """
        path = self._brought(self.folder(manifest.dataset, manifest.name) / PREDICTIONS)
        if manifest.predictions_sha256:
            check_sha256(path, manifest.predictions_sha256, _AGAIN)
        predicted = read_predicted(path)
        if len(predicted) != manifest.test_images:
            raise KdbenchError(
                f"{path}: has {len(predicted)} predictions, {MANIFEST} beside it says {manifest.test_images}; {_AGAIN}"
            )
        return predicted


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, remedy: str) -> None:
    """Raise KdbenchError unless the file has the expected hash."""
    if not path.is_file():
        raise KdbenchError(f"{path}: missing; {remedy}")
    if (found := sha256_of(path)) != expected:
        raise KdbenchError(f"{path}: corrupt: sha256 is {found[:12]}.., expected {expected[:12]}..; {remedy}")
