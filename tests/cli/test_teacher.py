"""kdbench teacher train, list and verify."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import PROTO, Place, failure, kdbench, snapshot

from kdbench import evaluation
from kdbench.evaluation import Predictions
from kdbench.seal import unsealed

NAME = "resnet14_w8-proto-v3-seed0"


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy of a folder of teachers that a test may change."""
    return Place(tmp_path / "place").with_teachers_of(finished)


def manifest_of(place: Place) -> dict[str, object]:
    (path,) = place.teachers.rglob("teacher.json")
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def train(*more: object) -> tuple[object, ...]:
    words = ("teacher", "train", "resnet14_w8", "--dataset", "digits", "--per-class", 20, "--anchor", PROTO)
    return (*words, "--threads", 1, *more)


def test_train_makes_the_teacher_that_run_makes_and_keeps_it(finished: Place) -> None:
    outcome = kdbench(*train())
    assert outcome.code == 0
    last = outcome.out.splitlines()[-1]
    assert last == f"teacher {NAME}: {manifest_of(finished)['accuracy']:.2f} %"
    mine = Path("teachers/digits-20pc") / NAME
    assert (
        mine.joinpath("weights.safetensors").read_bytes()
        == (finished.teachers / "digits-20pc" / NAME / "weights.safetensors").read_bytes()
    )
    before = snapshot(Path("teachers"))
    assert [name for name in before if "checkpoint" in name or name.endswith(".lock")] == []
    again = kdbench(*train())
    assert (again.code, again.out) == (0, last + "\n")
    assert snapshot(Path("teachers")) == before


def test_train_refuses_a_name_made_by_another_recipe(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        PROTO.read_text(encoding="utf-8").replace("epochs: 3", "epochs: 1").replace("warmup_epochs: 1", "")
    )
    words = [other if word == PROTO else word for word in train("--teachers", place.teachers)]
    message = failure(*words)
    assert message.startswith(f"teacher '{NAME}' in {place.teachers}: was made by another recipe (")
    assert "raise the anchor's version, choose another --teachers folder" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("vgg8x", "--dataset", "digits"),
            "unknown backbone 'vgg8x'. Did you mean 'vgg8'? All: kdbench list backbones",
        ),
        (("vgg8", "--dataset", "digit"), "unknown dataset 'digit'. Did you mean 'digits'?"),
        (("vgg8", "--dataset", "digits", "--anchor", "crdd"), "unknown anchor 'crdd'. Did you mean 'crd'?"),
        (("vgg8", "--dataset", "digits", "--per-class", 500), "--per-class 500: dataset 'digits' has 1198"),
        (("vgg8", "--dataset", "digits", "--seed", -1), "Invalid value for '--seed'"),
        (("vgg8",), "Missing option '--dataset'."),
        (("vgg8", "--dataset", "digits", "--device", "gpu"), "--device gpu: no such device"),
    ],
)
def test_train_refuses(words: tuple[object, ...], message: str) -> None:
    assert message in failure("teacher", "train", *words)
    assert list(Path().iterdir()) == []


def test_several_problems_of_train_at_once() -> None:
    message = failure("teacher", "train", "vgg8x", "--dataset", "digit", "--anchor", "crdd")
    assert len(message.splitlines()) == 3


def test_list(finished: Place) -> None:
    outcome = kdbench("teacher", "list", "--teachers", finished.teachers)
    manifest = manifest_of(finished)
    header, _, row = outcome.out.splitlines()
    assert header.split() == ["name", "backbone", "dataset", "accuracy", "%", "origin", "recipe", "sha256"]
    accuracy, sha256 = f"{manifest['accuracy']:.2f}", str(manifest["sha256"])[:12]
    assert row.split() == [NAME, "resnet14_w8", "digits-20pc", accuracy, "trained", "proto-v3", sha256]
    assert kdbench("list", "teachers", "--teachers", finished.teachers) == outcome


