"""``kdbench verify RUN --rerun``: equal bits, or where they end and what that means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import Outcome, Place, failure, finished_place, kdbench, snapshot
from safetensors.torch import load_file, save_file

from kdbench.seal import unsealed
from kdbench.verification.repeated import COUNTED


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """Return a copy of finished runs that may be changed."""
    shutil.copytree(finished.root, tmp_path / "mine")
    return Place(tmp_path / "mine")


@pytest.fixture(scope="session")
def again(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return a store with one run made a second time."""
    finished = finished_place(tmp_path_factory)
    kept = Place(tmp_path_factory.mktemp("again"))
    outcome = verify(finished, "dkd", "--out", kept.runs)
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines() == [
        "weights: student.safetensors equal: ok",
        "predictions: predictions.npz equal: ok",
        "epochs: epochs.jsonl equal: ok",
        "record: record.json equal: ok",
        "environment: the same: ok",
        f"{finished.folder('dkd')}: trained again, with equal bits",
    ]
    return kept


def verify(place: Place, method: str, *words: object) -> Outcome:
    return kdbench("verify", place.folder(method), "--rerun", "--teachers", place.teachers, *words)


def change(path: Path, alter: Callable[[Any], None]) -> None:
    tree, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    alter(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")


def test_equal_bits_and_nothing_touched(finished: Place, again: Place) -> None:
    assert (again.folder("dkd") / "record.json").is_file()
    before = snapshot(finished.root)
    assert verify(finished, "student").code == 0
    assert snapshot(finished.root) == before
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture
def remade(again: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second training be the stored one: its bits are known, and training takes time."""

    def copied(run_ids: list[str], store: Any, _place: object) -> None:
        for run_id in run_ids:
            shutil.copytree(again.runs / run_id, store.root / run_id, dirs_exist_ok=True)

    monkeypatch.setattr("kdbench.verification.rerun.run_cohort", copied)


@pytest.mark.usefixtures("remade")
def test_other_weights_and_predictions(place: Place) -> None:
    folder = place.folder("dkd")
    state = load_file(folder / "student.safetensors")
    state[min(state)].view(-1)[0] += 0.25
    save_file(state, folder / "student.safetensors")
    change(folder / "record.json", lambda tree: tree.pop("weights_sha256"))  # as in records of older versions
    with np.load(folder / "predictions.npz") as stored:
        arrays = dict(stored)
    arrays["predicted"][:3] = (arrays["predicted"][:3] + 1) % 10
    np.savez(folder / "predictions.npz", **arrays)
    outcome = verify(place, "dkd")
    assert outcome.code == 4
    assert outcome.problems == [
        f"{folder / 'student.safetensors'}: 1 of {len(state)} tensors differ, by at most 0.25",
        f"{folder / 'predictions.npz'}: 3 of {arrays['count']} test images have another class",
    ]
    assert "weights: student.safetensors differs: 1 problem\n" in outcome.out
    (said,) = [line for line in outcome.out.splitlines() if line.startswith("accuracy: ")]
    assert said.endswith("0.00 points apart; with 2 seeds there it cannot be said whether that is seed noise: ok")


def test_changed_weights_are_named_before_anything_is_trained(place: Place) -> None:
    path = place.folder("dkd") / "student.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    message = failure("verify", place.folder("dkd"), "--rerun", "--teachers", place.teachers)
    assert message.startswith(f"{path}: damaged: its sha256 is ")


@pytest.mark.usefixtures("remade")
def test_another_accuracy_is_held_against_the_seeds(place: Place) -> None:
    """Seeds 0 to 2 with 60, 70 and 62 %: the sample sd is 5.29; the second training has what the first one had."""
    truth = place.record("dkd")["accuracy"]["last"]
    shutil.copytree(place.folder("dkd", 1), place.folder("dkd", 2))
    for seed, accuracy in enumerate((60.0, 70.0, 62.0)):
        change(
            place.folder("dkd", seed) / "record.json",
            lambda tree, seed=seed, accuracy=accuracy: (tree.update(seed=seed), tree["accuracy"].update(last=accuracy)),
        )
    outcome = verify(place, "dkd")
    assert outcome.code == 4
    assert outcome.problems == [f"{place.folder('dkd') / 'record.json'}: accuracy.last 60.0 then, {truth} now"]
    apart = abs(truth - 60)
    verdict = "within" if apart <= 5.2915 else "more than"
    assert (
        f"accuracy: 60.00 % then, {truth:.2f} % now, {apart:.2f} points apart: {verdict} seed noise "
        f"({apart / 5.291502622:.2f} times the sd of 3 seeds, 5.29 points): ok\n"
    ) in outcome.out


@pytest.mark.usefixtures("remade")
def test_what_is_different_around_a_run_is_named_and_no_difference(place: Place) -> None:
    path = place.folder("dkd") / "record.json"
    change(path, lambda tree: tree["environment"].update(torch="1.0", machine="an abacus"))
    change(path, lambda tree: tree["cost"].update(train_seconds=9e9, peak_memory_bytes=1))
    outcome = verify(place, "dkd")
    assert outcome.code == 0, outcome
    assert "environment: torch 1.0 then, " in outcome.out
    assert "machine an abacus then, " in outcome.out


@pytest.mark.usefixtures("remade")
@pytest.mark.parametrize("name", COUNTED)
def test_counted_costs_are_compared(place: Place, name: str) -> None:
    change(place.folder("dkd") / "record.json", lambda tree: tree["cost"].update({name: 1}))
    assert verify(place, "dkd").problems[0].startswith(f"{place.folder('dkd') / 'record.json'}: cost.{name} 1 then, ")


@pytest.mark.usefixtures("remade")
def test_epochs_name_the_first_difference(place: Place) -> None:
    path = place.folder("dkd") / "epochs.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[0]["seconds"] = 1e9
    lines[-1]["learning_rate"] = 5.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    epoch = lines[-1]["epoch"] + 1
    (problem,) = verify(place, "dkd").problems
    assert problem.startswith(f"{path}: differs from phase main, epoch {epoch} on: learning_rate 5.0 then, ")


def test_a_second_training_that_fails_is_no_difference(
    place: Place, again: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(run_ids: list[str], store: Any, _place: object) -> None:
        for run_id in run_ids:
            shutil.copytree(again.runs / run_id, store.root / run_id, dirs_exist_ok=True)
            (store.root / run_id / "student.safetensors").unlink()
            change(
                store.root / run_id / "record.json",
                lambda tree: tree.update(status="infra_failed", reason="out of memory", accuracy=None),
            )

    monkeypatch.setattr("kdbench.verification.rerun.run_cohort", failed)
    message = failure("verify", place.folder("dkd"), "--rerun", "--teachers", place.teachers, code=4)
    assert message == (
        f"{place.folder('dkd')}: cannot be compared, as the second training failed: out of memory; this says nothing "
        "of the run's result: mend the cause, and verify again"
    )


def test_weights_that_only_the_first_training_left(place: Place, again: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(run_ids: list[str], store: Any, _place: object) -> None:
        for run_id in run_ids:
            shutil.copytree(again.runs / run_id, store.root / run_id, dirs_exist_ok=True)
            (store.root / run_id / "student.safetensors").unlink()

    monkeypatch.setattr("kdbench.verification.rerun.run_cohort", without)
    outcome = verify(place, "dkd")
    assert outcome.code == 4
    weights = place.folder("dkd") / "student.safetensors"
    assert outcome.problems == [f"{weights}: there, and the second training left none"]


@pytest.mark.usefixtures("remade")
def test_a_published_run_has_no_weights(place: Place) -> None:
    (place.folder("dkd") / "student.safetensors").unlink()
    outcome = verify(place, "dkd")
    assert outcome.code == 0
    assert "weights: no student.safetensors beside the record, as in published boards; not compared: ok" in outcome.out


def refused(place: Place, method: str = "dkd", *words: object) -> str:
    return failure("verify", place.folder(method), "--rerun", "--teachers", place.teachers, *words)


def test_what_cannot_be_repeated(place: Place, again: Place) -> None:
    assert "no run there; give the folder of one" in failure("verify", place.runs, "--rerun")
    assert f"--out {again.runs}: holds this run already" in refused(place, "dkd", "--out", again.runs)
    record = place.folder("dkd") / "record.json"
    change(record, lambda tree: tree["teachers"][0].update(sha256="0" * 64))
    assert "the run was taught by 000000000000..; name the folder with that one" in refused(place)
    shutil.rmtree(place.teachers)
    assert "make it with kdbench teacher train" in refused(place)
    change(record, lambda tree: tree.update(config_sha256="0" * 64))
    assert "record and spec are of two configurations" in refused(place)
    change(record, lambda tree: tree.update(status="infra_failed"))
    assert "its status is infra_failed: there is no result to repeat" in refused(place)
    record.unlink()
    assert "only a finished run can be repeated" in refused(place)


def test_options_of_a_rerun_belong_to_it(finished: Place) -> None:
    assert (
        failure("verify", finished.runs, "--threads", 1)
        == "--threads belongs to --rerun; add it, or leave --threads out"
    )
    assert failure("verify", finished.runs, "--data", "data").startswith("--data belongs to --rerun;")
