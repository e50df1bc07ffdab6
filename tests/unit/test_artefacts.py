"""Teacher artefacts: found by name and dataset, trusted by hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from kdbench.artefacts import MANIFEST, PREDICTIONS, WEIGHTS, TeacherManifest, TeacherStore, check_sha256, sha256_of
from kdbench.errors import ConfigError, KdbenchError, StoreError
from kdbench.seal import sealed
from kdbench.spec import DatasetRef
from kdbench.storage.places import SCRATCH_VARIABLE, Url
from kdbench.storage.url_shelf import shelf_at

DIGITS = DatasetRef(name="digits", slug="digits", fingerprint="f")
SUBSET = DIGITS.model_copy(update={"per_class": 5})
STATE = {"w": torch.arange(6.0).view(2, 3)}


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    store = TeacherStore(tmp_path / "teachers")
    put(store, "resnet14-crd")
    return store


def put(store: TeacherStore, name: str, dataset: DatasetRef = DIGITS) -> TeacherManifest:
    folder = store.folder(dataset, name)
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(save(STATE))
    manifest = TeacherManifest(
        name=name,
        backbone="resnet14_w8",
        dataset=dataset,
        classes=tuple("0123456789"),
        in_channels=1,
        origin="trained",
        recipe="crd-v1",
        recipe_sha256="r",
        accuracy=97.5,
        test_images=599,
        mean=(0.5,),
        std=(0.25,),
        sha256=sha256_of(folder / WEIGHTS),
        created_at="2025-01-01T00:00:00Z",
        kdbench_version="0.1.0",
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return manifest


def test_round_trip(store: TeacherStore) -> None:
    manifest = store.manifest(DIGITS, "resnet14-crd")
    assert (manifest.accuracy, manifest.mean) == (97.5, (0.5,))
    assert torch.equal(store.weights(manifest)["w"], STATE["w"])
    assert store.all() == [manifest]
    assert store.exists(DIGITS, "resnet14-crd")


@pytest.mark.parametrize(
    ("dataset", "name", "hint"),
    [(DIGITS, "resnet14-crt", " Did you mean 'resnet14-crd'?"), (SUBSET, "resnet14-crd", ""), (DIGITS, "zzz", "")],
)
def test_missing(store: TeacherStore, dataset: DatasetRef, name: str, hint: str) -> None:
    assert not store.exists(dataset, name)
    with pytest.raises(ConfigError) as caught:
        store.manifest(dataset, name)
    assert str(caught.value) == (
        f"teacher '{name}' for dataset '{dataset.label}': not in {store.root}. unknown teacher '{name}'.{hint} All: "
        "kdbench list teachers; make it with kdbench teacher train, or bring it with kdbench teacher import"
    )


def test_no_store_at_all(tmp_path: Path) -> None:
    store = TeacherStore(tmp_path / "nowhere")
    assert store.all() == []
    with pytest.raises(ConfigError, match=r"not in .*nowhere"):
        store.manifest(DIGITS, "x")


def test_unfinished_artefact_does_not_exist(store: TeacherStore) -> None:
    (store.folder(DIGITS, "resnet14-crd") / MANIFEST).unlink()
    assert not store.exists(DIGITS, "resnet14-crd")
    assert store.all() == []


@pytest.mark.parametrize("name", ["../digits-5pc/other", "../../outside/other"])
def test_names_that_lead_elsewhere(store: TeacherStore, name: str) -> None:
    put(store, "other", SUBSET)
    put(TeacherStore(store.root.parent), "other", DIGITS.model_copy(update={"slug": "outside"}))
    with pytest.raises(ConfigError, match=r"belongs to teacher 'other' for dataset '(digits-5pc|outside)'"):
        store.manifest(DIGITS, name)


def test_renamed_folder(store: TeacherStore) -> None:
    folder = store.folder(DIGITS, "resnet14-crd")
    moved = folder.rename(folder.with_name("better"))
    with pytest.raises(ConfigError) as caught:
        store.manifest(DIGITS, "better")
    assert str(caught.value).startswith(f"{moved / MANIFEST}: belongs to teacher 'resnet14-crd' for dataset 'digits'; ")


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "append"])
def test_corrupt_weights(store: TeacherStore, damage: str) -> None:
    manifest = store.manifest(DIGITS, "resnet14-crd")
    path = store.folder(DIGITS, "resnet14-crd") / WEIGHTS
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes({"flip": flipped, "truncate": data[:-1], "empty": b"", "append": data + b"\0"}[damage])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(KdbenchError) as caught:
        store.weights(manifest)
    assert str(caught.value) == (
        f"{path}: corrupt: sha256 is {found[:12]}.., expected {manifest.sha256[:12]}..; "
        "train or import the teacher again (its folder can be removed)"
    )


def test_missing_weights(store: TeacherStore) -> None:
    manifest = store.manifest(DIGITS, "resnet14-crd")
    path = store.folder(DIGITS, "resnet14-crd") / WEIGHTS
    path.unlink()
    with pytest.raises(KdbenchError, match="missing; train or import the teacher again"):
        store.weights(manifest)


def test_corrupt_manifest(store: TeacherStore) -> None:
    path = store.folder(DIGITS, "resnet14-crd") / MANIFEST
    path.write_text(path.read_text()[:40])
    with pytest.raises(StoreError, match=r"teacher.json: not JSON"):
        store.manifest(DIGITS, "resnet14-crd")
    path.write_text("{}")
    with pytest.raises(StoreError, match=r"teacher.json: not a teachermanifest of kdbench: name: Field required"):
        store.manifest(DIGITS, "resnet14-crd")


def test_sha256_of_known_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert sha256_of(path) == digest
    check_sha256(path, digest, "do this")
    with pytest.raises(KdbenchError, match=r"corrupt: sha256 is ba7816bf8f01\.\., expected 000000000000\.\.; do this"):
        check_sha256(path, "0" * 64, "do this")


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS, PREDICTIONS])
@pytest.mark.parametrize("damage", ["flip", "truncate", "gone"])
def test_a_damaged_artefact_is_set_aside_whole_and_counts_as_missing(tmp_path: Path, file: str, damage: str) -> None:
    store, name = TeacherStore(tmp_path), "resnet14-crd"
    manifest, folder = put(store, name), store.folder(DIGITS, name)
    (folder / MANIFEST).write_text(sealed(manifest))
    np.savez(folder / PREDICTIONS, predicted=np.arange(100))
    assert store.set_damaged_aside(DIGITS, name) == ()
    data = (folder / file).read_bytes()
    flipped = data.replace(b"97.5", b"97.4") if file == MANIFEST else data[:90] + bytes([data[90] ^ 1]) + data[91:]
    if damage == "gone" and file != MANIFEST:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(flipped if damage == "flip" else data[:60])
    aside = store.set_damaged_aside(DIGITS, name)
    assert not store.exists(DIGITS, name)
    kept = {path.name for path in aside}
    assert kept >= {f"{other}.corrupt" for other in (MANIFEST, WEIGHTS, PREDICTIONS) if other != file}
    assert {path.name for path in folder.iterdir()} == kept
    assert store.set_damaged_aside(DIGITS, name) == ()


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS, PREDICTIONS])
def test_at_a_url_a_damaged_artefact_is_set_aside_whole_by_a_machine_without_a_copy(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays there would be replaced by the next training, whose bits on this machine may be others."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    made, name = TeacherStore(tmp_path / "made"), "resnet14-crd"
    manifest, folder, url = put(made, name), made.folder(DIGITS, name), f"memory://{tmp_path.name}/teachers"
    (folder / MANIFEST).write_text(sealed(manifest))
    np.savez(folder / PREDICTIONS, predicted=np.arange(100))
    there, files = shelf_at(Url(url)).at(f"digits/{name}"), {path.name: path.read_bytes() for path in folder.iterdir()}
    files[file] = files[file][:60]
    for known, data in files.items():
        there.write(known, data)
    there.write(f"{MANIFEST}.corrupt", b"of another machine")
    aside = TeacherStore(Url(url)).set_damaged_aside(DIGITS, name)
    expected = {f"{known}.corrupt{2 if known == MANIFEST else ''}": data for known, data in files.items()}
    assert {path.name for path in aside} == set(expected)
    assert there.read_all(there.names()) == {**expected, f"{MANIFEST}.corrupt": b"of another machine"}
    assert aside[-1].name == f"{MANIFEST}.corrupt2"  # after a kill before it, all are looked at again


def test_a_flipped_bit_that_no_checksum_of_the_archive_covers_is_found_by_the_manifests(tmp_path: Path) -> None:
    store, name = TeacherStore(tmp_path), "resnet14-crd"
    manifest, path = put(store, name), store.folder(DIGITS, name) / PREDICTIONS
    np.savez(path, predicted=np.arange(599))
    manifest = manifest.model_copy(update={"predictions_sha256": sha256_of(path)})
    (path.parent / MANIFEST).write_text(sealed(manifest))
    assert store.set_damaged_aside(DIGITS, name) == ()
    data = path.read_bytes()
    path.write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])  # of the time in the member's own header
    assert len(np.load(path)["predicted"]) == 599
    with pytest.raises(KdbenchError, match="corrupt: sha256 is"):
        store.predicted(manifest)
    assert len(store.set_damaged_aside(DIGITS, name)) == 3
