"""kdbench run when it cannot: unwritable folders, other configurations, wrong or missing teachers, busy runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import METHODS, Place, failure, installed, kdbench, snapshot, write_plugin

from kdbench.seal import unsealed
from kdbench.store import RunFolder

ONE_PROCESS = ("--threads", 1, "--executor", "inline")


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy of finished runs that a test may change."""
    shutil.copytree(finished.root, tmp_path / "place")
    return Place(tmp_path / "place")


def edit_manifest(place: Place, **changes: Any) -> Path:
    """Change the manifest of the one teacher there is."""
    (path,) = place.teachers.rglob("teacher.json")
    about, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps({**about, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("below", ["file", "file/runs"])
def test_an_unwritable_out_is_refused_before_any_work(
    finished: Place, tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **_options: object) -> None:
        raise AssertionError("nothing is measured for runs that cannot be written")

    monkeypatch.setattr("kdbench.cli.expecting.expect", measured)
    (tmp_path / "file").write_text("keep me", encoding="utf-8")
    before = snapshot(finished.root)
    words = finished.cells(METHODS, 1)
    words[words.index("--out") + 1] = tmp_path / below
    message = failure("run", *words, *ONE_PROCESS, code=73)
    assert message.startswith(f"{tmp_path / below}: cannot be written (")
    assert message.endswith("; choose another folder and start again")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "keep me"
    assert snapshot(finished.root) == before


def test_a_full_disk_keeps_what_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(place.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = failure("run", *place.cells(METHODS, 3), *ONE_PROCESS, code=73)
    assert message.endswith("spec.json: cannot be written (No space left on device); free some space and start again")
    assert snapshot(place.root) == before


def test_another_configuration_is_refused_and_nothing_changes(place: Place) -> None:
    before = snapshot(place.root)
    message = failure("run", *place.cells("student,dkd", 3, "--set", "dkd.beta=1"), *ONE_PROCESS)
    assert message == (
        f"{place.folder('dkd')}: holds a run of another configuration (beta 8.0 there, 1.0 now); choose another --out"
    )
    assert snapshot(place.root) == before  # not even seed 2 of the student was begun


def test_another_teacher_is_another_configuration(place: Place) -> None:
    path = edit_manifest(place, name="other")
    path.parent.rename(path.parent.with_name("other"))
    message = failure("run", *place.cells("dkd", 1, "--teacher", "other"), *ONE_PROCESS)
    assert "holds a run of another configuration" in message


def test_missing_teachers_are_named_when_they_may_not_be_trained(tmp_path: Path) -> None:
    place = Place(tmp_path)
    message = failure("run", *place.cells(METHODS, 2), *ONE_PROCESS, "--no-train-teachers")
    assert message == (
        "teachers missing: resnet14_w8-proto-v3-seed0 for digits-20pc; leave out --no-train-teachers, or make them "
        "with kdbench teacher train"
    )
    assert not place.teachers.exists()
    assert not list(place.runs.rglob("record.json"))
    outcome = kdbench("run", *place.cells("student", 1), *ONE_PROCESS, "--no-train-teachers")
    assert outcome.code == 0  # it needs none


def test_an_unknown_teacher_suggests_the_nearest(finished: Place) -> None:
    message = failure("run", *finished.cells("dkd", 1, "--teacher", "resnet14_w8-proto-v3-seed1"), *ONE_PROCESS)
    assert message == (
        f"teacher 'resnet14_w8-proto-v3-seed1' for dataset 'digits-20pc': not in {finished.teachers}. unknown teacher "
        "'resnet14_w8-proto-v3-seed1'. Did you mean 'resnet14_w8-proto-v3-seed0'? All: kdbench list teachers; make it "
        "with kdbench teacher train, or bring it with kdbench teacher import"
    )


def test_a_teacher_of_other_classes_or_backbone_is_refused(place: Place) -> None:
    edit_manifest(place, classes=list("abcde"), backbone="resnet20")
    message = failure("run", *place.cells("dkd", 1, "--teacher", "resnet14_w8-proto-v3-seed0"), *ONE_PROCESS)
    assert message.splitlines() == [
        "--teacher resnet14_w8-proto-v3-seed0: is a resnet20, pair 'tiny' needs a resnet14_w8",
        "--teacher resnet14_w8-proto-v3-seed0: has 5 classes, dataset 'digits' has 10",
    ]


def test_corrupt_weights_of_a_teacher_of_ones_own_stop_the_run(place: Place) -> None:
    (path,) = place.teachers.rglob("weights.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    shutil.rmtree(place.runs)
    message = failure("run", *place.cells("dkd", 1), "--teacher", path.parent.name, *ONE_PROCESS, code=4)
    assert message.startswith(f"{path}: corrupt: sha256 is ")
    assert not list(place.runs.rglob("record.json"))


def test_a_corrupt_teacher_that_a_recipe_makes_is_made_again(place: Place) -> None:
    (path,) = place.teachers.rglob("weights.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    shutil.rmtree(place.runs)
    outcome = kdbench("run", *place.cells("dkd", 1), *ONE_PROCESS)
    assert outcome.code == 0, outcome
    assert path.read_bytes() == whole
    assert path.with_name(f"{path.name}.corrupt").is_file()


def test_a_run_that_somebody_else_is_at_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as somebody:
        somebody.enter_context(RunFolder(place.folder("student", 2)).claimed())
        monkeypatch.setattr("time.sleep", lambda _seconds: somebody.close())  # gives up during the first pause
        outcome = kdbench("run", *place.cells("student", 3), *ONE_PROCESS)
    assert outcome.code == 0, outcome
    assert place.record("student", 2)["status"] == "ok"
    assert "another command is at run proto-v3/digits-20pc/tiny/student/seed2; waiting for it" in caplog.messages


def test_a_half_written_record_is_set_aside_and_the_run_made_again(place: Place, finished: Place) -> None:
    path = place.folder("student") / "record.json"
    path.write_bytes(path.read_bytes()[:200])
    outcome = kdbench("run", *place.cells("student", 2), *ONE_PROCESS)
    assert outcome.code == 0, outcome
    assert place.record("student")["accuracy"] == finished.record("student")["accuracy"]
    assert path.with_name("record.json.corrupt").stat().st_size == 200


PRETRAINED_PAIR = """
from pathlib import Path
import kdbench

@kdbench.hookimpl
def kdbench_pairs():
    return [Path(__file__).with_name("tuned.yaml")]
"""


def test_published_weights_are_fetched_before_any_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_args: object, **_more: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    site = write_plugin(tmp_path / "site", "tuned_pairs", PRETRAINED_PAIR)
    (site / "tuned.yaml").write_text(
        "name: tuned\nstudent: torchvision:resnet18:pretrained\nteachers: [resnet8_w4]\ndataset: digits\n",
        encoding="utf-8",
    )
    place = Place(tmp_path / "place")
    words = place.cells("vanilla_kd", 1)
    words[words.index("--pair") + 1] = "tuned"
    with installed(site):
        message = failure("run", *words, *ONE_PROCESS)
    assert message.startswith("backbone 'torchvision:resnet18': its published weights ResNet18_Weights.IMAGENET1K_V1")
    assert "no route to host" in message
    assert not place.teachers.exists()