def test_verify_measures_again(finished: Place) -> None:
    manifest = manifest_of(finished)
    right = round(float(str(manifest["accuracy"])) * 5.99)
    expected = f"{NAME} on digits-20pc: {manifest['accuracy']:.2f} % ({right} of 599), sha256 ok\n"
    for words in ((), (NAME,)):
        outcome = kdbench("teacher", "verify", *words, "--teachers", finished.teachers)
        assert (outcome.code, outcome.out, outcome.err) == (0, expected, "")


def _first_right(finished: Place, count: int) -> int:
    (path,) = finished.teachers.rglob("predictions.npz")
    with np.load(path) as archive:
        return int(np.unpackbits(archive["correct"], count=int(archive["count"]))[:count].sum())


@pytest.mark.parametrize(("batch", "batches", "count"), [(7, 3, 21), (598, 1, 598), (1, 1, 1)])
def test_a_truncated_look_says_of_how_many_and_judges_nothing(
    finished: Place, place: Place, batch: int, batches: int, count: int
) -> None:
    (path,) = place.teachers.rglob("teacher.json")
    about, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps({**about, "accuracy": 0.0}), encoding="utf-8")  # would be a problem if it were compared
    words = ("--teachers", place.teachers, "--batch-size", batch, "--max-batches", batches)
    right = _first_right(finished, count)
    assert kdbench("teacher", "verify", *words).out == (
        f"{NAME} on digits-20pc: {100 * right / count:.2f} % ({right} of {count}), sha256 ok; truncated: n = {count} "
        "of 599 test images, not compared with the manifest\n"
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_batches_that_reach_the_end_are_the_whole_check(place: Place, precision: str) -> None:
    (path,) = place.teachers.rglob("teacher.json")
    words = ("--teachers", place.teachers, "--batch-size", 300, "--max-batches", 2, "--precision", precision)
    outcome = kdbench("teacher", "verify", *words)
    assert outcome.out.endswith(
        " of 599), sha256 ok\n" if precision == "fp32" else f" of 599) in {precision}, sha256 ok\n"
    )
    about, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps({**about, "accuracy": 0.0}), encoding="utf-8")
    message = failure("teacher", "verify", *words, code=4)
    more = "" if precision == "fp32" else f"; or {precision} is too coarse for it: try --precision fp32"
    assert message.endswith(f"its manifest says 0.00 %; dataset or artefact changed{more}")


@pytest.mark.parametrize(("precision", "tolerated"), [("fp32", 2), ("bf16", 6)])
def test_how_many_images_may_differ(place: Place, precision: str, tolerated: int) -> None:
    """Of 599: two in float32, one in a hundred in types with a short mantissa."""
    (path,) = place.teachers.rglob("teacher.json")
    about, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    words = ("teacher", "verify", "--teachers", place.teachers, "--precision", precision)
    right = int(kdbench(*words).out.partition("(")[2].partition(" ")[0])
    for more, code in ((tolerated, 0), (tolerated + 1, 4), (-tolerated, 0), (-tolerated - 1, 4)):
        path.write_text(json.dumps({**about, "accuracy": 100 * (right + more) / 599 - 1e-9 * more}), encoding="utf-8")
        assert kdbench(*words).code == code, more


def test_precision_is_that_of_the_forward_passes(finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def evaluate(module: torch.nn.Module, split: object, device: torch.device, batch_size: int) -> Predictions:
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda part, _inputs, output: seen.append(output.dtype) if isinstance(part, torch.nn.Linear) else None
        )
        with hook:
            return original(module, split, device, batch_size)  # type: ignore[arg-type]

    original = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        seen.clear()
        words = ("--teachers", finished.teachers, "--precision", precision, "--max-batches", 1, "--batch-size", 9)
        assert kdbench("teacher", "verify", *words).code == 0
        assert seen == [dtype]


RECIPE = """
name: tiny
backbone: resnet8_w4
dataset: digits
pretrained: true
optimizer: {name: adamw, lr: 0.01, weight_decay: 0.001}
schedule: {name: reduce_on_plateau, epochs: 2}
data: {batch_size: 40, validation_fraction: 0.1}
stopping: {patience: 1}
"""


