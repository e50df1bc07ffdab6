"""What is fuzzed: every reader of files from outside, with a whole example of its files and the one to damage."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damages import altered, damaged, forged, rewritten
from hypothesis.strategies import SearchStrategy
from PIL import Image
from safetensors.torch import save

import kdbench
from kdbench.artefacts import TeacherManifest, TeacherStore
from kdbench.cli.progress import Reporter
from kdbench.config.ladders import load_ladder
from kdbench.config.loading import load_anchor, read_yaml
from kdbench.config.pairs import load_pair
from kdbench.config.presets import load_preset
from kdbench.config.recipes import load_recipe
from kdbench.datasets.batch_pickle import read_batch
from kdbench.datasets.folder import open_folder
from kdbench.datasets.imagenet32_files import Batch
from kdbench.datasets.npz import open_npz
from kdbench.errors import KdbenchError
from kdbench.evaluation import read_predicted
from kdbench.execution.events import Event
from kdbench.execution.status import counts, standings, time_left
from kdbench.leaderboard.answers import read_answers
from kdbench.leaderboard.build import build
from kdbench.leaderboard.claim_files import load_claims
from kdbench.leaderboard.curves import read_curve
from kdbench.leaderboard.manifest import Manifest
from kdbench.leaderboard.reading import read_cells
from kdbench.leaderboard.writing import FORMATS
from kdbench.merging.reading import read_store
from kdbench.methods.asib.command import preset_of
from kdbench.records import Record, parse_json
from kdbench.registry import load
from kdbench.spec import DatasetRef, RunSpec
from kdbench.storage.heartbeat import HEARTBEAT, Heartbeat, Reached
from kdbench.storage.owner import Owner
from kdbench.store import RunFolder, RunStore
from kdbench.training.attempts import earlier
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.foreign import read_checkpoint
from kdbench.verification import verify
from kdbench.verification.tables import Board

Damage = Callable[[bytes], SearchStrategy[bytes]]
PACKAGE = Path(kdbench.__file__).parent
BOARD = PACKAGE.parent / "leaderboards" / "cifar100-subset-res20_res8"
RUNS = Path("runs", "fair_baseline_short-v1", "npz-cifar100-eaabb3ac", "res20_res8")
RUN = RUNS / "dkd" / "seed0"
LEASE = "lease-00001.json"
REGISTRY = load()
RANDOM = np.random.default_rng(0)
DIGITS = DatasetRef(name="digits", slug="digits", fingerprint="f")


@dataclass(frozen=True)
class Subject:
    """A reader and its files.

    Args:
        file: The file that is damaged.
        make: Writes the whole example into an empty folder.
        damage: How the file is damaged.
        read: Reads it, given the folder.
        named: Whether a refusal must name the file.
    """

    file: str
    make: Callable[[Path], None]
    damage: Damage
    read: Callable[[Path], object]
    named: bool = True


def copy_of(source: Path, name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copy(source, folder / name)

    return make


def yaml(source: str, load_file: Callable[[Path], object], name: str = "") -> Subject:
    name = name or Path(source).name
    return Subject(name, copy_of(PACKAGE / source, name), rewritten, lambda folder: load_file(folder / name))


def board(folder: Path) -> None:
    """Write a published board of three runs: fewer are read faster."""
    shutil.copytree(BOARD, folder, dirs_exist_ok=True, ignore=lambda _, names: {"seed1", "seed2"} & set(names))


def of_board(file: str, damage: Damage, read: Callable[[Path], object], *, named: bool = True) -> Subject:
    return Subject(file, board, damage, read, named)


def tables(folder: Path) -> object:
    cells = read_cells(RunStore(folder / "runs").runs(), curves=True)
    made = build(cells, ["student", "vanilla_kd"], answers=read_answers)
    return [write(made) for write in FORMATS.values()]


def merged(folder: Path) -> object:
    for problem in read_store(folder / "runs").damaged.values():
        assert isinstance(problem, str)
    return None


def verified(folder: Path) -> object:
    return verify(folder)


def reported(folder: Path) -> object:
    """Show events as they come from a worker, whatever else it prints."""
    reporter = Reporter([])
    for line in (folder / "events").read_bytes().decode(errors="replace").splitlines():
        if event := Event.from_line(line):
            reporter.see(event)
    return None


def events(folder: Path) -> None:
    epochs = [json.loads(line) for line in (BOARD / RUN / "epochs.jsonl").read_text(encoding="utf-8").splitlines()]
    progress = {"run_ids": ["a"], "phase": "main", "epoch": 0, "epochs": 2, "step": 1, "steps": 9}
    lines = [Event("epoch", epochs[0]), Event("progress", {**progress, "images_per_second": 3.5}),
             Event("record", {"run_id": "a", "status": "ok", "reason": "", "accuracy": 3.0}),
             Event("teacher", {"name": "t", "accuracy": 9.5}), Event("warning", {"message": "m"}),
             Event("phase", {"run_id": "a", "phase": "b", "losses": {"x": 1}, "weights": {"x": 2}, "metrics": {}}),
    ]  # fmt: skip
    (folder / "events").write_text("".join(line.to_line() for line in lines), encoding="utf-8")


def running(folder: Path) -> None:
    """Write a board one of whose runs is being trained by somebody else."""
    board(folder)
    (folder / RUN / "record.json").unlink()
    owner = Owner(host="n1", place="elsewhere", pid=1, token="00")
    at = "2026-01-01T00:00:00+00:00"
    beat = Heartbeat(lease=1, owner=owner, started_at=at, beaten_at=at, moved_at=at, interval=5.0,
                     progress=Reached(phase="main", epoch=1, epochs=4, done=0.25))  # fmt: skip
    (folder / RUN / LEASE).write_text(owner.model_dump_json(), encoding="utf-8")
    (folder / RUN / HEARTBEAT).write_text(beat.model_dump_json(), encoding="utf-8")


def standing(folder: Path) -> object:
    runs = standings(RunStore(folder / "runs").runs())
    return counts(runs), time_left(runs)


def attempts(folder: Path) -> None:
    known = json.loads((BOARD / RUN / "record.json").read_text(encoding="utf-8"))["attempts"]
    (folder / "attempts.json").write_text(json.dumps(known), encoding="utf-8")


def npz(folder: Path) -> None:
    labels, names = np.array([0, 1, 0, 1, 0, 1, 0, 1]), np.array(["cat", "dog"])
    images = RANDOM.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels,
             classes=names)  # fmt: skip


def whole_npz(folder: Path) -> object:
    dataset = open_npz(str(folder / "d.npz"), folder)
    return dataset.info, dataset.train(), dataset.test()


def batch_arrays() -> dict[str, Any]:
    return {"data": RANDOM.integers(0, 256, (3, 3072), dtype=np.uint8), "labels": [1, 2, 1000]}


def save_batch(folder: Path) -> None:
    np.savez(folder / "val_data.npz", **batch_arrays())


def pickled(protocol: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "val_data").write_bytes(pickle.dumps(batch_arrays(), protocol))

    return make


def batch(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        found = Batch("imagenet32:x", folder / name)
        return found.size(), found.read()

    return read


def classes(folder: Path) -> None:
    for part in ("train", "test"):
        for name, ending in (("a", "png"), ("b", "jpg"), ("c", "tiff"), ("d", "webp"), ("e", "bmp"), ("f", "ppm")):
            path = folder / part / name / f"0.{ending}"
            path.parent.mkdir(parents=True)
            Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def folder_of_images(folder: Path) -> object:
    dataset = open_folder(str(folder), folder)
    return dataset.info, dataset.train()


STATE = {"conv.weight": torch.ones(2, 3), "bn.running_mean": torch.zeros(2), "steps": torch.tensor(3)}


def packed(tree: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def foreign(name: str, data: bytes) -> Subject:
    return Subject(
        name, lambda folder: (folder / name).write_bytes(data) and None, damaged,
        lambda folder: read_checkpoint(folder / name),
    )  # fmt: skip


def checkpoint(folder: Path) -> None:
    (folder / "state").write_bytes(packed({"schema": 2, "student": STATE, "epoch": 3}))


def newest(folder: Path) -> object:
    """Read a checkpoint under the name that its bytes ask for: made to harm, not damaged."""
    data = (folder / "state").read_bytes()
    place = folder / "checkpoint"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / f"p00-e00001-s0000001-{hashlib.sha256(data).hexdigest()[:16]}.pt").write_bytes(data)
    return CheckpointFolder(place).newest()


def teacher(folder: Path) -> None:
    place = folder / "digits" / "t"
    place.mkdir(parents=True)
    (place / "weights.safetensors").write_bytes(save(STATE))
    manifest = TeacherManifest(
        name="t", backbone="resnet8_w4", dataset=DIGITS, classes=("0", "1"), in_channels=1, origin="trained",
        recipe="r", recipe_sha256="0" * 64, accuracy=50.0, test_images=4, mean=(0.5,), std=(0.5,),
        sha256=hashlib.sha256(save(STATE)).hexdigest(), created_at="2025-01-01T00:00:00Z", kdbench_version="0.1.0",
    )  # fmt: skip
    (place / "teacher.json").write_text(manifest.model_dump_json(), encoding="utf-8")


def manifest(folder: Path) -> object:
    store = TeacherStore(folder)
    return store.all(), store.manifest(DIGITS, "t")


def weights(folder: Path) -> object:
    """Read weights whose manifest has their hash: made to harm, not damaged."""
    store = TeacherStore(folder)
    path = folder / "digits" / "t" / "weights.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return store.weights(store.manifest(DIGITS, "t").model_copy(update={"sha256": digest}))


def run_record(folder: Path) -> object:
    return RunFolder(folder / RUN).peek(), parse_json(Record, folder / RUN / "record.json")


SUBJECTS: dict[str, Subject] = {
    "anchor": yaml("config/anchors/fair_baseline.yaml", lambda path: load_anchor(str(path), {}), "mine.yaml"),
    "extending anchor": yaml(
        "config/anchors/fair_baseline_smoke.yaml",
        lambda path: load_anchor(str(path), REGISTRY.anchors.as_mapping()),
        "mine.yaml",
    ),
    "pair": yaml("config/pairs/tiny_two.yaml", lambda path: load_pair(path, REGISTRY.backbones, REGISTRY.datasets)),
    "recipe": yaml("config/teachers/" + min(p.name for p in PACKAGE.glob("config/teachers/*")), load_recipe),
    "preset": yaml("methods/asib/presets/asib_stage.yaml", load_preset),
    "ladder": yaml("methods/asib/ladders/" + min(p.name for p in PACKAGE.glob("methods/asib/ladders/*")), load_ladder),
    "claims": yaml("leaderboard/claims/" + min(p.name for p in PACKAGE.glob("leaderboard/claims/*")), load_claims),
    "translated configuration": Subject(
        "base.yaml",
        copy_of(PACKAGE / "methods/asib/base.yaml", "base.yaml"),
        rewritten,
        lambda folder: preset_of("mine", read_yaml(folder / "base.yaml"), {}, {}),
        named=False,
    ),
    "record": of_board(str(RUN / "record.json"), altered, run_record),
    "spec": of_board(str(RUN / "spec.json"), altered, lambda folder: parse_json(RunSpec, folder / RUN / "spec.json")),
    "manifest": of_board("manifest.json", altered, lambda folder: parse_json(Manifest, folder / "manifest.json")),
    "board": of_board("leaderboard.json", altered, lambda folder: parse_json(Board, folder / "leaderboard.json")),
    "curve": of_board(str(RUN / "epochs.jsonl"), altered, lambda folder: read_curve(folder / RUN)),
    "answers": of_board(str(RUN / "predictions.npz"), forged, tables, named=False),
    "predicted": of_board(
        str(RUN / "predictions.npz"), forged, lambda folder: read_predicted(folder / RUN / "predictions.npz")
    ),
    "tables of a record": of_board(str(RUN / "record.json"), altered, tables, named=False),
    "tables of a spec": of_board(str(RUN / "spec.json"), altered, tables, named=False),
    **{
        f"{reader} {file}": of_board(str(RUN / file), forged if file.endswith("npz") else altered, read, named=False)
        for reader, read in (("verified", verified), ("merged", merged))
        for file in ("record.json", "spec.json", "epochs.jsonl", "predictions.npz")
    },
    "verified manifest": of_board("manifest.json", altered, verified, named=False),
    "verified board": of_board("leaderboard.json", altered, verified, named=False),
    "heartbeat": Subject(str(RUN / HEARTBEAT), running, altered, standing, named=False),
    "lease": Subject(str(RUN / LEASE), running, altered, standing, named=False),
    "standing": Subject(str(RUNS / "student" / "seed0" / "record.json"), running, altered, standing, named=False),
    "attempts": Subject("attempts.json", attempts, altered, lambda folder: earlier(RunFolder(folder)), named=False),
    "events": Subject("events", events, altered, reported, named=False),
    "npz": Subject("d.npz", npz, forged, whole_npz),
    "npz batch": Subject("val_data.npz", save_batch, forged, batch("val_data.npz")),
    **{
        f"pickled batch {protocol}": Subject("val_data", pickled(protocol), damaged, batch("val_data"))
        for protocol in (0, 2, 4, 5)
    },
    "described batch": Subject(
        "val_data", pickled(2), damaged, lambda folder: read_batch("x", folder / "val_data", pixels=False)
    ),
    **{
        f"{ending} image": Subject(f"train/{name}/0.{ending}", classes, damaged, folder_of_images)
        for name, ending in (("a", "png"), ("b", "jpg"), ("c", "tiff"), ("d", "webp"), ("e", "bmp"), ("f", "ppm"))
    },
    "foreign checkpoint": foreign("n.pt", packed({"state_dict": STATE, "opt": {"model_s": "resnet8"}})),
    "old foreign checkpoint": foreign("n.pth", packed(STATE, legacy=True)),
    "foreign safetensors": foreign("n.safetensors", save(STATE)),
    "checkpoint": Subject("state", checkpoint, damaged, newest, named=False),
    "teacher manifest": Subject("digits/t/teacher.json", teacher, altered, manifest),
    "teacher weights": Subject("digits/t/weights.safetensors", teacher, damaged, weights),
}

__all__ = ["SUBJECTS", "KdbenchError", "Subject"]
