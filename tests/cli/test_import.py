"""kdbench teacher import: wrappers, prefixes, renamed keys, which backbone it is, and its input constants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Outcome, failure, installed, kdbench, write_plugin
from safetensors.torch import save_file
from torch import Tensor

from kdbench.registry import load
from kdbench.training.importing import CONSTANTS
from kdbench.types import StageShape

State = dict[str, Tensor]
BACKBONE = "resnet8_w4"
TWIN = """
import dataclasses
import kdbench
from kdbench.backbones import resnet_cifar

@kdbench.hookimpl
def kdbench_backbones():
    return [dataclasses.replace(b, name="twin") for b in resnet_cifar.kdbench_backbones() if b.name == "resnet8_w4"]
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """Return an archive whose labels are what a certain network says under ImageNet's constants, and its weights."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (90, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = (images * torch.rand(90, 3, 1, 1, generator=generator)).to(torch.uint8)  # colours, to tell them apart
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = load().backbones[BACKBONE].build(3, StageShape((3, 32, 32))).eval()
    network.set_normalisation(*CONSTANTS["imagenet"])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
        logits = network(images / 255).logits
        network.state_dict()[next(name for name, p in network.named_parameters() if p.shape == (3,))].sub_(
            logits.mean(0)
        )
        labels = network(images / 255).logits.argmax(1).numpy()
    assert len(np.unique(labels)) == 3
    path = tmp_path_factory.mktemp("toy") / "toy.npz"
    pixels = images.permute(0, 2, 3, 1).numpy()
    np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    return path, {key: value.clone() for key, value in network.state_dict().items()}


@pytest.fixture
def import_(toy: tuple[Path, State]) -> Callable[..., Outcome]:
    return lambda file, *more: kdbench("teacher", "import", file, "--dataset", f"npz:{toy[0]}", "--threads", 1, *more)


@pytest.fixture
def refused(toy: tuple[Path, State]) -> Callable[..., str]:
    def refuse(file: object, *more: object) -> str:
        message = failure("teacher", "import", file, "--dataset", f"npz:{toy[0]}", "--threads", 1, *more)
        assert not list(Path("teachers").rglob("*"))
        return message

    return refuse


def manifest(name: str) -> Any:
    (path,) = Path("teachers").glob(f"*/{name}/teacher.json")
    return json.loads(path.read_text(encoding="utf-8"))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


WRAPPED: dict[str, Callable[[State], object]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 240, "best_acc": torch.tensor(71.0)},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "net": lambda s: {"net": s, "acc": 95.5},
    "nested": lambda s: {"model": {"state_dict": prefixed(s, "module.")}},
    "module": lambda s: prefixed(s, "module."),
    "module.model": lambda s: {"state_dict": prefixed(s, "module.model.")},
    "compiled": lambda s: {"model_state_dict": prefixed(s, "_orig_mod.")},
    "half": lambda s: {key: value.half() if value.is_floating_point() else value for key, value in s.items()},
    "no counters": lambda s: {key: value for key, value in s.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_forms_of_a_state_dict(form: str, toy: tuple[Path, State], import_: Callable[..., Outcome]) -> None:
    torch.save(WRAPPED[form](toy[1]), "net.pth")
    outcome = import_("net.pth", "--normalisation", "imagenet")
    assert outcome.code == 0, outcome
    first, last = outcome.out.splitlines()
    assert first == f"fits backbone {BACKBONE}"
    assert last.startswith(f"imported net: {BACKBONE}, ")
    if form != "half":
        assert "100.00 % on 90 test images, sha256 " in last
        assert manifest("net")["accuracy"] == 100.0
    weights = next(Path("teachers").rglob("weights.safetensors")).read_bytes()
    outcome = kdbench("teacher", "verify", "net")
    assert outcome.code == 0, outcome
    assert next(Path("teachers").rglob("weights.safetensors")).read_bytes() == weights


def test_safetensors_and_legacy_files_give_the_same_artefact(
    toy: tuple[Path, State], import_: Callable[..., Outcome]
) -> None:
    save_file({key: value.clone() for key, value in toy[1].items()}, "a.safetensors")
    torch.save(toy[1], "b.pt", _use_new_zipfile_serialization=False)
    torch.save(toy[1], "c.th")
    for file in ("a.safetensors", "b.pt", "c.th"):
        assert import_(file, "--normalisation", "imagenet").code == 0
    assert len({manifest(name)["sha256"] for name in "abc"}) == 1
    assert len({manifest(name)["recipe_sha256"] for name in "abc"}) == 3
    assert (manifest("a")["origin"], manifest("a")["recipe"]) == ("imported", "a.safetensors")


def test_auto_normalisation_finds_the_constants_it_was_trained_with(
    toy: tuple[Path, State], import_: Callable[..., Outcome]
) -> None:
    torch.save(toy[1], "net.pt")
    outcome = import_("net.pt")
    assert outcome.code == 0
    note = outcome.out.splitlines()[1]
    assert note.startswith("normalisation imagenet: smallest loss on 90 training images (imagenet ")
    losses = [part.rsplit(" ", 1) for part in note.partition("images (")[2].rstrip(")").split(", ")]
    assert sorted(name for name, _ in losses) == sorted(["dataset", *CONSTANTS])
    assert [float(loss) for _, loss in losses] == sorted(float(loss) for _, loss in losses)
    assert manifest("net")["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert manifest("net")["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_six_numbers_or_a_name_set_the_normalisation(toy: tuple[Path, State], import_: Callable[..., Outcome]) -> None:
    torch.save(toy[1], "net.pt")
    numbers = "0.485,0.456,0.406,0.229,0.224,0.225"
    assert "100.00 %" in import_("net.pt", "--normalisation", numbers, "--name", "six").out
    assert import_("net.pt", "--normalisation", "half", "--name", "half").code == 0
    assert manifest("six")["sha256"] == manifest("half")["sha256"]
    assert manifest("half")["mean"] == [0.5] * 3
    assert import_("net.pt", "--normalisation", "none", "--name", "none").code == 0
    assert (manifest("none")["mean"], manifest("none")["std"]) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    "text", ["imagenet1k", "0.5,0.5", "0,0,0,1,1,0", "0,0,0,1,1,-1", "a,b,c,d,e,f", "1,1,1,nan,1,1", "inf,0,0,1,1,1"]
)
def test_wrong_normalisation(text: str, toy: tuple[Path, State], refused: Callable[..., str]) -> None:
    torch.save(toy[1], "net.pt")
    message = refused("net.pt", "--normalisation", text)
    assert message.startswith(f"--normalisation {text}: give dataset, imagenet, ")
    assert message.endswith("auto, or 6 numbers: means, then stds > 0")


def test_renamed_keys(toy: tuple[Path, State], import_: Callable[..., Outcome], refused: Callable[..., str]) -> None:
    names = list(toy[1])
    torch.save({"stem.kernel" if key == names[0] else key: value for key, value in toy[1].items()}, "net.pt")
    message = refused("net.pt")
    assert message.startswith("net.pt: fits no registered backbone with 3 classes; its keys: stem.kernel, ")
    assert message.endswith("; say which with --backbone, or rename keys with --map")
    Path("map.yaml").write_text(f"stem.kernal: {names[0]}\n", encoding="utf-8")
    assert refused("net.pt", "--map", "map.yaml").startswith("map.yaml: stem.kernal: no such key in the checkpoint;")
    Path("map.yaml").write_text(f"stem.kernel: {names[1]}\n", encoding="utf-8")
    assert refused("net.pt", "--map", "map.yaml") == (
        f"map.yaml: {names[1]}: two keys of the checkpoint get this name; rename each to its own"
    )
    assert "cannot be read" in refused("net.pt", "--map", "nowhere.yaml")
    Path("map.yaml").write_text(f"stem.kernel: {names[0]}\n", encoding="utf-8")
    outcome = import_("net.pt", "--map", "map.yaml", "--normalisation", "imagenet")
    assert "100.00 % on 90 test images" in outcome.out


def test_two_backbones_that_fit_have_to_be_told_apart(
    toy: tuple[Path, State], import_: Callable[..., Outcome], refused: Callable[..., str], tmp_path: Path
) -> None:
    torch.save(toy[1], "net.pt")
    with installed(write_plugin(tmp_path / "site", "twin_backbone", TWIN)):
        assert refused("net.pt").startswith("net.pt: fits resnet8_w4, twin with 3 classes; its keys: ")
        outcome = import_("net.pt", "--backbone", "twin", "--normalisation", "imagenet")
        assert outcome.out.startswith("imported net: twin, 100.00 %")


def test_what_does_not_fit_is_listed(toy: tuple[Path, State], refused: Callable[..., str]) -> None:
    names = sorted(key for key, value in toy[1].items() if value.dim() == 4)
    state = {**toy[1], "extra.weight": torch.zeros(2), names[1]: torch.zeros(1, 2, 3, 3)}
    shape = tuple(toy[1][names[1]].shape)
    del state[names[0]]
    torch.save(state, "net.pt")
    message = refused("net.pt", "--backbone", BACKBONE)
    assert message.startswith(f"net.pt: backbone '{BACKBONE}': the checkpoint does not fit ")
    assert f"missing: {names[0]};" in message
    assert "unknown: extra.weight;" in message
    assert f"other shape: {names[1]} is (1, 2, 3, 3), needs {shape}" in message


def test_a_backbone_that_cannot_be_built_here_does_not_stop_the_search(
    toy: tuple[Path, State], import_: Callable[..., Outcome], tmp_path: Path
) -> None:
    broken = TWIN.replace('name="twin")', 'name="twin", build=lambda classes, channels: 1 / 0)')
    torch.save(toy[1], "net.pt")
    with installed(write_plugin(tmp_path / "site", "broken_backbone", broken)):
        assert import_("net.pt", "--normalisation", "imagenet").out.startswith(f"fits backbone {BACKBONE}\n")


def test_other_number_of_classes(toy: tuple[Path, State]) -> None:
    torch.save(toy[1], "net.pt")
    assert "fits no registered backbone with 10 classes" in failure(
        "teacher", "import", "net.pt", "--dataset", "digits"
    )


def test_a_name_is_kept_by_the_first_file(toy: tuple[Path, State], import_: Callable[..., Outcome]) -> None:
    torch.save(toy[1], "net.pt")
    assert import_("net.pt", "--normalisation", "imagenet").code == 0
    again = import_("net.pt")
    assert again.code == 0
    assert again.out.startswith("net was imported before from the same file; to import it otherwise, give --name\n")
    torch.save({"model": toy[1]}, "net.pt")
    message = failure("teacher", "import", "net.pt", "--dataset", f"npz:{toy[0]}")
    assert message == "teacher 'net': exists already, from another file or recipe; give --name"
    assert import_("net.pt", "--name", "net2", "--normalisation", "imagenet").code == 0
    assert manifest("net2")["sha256"] == manifest("net")["sha256"]


@pytest.mark.parametrize("name", ["a b", "../up", "", "-x", "é", "x" * 65])
def test_names_are_checked_before_anything_is_read(name: str, refused: Callable[..., str]) -> None:
    if name:
        assert f"--name '{name}': not the name of an artefact" in refused("nothing.pt", f"--name={name}")
    else:
        torch.save({}, "my net (1).pt")
        assert "--name 'my net (1)': not the name of an artefact" in refused("my net (1).pt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing.pt",), "nothing.pt: no such file; give the path of a checkpoint"),
        ((".", "--name", "x"), ".: no such file; give the path of a checkpoint"),
        (("net.pt", "--backbone", "resnet8w4"), "unknown backbone 'resnet8w4'. Did you mean 'resnet8_w4'?"),
        (("net.pt", "--device", "cuda:77"), "--device cuda:77: this machine has"),
    ],
)
def test_wrong_words(
    words: tuple[str, ...], message: str, toy: tuple[Path, State], refused: Callable[..., str]
) -> None:
    torch.save(toy[1], "net.pt")
    assert message in refused(*words)


def test_what_a_killed_import_left_is_swept(toy: tuple[Path, State], import_: Callable[..., Outcome]) -> None:
    torch.save(toy[1], "net.pth")
    assert import_("net.pth").code == 0
    (path,) = Path("teachers").rglob("teacher.json")
    path.unlink()  # the last file an import writes
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    left = path.with_name(f".tmp-{done.pid}-1-weights.safetensors")
    theirs = path.with_name(f".tmp-{os.getpid()}-1-weights.safetensors")  # somebody is at it
    left.touch()
    theirs.touch()
    assert import_("net.pth").code == 0
    assert path.exists()
    assert not left.exists()
    assert theirs.exists()