def test_train_by_a_recipe() -> None:
    Path("tiny.yaml").write_text(RECIPE, encoding="utf-8")
    words = ("teacher", "train", "resnet8_w4", "--dataset", "digits", "--per-class", 20, "--threads", 1)
    message = failure(*words, "--recipe", "tiny.yaml")
    assert message == (
        "backbone 'resnet8_w4' has no pretrained weights; add --scratch, or bring a teacher with kdbench teacher import"
    )
    outcome = kdbench(*words, "--recipe", "tiny.yaml", "--scratch")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].startswith("teacher resnet8_w4-tiny-scratch-v1-seed0: ")
    assert [path.parent.name for path in Path("teachers").rglob("teacher.json")] == ["resnet8_w4-tiny-scratch-v1-seed0"]
    again = kdbench("teacher", "list").out.splitlines()[-1].split()
    assert again[:3] == ["resnet8_w4-tiny-scratch-v1-seed0", "resnet8_w4", "digits-20pc"]
    assert again[4:6] == ["trained", "tiny-scratch-v1"]
    message = failure(*words, "--recipe", "tiny.yaml", "--anchor", "crd")
    assert message == "--recipe and --anchor exclude each other: a recipe is the whole protocol; give one"


def test_verify_without_teachers_is_not_a_success() -> None:
    assert failure("teacher", "verify").startswith("teachers: no teachers there; make one with kdbench teacher train")


def test_verify_of_an_unknown_name(finished: Place) -> None:
    message = failure("teacher", "verify", "resnet14-proto-v3-seed0", "--teachers", finished.teachers)
    assert message == (f"unknown teacher 'resnet14-proto-v3-seed0'. Did you mean '{NAME}'? All: kdbench list teachers")


def test_verify_finds_changed_weights_and_still_checks_the_others(place: Place) -> None:
    folder = place.teachers / "digits-20pc" / NAME
    good = folder.with_name("good")
    shutil.copytree(folder, good)
    about, _ = unsealed(json.loads((good / "teacher.json").read_text(encoding="utf-8")))
    (good / "teacher.json").write_text(json.dumps({**about, "name": "zgood"}), encoding="utf-8")
    good.rename(good.with_name("zgood"))
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 128
    (folder / "weights.safetensors").write_bytes(data)
    outcome = kdbench("teacher", "verify", "--teachers", place.teachers)
    assert outcome.code == 4
    assert outcome.out.startswith("zgood on digits-20pc: ")
    (problem,) = outcome.problems
    assert problem.startswith(f"{folder / 'weights.safetensors'}: corrupt: sha256 is ")


def test_verify_finds_weights_that_do_less_than_the_manifest_says(place: Place) -> None:
    (path,) = place.teachers.rglob("teacher.json")
    about, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps({**about, "accuracy": 99.0}), encoding="utf-8")
    message = failure("teacher", "verify", "--teachers", place.teachers, code=4)
    assert message == (
        f"teacher '{NAME}': {about['accuracy']:.2f} % on the test split, its manifest says 99.00 %; dataset or "
        "artefact changed"
    )


def test_verify_finds_a_changed_dataset() -> None:
    def write(first_pixel: int) -> None:
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
        labels = np.arange(40) % 2
        images[labels == 1] //= 8  # bright and dark: two epochs tell them apart
        images[0, 0, 0] = first_pixel
        np.savez("data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)

    write(0)
    words = ("teacher", "train", "resnet8_w4", "--dataset", "npz:data.npz", "--anchor", PROTO, "--threads", 1)
    assert kdbench(*words).code == 0
    assert kdbench("teacher", "verify").out.endswith(", sha256 ok\n")
    write(1)  # one training and test pixel: the accuracy alone would hardly tell
    message = failure("teacher", "verify", code=4)
    assert "dataset 'npz:data.npz' has changed since it was made" in message
    Path("data.npz").unlink()
    assert "npz:data.npz: no such file" in failure("teacher", "verify", code=4)


def test_a_broken_manifest_is_named(place: Place) -> None:
    (path,) = place.teachers.rglob("teacher.json")
    path.write_text("{", encoding="utf-8")
    for command in ("list", "verify"):
        message = failure("teacher", command, "--teachers", place.teachers)
        assert message.startswith(f"{path}: not JSON (half-written or foreign)")
