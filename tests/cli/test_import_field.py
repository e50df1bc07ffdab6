"""Files as RepDistiller, mdistiller and SimKD save them become artefacts that compute what the original network did."""

from __future__ import annotations

import argparse
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import fieldnets
import numpy as np
import pytest
import torch
from commandline import Outcome, failure, installed, kdbench, write_plugin
from fieldnets import State
from torch import Tensor

from kdbench.artefacts import TeacherStore
from kdbench.registry import load
from kdbench.training.foreign import read_checkpoint
from kdbench.training.networks import load_teacher
from kdbench.types import StageShape, Taps

CLASSES = 5
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of these repositories' CIFAR-100 loaders
IMAGES = torch.randint(0, 256, (10, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("field") / "field.npz"
    pixels, labels = IMAGES.permute(0, 2, 3, 1).numpy(), np.arange(10) % CLASSES
    np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    return path


@pytest.fixture
def words(archive: Path) -> Callable[..., tuple[object, ...]]:
    return lambda file, *more: ("teacher", "import", file, "--dataset", f"npz:{archive}", "--threads", 1, *more)


@pytest.fixture
def import_(words: Callable[..., tuple[object, ...]]) -> Callable[..., Outcome]:
    def run(file: object, *more: object) -> Outcome:
        outcome = kdbench(*words(file, "--normalisation", "cifar100", *more))
        assert outcome.code == 0, outcome
        return outcome

    return run


@pytest.fixture
def refused(words: Callable[..., tuple[object, ...]]) -> Callable[..., str]:
    return lambda file, *more: failure(*words(file, *more))


def sgd(state: State) -> dict[str, object]:
    """Return what SGD's state holds: a momentum per weight and, where NumPy counted the decays, its numbers."""
    rate = 0.05 * 0.1 ** np.sum(np.asarray([150, 180, 210]) < 240)
    assert isinstance(rate, np.float64)
    buffers = {index: {"momentum_buffer": torch.zeros(2)} for index in range(3)}
    return {"state": buffers, "param_groups": [{"lr": rate, "nesterov": False, "params": list(range(len(state)))}]}


def repdistiller(state: State) -> object:
    return {"epoch": 240, "model": state, "best_acc": torch.tensor(74.3), "optimizer": sgd(state)}


def repdistiller_last(state: State, model: str) -> object:
    options = argparse.Namespace(model=model, learning_rate=0.05, lr_decay_epochs=[150, 180, 210], model_path="./save")
    return {"opt": options, "model": state, "optimizer": sgd(state)}


def simkd(state: State) -> object:
    return {"epoch": 231, "best_acc": np.float32(79.4), "model": prefixed(state, "module.")}


def distiller(student: State, teacher: State | None = None, **helpers: State) -> object:
    """Return mdistiller's file of a whole distiller in data-parallel training."""
    parts = {"student": student, **({} if teacher is None else {"teacher": teacher}), **helpers}
    model = {f"module.{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
    return {"epoch": 240, "model": model, "optimizer": sgd(student), "best_acc": torch.tensor([76.3])}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def saved(tree: object, path: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(tree, path)
    return path


def assert_computes(name: str, state: State, artefact: str) -> None:
    """The artefact's logits, embedding and every stage, both sides of the activation, are those of the state dict."""
    (path,) = Path("teachers").glob(f"*/{artefact}")
    store = TeacherStore(Path("teachers"))
    (manifest,) = (m for m in store.all() if m.name == artefact)
    assert manifest.backbone == name
    network = load_teacher(store, manifest, load().backbones[name], StageShape((3, 32, 32)))
    with torch.no_grad():
        got = network(IMAGES / 255, Taps("all", pre_activation=True, embedding=True))
    x = (IMAGES / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    after, before, embedding, logits = fieldnets.forward_of(name)(state, x)
    assert len(got.stages) == len(after)
    assert got.embedding is not None
    pairs: list[tuple[Tensor, Tensor]] = [*zip(got.stages, after, strict=True), (got.embedding, embedding)]
    pairs += [*zip(got.pre_stages[1:], before, strict=True), (got.logits, logits)]
    for ours, theirs in pairs:
        assert theirs.std() > 1e-3  # something to compare
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    expected = 100 * float((logits.argmax(1) == torch.arange(10) % CLASSES).float().mean())
    assert json.loads((path / "teacher.json").read_text(encoding="utf-8"))["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("name", fieldnets.KEYS)
def test_keys_and_shapes_are_those_of_the_repositories(name: str) -> None:
    with torch.device("meta"):
        own = load().backbones[name].build(100, StageShape((3, 32, 32))).state_dict()
    assert {key: tuple(value.shape) for key, value in own.items()} == dict(fieldnets.KEYS[name](100))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet8", "16x32x32 16x32x32 32x16x16 64x8x8"),
        ("resnet32x4", "32x32x32 64x32x32 128x16x16 256x8x8"),
        ("wrn_16_2", "16x32x32 32x32x32 64x16x16 128x8x8"),
        ("vgg13", "64x32x32 128x16x16 256x8x8 512x4x4 512x4x4"),
        ("MobileNetV2", "16x16x16 12x16x16 16x8x8 48x4x4 160x2x2"),
        ("ShuffleV1", "24x32x32 240x16x16 480x8x8 960x4x4"),
        ("ShuffleV2", "24x32x32 116x16x16 232x8x8 464x4x4"),
        ("ResNet18", "64x32x32 64x32x32 128x16x16 256x8x8 512x4x4"),
        ("ResNet50", "64x32x32 256x32x32 512x16x16 1024x8x8 2048x4x4"),
    ],
)
def test_a_teacher_of_repdistiller(name: str, shapes: str, import_: Callable[..., Outcome]) -> None:
    state = fieldnets.filled(name, CLASSES)
    after = fieldnets.forward_of(name)(state, torch.zeros(1, 3, 32, 32))[0]
    assert ["x".join(map(str, stage.shape[1:])) for stage in after] == shapes.split()
    outcome = import_(saved(repdistiller(state), f"{name}_vanilla/ckpt_epoch_240.pth"))
    assert outcome.out.splitlines()[0] == f"fits backbone {name}"
    assert_computes(name, state, "ckpt_epoch_240")


FORMS: dict[str, tuple[str, Callable[[State], object]]] = {
    "last file of RepDistiller": ("resnet8/resnet8_last.pth", lambda s: repdistiller_last(s, "resnet8")),
    "SimKD, data-parallel": ("resnet8_vanilla_cifar100_trial_0/resnet8_best.pth", simkd),
    "mdistiller's student": ("kd,res20,res8/student_best", lambda s: {"model": s}),
    "mdistiller without teacher": ("vanilla,res8/best", distiller),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_three_repositories(form: str, import_: Callable[..., Outcome]) -> None:
    path, tree_of = FORMS[form]
    state = fieldnets.filled("resnet8", CLASSES)
    outcome = import_(saved(tree_of(state), path))
    assert [line.split(":")[0] for line in outcome.out.splitlines()] == [
        "fits backbone resnet8",
        f"imported {Path(path).stem}",
    ]
    assert_computes("resnet8", state, Path(path).stem)


@pytest.mark.parametrize("form", ["legacy", "NumPy 1"])
def test_files_of_older_libraries(form: str, import_: Callable[..., Outcome]) -> None:
    state = fieldnets.filled("resnet8", CLASSES)
    tree = repdistiller_last(state, "resnet8")
    if form == "legacy":
        torch.save(tree, "resnet8_last.pth", _use_new_zipfile_serialization=False)
    else:
        buffer = io.BytesIO()
        torch.save(tree, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile("resnet8_last.pth", "w") as new:
            for item in old.namelist():
                data = old.read(item)
                assert (b"numpy._core.multiarray" in data) == item.endswith("data.pkl")
                new.writestr(item, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    import_("resnet8_last.pth")
    assert_computes("resnet8", state, "resnet8_last")


def test_a_distiller_file_is_two_networks(import_: Callable[..., Outcome], refused: Callable[..., str]) -> None:
    student, teacher = fieldnets.filled("resnet8", CLASSES), fieldnets.filled("wrn_16_2", CLASSES, seed=1)
    helper = {"conv.weight": torch.zeros(2, 2, 1, 1), "bn.weight": torch.zeros(2)}
    file = saved(distiller(student, teacher, conv_reg=helper, memory={"bank": torch.zeros(3)}), "kd,wrn,res8/best")
    message = refused(file)
    assert message == (
        f"{file}: holds several networks: student (fits resnet8), teacher (fits wrn_16_2); say which with --part"
    )
    assert refused(file, "--backbone", "vgg8") == message
    left = "left out, as it is not part of the network: conv_reg, memory (a network that was trained to be used"
    outcome = import_(file, "--part", "teacher")
    assert outcome.out.startswith(left)
    assert_computes("wrn_16_2", teacher, "best-teacher")
    import_(file, "--part", "student")
    assert_computes("resnet8", student, "best-student")
    outcome = import_(file, "--backbone", "resnet8")
    assert "\npart student: the only one that fits backbone resnet8\n" in outcome.out
    assert_computes("resnet8", student, "best")


def test_parts_that_cannot_be_told_apart(import_: Callable[..., Outcome], refused: Callable[..., str]) -> None:
    first, second = fieldnets.filled("resnet8", CLASSES), fieldnets.filled("resnet8", CLASSES, seed=1)
    file = saved(distiller(first, second), "best")
    assert "student (fits resnet8), teacher (fits resnet8)" in refused(file, "--backbone", "resnet8")
    odd = saved({"student": {"w": torch.zeros(1)}, "teacher": first}, "odd")
    assert "student (1 tensors, fits no registered backbone), teacher (fits resnet8)" in refused(odd)
    assert "best: --part assistant: no such part in the file; it holds student, teacher" in refused(
        file, "--part", "assistant"
    )
    import_(file, "--part", "teacher")
    assert_computes("resnet8", second, "best-teacher")
    import_(odd, "--part", "teacher")
    assert_computes("resnet8", first, "odd-teacher")


def test_a_part_of_a_file_of_one_network(import_: Callable[..., Outcome], refused: Callable[..., str]) -> None:
    state = fieldnets.filled("resnet8", CLASSES)
    plain, whole = saved({"model": state}, "plain"), saved(distiller(state), "whole")
    assert refused(plain, "--part", "student") == (
        "plain: --part student: no such part in the file; it holds one network, whose part it does not say; leave "
        "--part out"
    )
    assert refused(whole, "--part", "teacher") == "whole: --part teacher: no such part in the file; it holds student"
    import_(whole, "--part", "student")
    assert_computes("resnet8", state, "whole-student")


def test_a_projector_beside_the_network_is_named(import_: Callable[..., Outcome]) -> None:
    state = fieldnets.filled("resnet8", CLASSES)
    tree = {"epoch": 1, "model": state, "best_acc": 3.0, "proj": {"module.conv.weight": torch.zeros(4, 2, 1, 1)}}
    outcome = import_(saved(tree, "S:resnet8_T:resnet32x4_cifar100_simkd_r:0.0_a:0.0_b:1.0_0/resnet8_best.pth"))
    assert outcome.out.startswith("left out, as it is not part of the network: proj (")
    assert_computes("resnet8", state, "resnet8_best")


def test_a_network_of_theirs_that_is_none_of_ours(refused: Callable[..., str]) -> None:
    keys = dict(fieldnets.resnet_keys(38, (16, 32, 64, 128), CLASSES))
    file = saved(simkd({key: torch.zeros(shape) for key, shape in keys.items()}), "resnet38x2_vanilla/resnet38x2.pth")
    assert f"{file}: fits no registered backbone with 5 classes; its keys: conv1.weight, " in refused(file)


TWINS = """
import dataclasses
import kdbench
from kdbench.backbones import resnet_cifar

@kdbench.hookimpl
def kdbench_backbones():
    (own,) = (b for b in resnet_cifar.kdbench_backbones() if b.name == "resnet8")
    return [dataclasses.replace(own, name=name) for name in ("twin", "twin_b")]
"""
TOLD: dict[str, tuple[str, Callable[[State], object], str]] = {
    "options": ("resnet8/x.pth", lambda s: repdistiller_last(s, "twin"), "'model' in the file says twin"),
    "folder": ("twin_b_vanilla/ckpt_epoch_240.pth", repdistiller, "the folder's name says twin_b"),
    "options that fit nothing": ("twin/x.pth", lambda s: repdistiller_last(s, "vgg8"), "the folder's name says twin"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_names_tell_equal_backbones_apart(kind: str, import_: Callable[..., Outcome], tmp_path: Path) -> None:
    path, tree_of, why = TOLD[kind]
    with installed(write_plugin(tmp_path / "site", "twins", TWINS)):
        outcome = import_(saved(tree_of(fieldnets.filled("resnet8", CLASSES)), path))
    first, second, _ = outcome.out.splitlines()
    assert first == f"fits resnet8 and twin and twin_b; {why}"
    assert second == f"fits backbone {why.split()[-1]}"


def test_the_teacher_of_a_pair_is_not_named_by_the_student(import_: Callable[..., Outcome], tmp_path: Path) -> None:
    student, teacher = fieldnets.filled("resnet14", CLASSES), fieldnets.filled("resnet8", CLASSES)
    file = saved(distiller(student, teacher), "kd,twin_b,res14/twin_best.pth")
    with installed(write_plugin(tmp_path / "site", "twins", TWINS)):
        outcome = import_(file, "--part", "teacher")
    assert "; the folder's name says twin_b\n" in outcome.out


def test_equal_backbones_that_nothing_names(refused: Callable[..., str], tmp_path: Path) -> None:
    file = saved(repdistiller(fieldnets.filled("resnet8", CLASSES)), "models/twinned.pth")
    with installed(write_plugin(tmp_path / "site", "twins", TWINS)):
        assert refused(file).startswith(f"{file}: fits resnet8, twin, twin_b with 5 classes; its keys: ")


def test_a_backbone_by_its_other_name(import_: Callable[..., Outcome], refused: Callable[..., str]) -> None:
    file = saved(repdistiller(fieldnets.filled("MobileNetV2", CLASSES)), "ckpt_epoch_240.pth")
    outcome = import_(file, "--backbone", "mobile_half")
    assert outcome.out.startswith("mobile_half is backbone MobileNetV2 here\nimported ckpt_epoch_240: MobileNetV2, ")
    assert "unknown backbone 'mobile_full'" in refused(file, "--backbone", "mobile_full", "--name", "x")


class Options(argparse.Namespace):
    """A subclass, of which nobody knows what it does when it is built."""


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


HOSTILE: dict[str, tuple[object, str]] = {
    "subclass of Namespace": (Options(model="resnet8"), f"{Options.__module__}.Options"),
    "code within a Namespace": (argparse.Namespace(model=Calls(os.mkdir, "owned")), "posix.mkdir"),
    "code as a Namespace's argument": (Calls(argparse.Namespace, Calls(os.mkdir, "owned")), "posix.mkdir"),
    "function": (argparse.Namespace(function=os.getcwd), "posix.getcwd"),
    "parser": (Calls(argparse.FileType, "w"), "argparse.FileType"),
    "built-in": (Calls(eval, "__import__('os').mkdir('owned')"), "eval"),
    "array of objects": (np.array([object()], dtype=object), "numpy._core.multiarray._reconstruct"),
    "NumPy's loader": (Calls(np.load, "x.npy"), "numpy.load"),
    "path": (Path("x"), "pathlib.PosixPath"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_all_else_is_refused(kind: str, refused: Callable[..., str]) -> None:
    item, name = HOSTILE[kind]
    tree = {"opt": item, "model": fieldnets.filled("resnet8", CLASSES)}
    before = set(torch.serialization.get_safe_globals())
    message = refused(saved(tree, "n.pth"))
    assert message == (
        f"n.pth: holds more than tensors ({name}), and kdbench runs no code from files; save only the state dict "
        "(torch.save(model.state_dict(), ...)) with the program that made it"
    )
    assert not Path("owned").exists()
    assert set(torch.serialization.get_safe_globals()) == before
    torch.save({"opt": argparse.Namespace()}, "m.pth")
    with pytest.raises(Exception, match=r"argparse\.Namespace"):  # allowed within the import only
        torch.load("m.pth", weights_only=True)


def test_what_is_let_through_is_data_only() -> None:
    odd = {
        "type": np.dtype("O"),
        "type of nonsense": Calls(np.dtype, "O", "no such argument", 3, [{}]),  # NumPy itself would raise
        "number": np.float64(2),
        "truth": np.bool_(True),
    }
    names = argparse.Namespace(model="resnet8", other=[1, {"model_t": "vgg8"}], model_s=3)
    names.__dict__["__class__"] = "x"
    torch.save({"args": names, "model": {"w": torch.ones(1)}, "odd": odd}, "n.pth")
    contents = read_checkpoint(Path("n.pth"))
    assert contents.options == {"model": "resnet8"}
    assert list(contents.parts) == [""]
    assert torch.equal(contents.parts[""]["w"], torch.ones(1))


def test_names_in_a_file_cannot_command_the_terminal(
    import_: Callable[..., Outcome], refused: Callable[..., str]
) -> None:
    state = fieldnets.filled("resnet8", CLASSES)
    outcome = import_(saved({"model": state, "a\x1b[2J\n\rb": {"w": torch.zeros(1)}}, "n.pth"))
    assert outcome.out.startswith("left out, as it is not part of the network: a?[2J??b (")
    assert "its keys: x?[2J;" in refused(saved({"x\x1b[2J": torch.zeros(1)}, "m.pth"))
    assert "(found: x?[2J)" in refused(saved({"x\x1b[2J": 1}, "l.pth"))
