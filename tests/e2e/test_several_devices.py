"""Runs on two devices through the command line: torchrun's agent, the local engine, signals, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, failure, finish, installed, kdbench, start, write_plugin

from kdbench.records import Record
from kdbench.seal import sealed

TWO = ("--devices-per-run", 2, "--device", "cpu", "--threads", 1)


def run(place: Place) -> Any:
    """Train the probe on two devices."""
    return finish(start("run", *place.cells("probe", 1), *TWO), seconds=250)


@pytest.fixture(scope="module")
def on_two(finished: Place, probe_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return a run that nothing interrupted."""
    place = Place(tmp_path_factory.mktemp("on_two")).with_teachers_of(finished)
    with installed(probe_site):
        outcome = run(place)
    assert outcome.code == 0, outcome
    return place


@pytest.mark.slow
def test_a_run_on_two_devices(on_two: Place) -> None:
    record = on_two.record("probe")
    assert (record["status"], record["environment"]["world_size"]) == ("ok", 2)
    assert len(record["attempts"]) == 1
    assert not list(on_two.runs.rglob("*.lock"))


@pytest.mark.slow
def test_a_team_that_is_stopped_and_then_loses_a_member_goes_on_and_ends_with_the_same_bits(
    on_two: Place, finished: Place, orders: Callable[..., Path], tmp_path: Path
) -> None:
    """One command, whose driver starts the run three times."""
    place = Place(tmp_path).with_teachers_of(finished)
    path = orders("terminate_driver", epoch=1, step=4)
    then = {"what": "kill", "epoch": 2, "step": 1, "once": True}
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "then": then}), encoding="utf-8")
    ended = run(place)
    assert ended.code == 0, ended
    assert not path.exists()
    for name in ("student.safetensors", "predictions.npz"):
        assert (place.folder("probe") / name).read_bytes() == (on_two.folder("probe") / name).read_bytes()
    stopped, killed, last = place.record("probe")["attempts"]
    assert stopped["outcome"].startswith("Interrupted: stopped")
    assert killed["outcome"].startswith("PeerLost: ")
    assert (last["outcome"], last["from_epoch"]) == ("ok", 2)


def test_what_several_devices_cannot_train_is_refused_before_any_work(tmp_path: Path) -> None:
    place = Place(tmp_path)
    words = place.cells("student", 1, "--device", "cpu")
    assert failure("plan", *words, "--devices-per-run", 7) == (
        "nothing to run: student on tiny: a batch of 16 images cannot be divided equally among 7 devices; choose "
        "another --devices-per-run"
    )
    assert failure("run", *words, "--devices-per-run", 2, "--lanes", 3) == (
        "--devices-per-run 2: --lanes 3: several devices train one run at a time; leave --lanes out"
    )
    assert failure("run", *words, "--devices-per-run", 2, "--executor", "inline") == (
        "--devices-per-run 2: --executor inline has one process; leave it out"
    )
    assert failure("run", *words, "--devices-per-run", 2, "--out", "memory://runs") == (
        "--devices-per-run 2: --out memory://runs: a run at a URL is trained in the copy of one process; give a "
        "folder, or leave --devices-per-run out"
    )
    assert not place.runs.exists()


SILENT = """
import kdbench
from kdbench.methods.vanilla_kd import VanillaKD

class Silent(VanillaKD):
    name = "silent"
    baseline = False
    distributed = None

@kdbench.hookimpl
def kdbench_methods():
    return [Silent]
"""


def test_a_method_that_does_not_say_how_is_left_out_with_the_reason(tmp_path: Path) -> None:
    words = Place(tmp_path).cells("silent,student", 1, "--device", "cpu", "--no-measure")
    with installed(write_plugin(tmp_path / "site", "silent_method", SILENT)):
        outcome = kdbench("plan", *words, "--devices-per-run", 2)
    assert outcome.code == 0, outcome
    assert "skipped silent on tiny: does not say how it trains on 2 devices" in outcome.out
    assert "each run has 2 devices; times and memory are those of one" in outcome.out
    assert "1 runs, 1 to do" in outcome.out


def test_a_run_on_two_devices_is_not_repeated_on_one(finished: Place, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder("student"), folder)
    tree = finished.record("student")
    del tree["seal"]
    tree["environment"]["world_size"] = 2
    (folder / "record.json").write_text(sealed(Record.model_validate(tree)), encoding="utf-8")
    message = failure("verify", "--rerun", folder, "--teachers", finished.teachers)
    assert "was trained on 2 devices together, and --rerun has one, which gives other bits" in message
