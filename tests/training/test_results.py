"""What a run leaves behind: every number of the record against one found out in another way."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kdbench.artefacts import PREDICTIONS as TEACHER_PREDICTIONS
from kdbench.backbones.base import Network
from kdbench.datasets.digits import Digits
from kdbench.evaluation import read_predicted
from kdbench.records import EpochReport, Record
from kdbench.storage.places import SCRATCH_VARIABLE, Url
from kdbench.store import CHECKPOINTS, EPOCHS, PREDICTIONS, RECORD, WEIGHTS, RunStore
from kdbench.training.attempts import ATTEMPTS
from kdbench.training.results import deployed_weights
from kdbench.training.runs import tidy
from kdbench.training.trainer import Interrupted
from kdbench.types import StageShape

LONG: dict[str, Any] = {"schedule__epochs": 7}
TEST_IMAGES = 599


def run(lab: Any, method: str, *settings: str, **changes: Any) -> tuple[Record, Any]:
    """Return record and folder of one run of seven epochs."""
    networks = changes.pop("networks", ("resnet8_w4", ("resnet14_w8",)))
    spec = lab.spec(method, *settings, anchor=lab.anchor(**{**LONG, **changes}), networks=networks)
    (record,) = lab.run([spec], "runs")
    return record, lab.folders([spec], "runs")[0]


def restored(lab: Any, folder: Any) -> Network:
    """Return a fresh network with what the run exported."""
    with safe_open(folder.path / WEIGHTS, "pt") as file:
        about = file.metadata()
    network: Network = lab.place.registry.backbones[about["backbone"]].build(10, StageShape((1, 32, 32)))
    network.load_state_dict(load_file(folder.path / WEIGHTS))
    network.set_normalisation(*([float(v) for v in about[key].split()] for key in ("mean", "std")))
    return network.eval()


def test_the_export_alone_reproduces_every_number(lab: Any) -> None:
    record, folder = run(lab, "vanilla_kd", step__ema_decay=0.5)
    assert record.status == "ok"
    test = Digits().test()
    with torch.no_grad():
        logits = restored(lab, folder)(test.images.float() / 255).logits.double()
    probability = logits.softmax(1)
    confidence, predicted = probability.max(1)
    assert torch.equal(read_predicted(folder.path / PREDICTIONS), predicted)
    with np.load(folder.path / PREDICTIONS) as archive:
        assert sorted(archive) == ["correct", "count", "predicted"]
        correct = np.unpackbits(archive["correct"], count=int(archive["count"])).astype(bool)
    assert correct.tolist() == (predicted == test.labels).tolist()
    assert record.accuracy is not None
    assert record.accuracy.last == 100 * int(correct.sum()) / TEST_IMAGES
    best = logits.argsort(dim=1, descending=True)[:, :5]
    assert record.accuracy.top5 == 100 * int((best == test.labels[:, None]).any(1).sum()) / TEST_IMAGES
    truth = probability[torch.arange(TEST_IMAGES), test.labels]
    assert record.nll == pytest.approx(float(-truth.log().mean()), rel=1e-5)
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = float((torch.from_numpy(correct)[inside].double().mean() - confidence[inside].mean()).abs())
            error += float(inside.double().mean()) * gap
    assert record.ece == pytest.approx(error, abs=1e-5)
    theirs = read_predicted(lab.place.teachers.folder(lab.dataset, lab.teacher) / TEACHER_PREDICTIONS)
    assert record.agreement_with_teacher == 100 * int((theirs == predicted).sum()) / TEST_IMAGES


def test_accuracies_over_the_epochs(lab: Any) -> None:
    record, folder = run(lab, "student", evaluation__every=2)
    reports = [EpochReport.model_validate_json(line) for line in (folder.path / EPOCHS).read_text().splitlines()]
    assert [report.epoch for report in reports] == list(range(7))
    assert [report.test_accuracy is None for report in reports] == [True, *[False] * 6]
    measured = [report.test_accuracy for report in reports if report.test_accuracy is not None]
    assert record.accuracy is not None
    assert record.accuracy.last == measured[-1]
    assert record.accuracy.best == max(measured)
    assert record.accuracy.last5_mean == pytest.approx(sum(measured[-5:]) / 5)
    for report in reports:
        assert report.run_id == record.run_id
        assert report.losses.keys() == {"ce", "total"}
        assert report.losses["ce"] == pytest.approx(report.losses["total"], rel=1e-5)
        assert report.validation_accuracy is not None
        assert (report.validation_accuracy * 40 / 100) == pytest.approx(round(report.validation_accuracy * 40 / 100))
        assert (report.train_accuracy * 160 / 100) == pytest.approx(round(report.train_accuracy * 160 / 100), abs=1e-3)


def test_losses_are_reported_raw_and_their_total_weighted(lab: Any) -> None:
    record, folder = run(lab, "vanilla_kd")
    for line in (folder.path / EPOCHS).read_text().splitlines():
        losses = json.loads(line)["losses"]
        assert losses["total"] == pytest.approx(0.65 * losses["ce"] + 0.35 * losses["kd"], rel=1e-5)
    assert record.teachers[0].name == lab.teacher


def test_identity_and_environment(lab: Any) -> None:
    record, folder = run(lab, "dkd", "beta=3.0")
    spec, (teacher,) = folder.spec(), lab.place.teachers.all()
    assert record == folder.record()
    assert record.config_sha256 == spec.config_sha256
    assert record.run_id == "small-v1/digits-20pc/tiny/dkd/seed0" == spec.run_id
    assert (record.anchor, record.anchor_sha256) == ("small-v1", spec.anchor.sha256)
    assert record.options == spec.options
    assert record.options["beta"] == 3.0
    assert record.plugin.distribution == "kdbench"
    assert (record.division, record.deviations, record.classes, record.seed) == ("closed", (), 10, 0)
    assert record.dataset == "digits-20pc"
    assert record.dataset_ref.fingerprint == Digits().info.fingerprint
    (used,) = record.teachers
    assert (used.name, used.sha256, used.accuracy) == (teacher.name, teacher.sha256, teacher.accuracy)
    where = record.environment
    assert (where.device, where.threads, where.precision, where.torch) == ("cpu", 1, "fp32", str(torch.__version__))
    assert datetime.fromisoformat(record.started_at) <= datetime.fromisoformat(record.ended_at)
    assert [attempt.outcome for attempt in record.attempts] == ["ok"]


def test_a_run_without_a_teacher_says_so(lab: Any) -> None:
    record, _ = run(lab, "student")
    assert (record.teachers, record.agreement_with_teacher) == ((), None)
    assert record.cost is not None
    assert record.cost.teacher_forwards == 0


def test_cost_by_hand(lab: Any) -> None:
    """The toy: 8x8 -> 4x4x4 -> 2x2x6 -> 10, and a multiply-add is two operations."""
    record, _ = run(lab, "toy_bank", networks=("toy_plain", ("resnet14_w8",)))
    cost = record.cost
    assert cost is not None
    assert cost.deployed_parameters == (4 * 9 + 4) + (6 * 4 * 9 + 6) + (6 * 10 + 10)
    assert cost.deployed_flops == 2 * (16 * 4 * 9 + 4 * 6 * 4 * 9 + 6 * 10)
    assert cost.train_only_parameters == (6 * 32 + 32) + (32 * 32 + 32), "the helper; a bank is no parameter"
    images = (2 + 7) * 160
    assert (cost.student_forwards, cost.teacher_forwards) == (images, images)
    assert cost.images_per_second == pytest.approx(images / cost.train_seconds)
    assert cost.peak_memory_bytes > 1 << 20


def test_a_teacher_pass_is_shared_in_cost(lab: Any) -> None:
    records = lab.run([lab.spec(method) for method in ("student", "vanilla_kd", "dkd")], "runs")
    assert [record.cost.teacher_forwards for record in records] == [0, 240, 240]
    assert [record.cost.student_forwards for record in records] == [480] * 3


def test_a_deployed_helper_is_exported_and_counted(lab: Any) -> None:
    record, folder = run(lab, "toy_head")
    assert record.cost is not None
    student = sum(
        p.numel() for p in lab.place.registry.backbones["resnet8_w4"].build(10, StageShape((1, 32, 32))).parameters()
    )
    assert record.cost.deployed_parameters == student + 16 * 10 + 10
    assert record.cost.train_only_parameters == 16 * 3 + 3
    assert {"head.weight", "student.conv1.weight"} < load_file(folder.path / WEIGHTS).keys()


def test_the_average_counts_as_much_as_what_it_averages(lab: Any) -> None:
    plain, averaged = (lab.run([lab.spec("toy_bank", anchor=lab.anchor(f"e{i}", step__ema_decay=d))], "runs")[0].cost
                       for i, d in enumerate((0.0, 0.5)))  # fmt: skip
    for key in ("train_only_parameters", "deployed_parameters", "deployed_flops"):
        assert getattr(plain, key) == getattr(averaged, key), key


def test_a_declared_deviation_is_used_and_shown(lab: Any, toys: Any) -> None:
    assert toys.OwnTau.deviations[0].value == 2.0
    spec = lab.spec("toy_tau")
    lane = lab.train([spec], "lanes")[0].lane
    assert lane.method.seen.item() == 2.0
    (record,) = lab.run([spec], "runs")
    assert record.division == "open"
    assert [(d.key, d.value, d.reason) for d in record.deviations] == [
        ("loss.tau", 2.0, "its targets are soft already")
    ]
    assert record.anchor_sha256 == spec.anchor.sha256, "the anchor keeps its name; the record says what deviates"
    same = lab.spec("toy_tau", anchor=lab.anchor(loss__tau=2.0))
    assert (same.division, same.deviations) == ("closed", ())


def test_a_run_that_learns_nothing_counts_as_diverged(lab: Any) -> None:
    record, _ = run(lab, "student", optimizer__lr=1e-12, schedule__min_lr=0.0, schedule__epochs=5)
    assert record.accuracy is not None
    assert record.accuracy.last <= 20
    expected = f"final accuracy {record.accuracy.last:.2f} % is not above 20.00 %: nothing learned"
    assert (record.status, record.reason) == ("diverged", expected)


def test_a_failed_run_has_a_record_and_no_results(lab: Any) -> None:
    record, folder = run(lab, "toy_bad", "where=losses", "epoch=2")
    assert record.status == "infra_failed"
    assert (record.accuracy, record.nll, record.ece, record.cost) == (None,) * 4
    assert not (folder.path / WEIGHTS).exists()
    assert not (folder.path / PREDICTIONS).exists()
    assert len((folder.path / EPOCHS).read_text().splitlines()) == 2
    assert folder.checkpoints.exists(), "--retry-failed goes on from there"


def test_attempts_tell_the_story(lab: Any) -> None:
    spec = lab.spec("student", anchor=lab.anchor(**LONG))
    for steps in (6, 9):
        with pytest.raises(Interrupted):
            lab.run([spec], "runs", should_stop=lab.stop_after(steps))
    (record,) = lab.run([spec], "runs")
    first, second, last = record.attempts
    assert first.outcome == second.outcome
    assert first.outcome.startswith("Interrupted: stopped")
    assert (last.outcome, last.from_epoch) == ("ok", 3)
    assert all(attempt.started_at and attempt.ended_at for attempt in record.attempts)
    assert record.started_at == first.started_at
    assert record.cost is not None
    assert record.cost.student_forwards == 7 * 160, "over all attempts, each image once"


def test_equal_weights_are_equal_bytes(lab: Any) -> None:
    """The library writes metadata in another order each time; an export must be the same file twice."""
    (trained,) = lab.train([lab.spec("student")], "runs")
    files = {deployed_weights(trained.lane.deployed(), trained.lane) for _ in range(20)}
    assert len(files) == 1
    (data,) = files
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0, "tensors are aligned"
    assert list(json.loads(data[8 : 8 + length])["__metadata__"]) == ["backbone", "method", "mean", "std"]
    assert all(map(math.isfinite, trained.lane.student.conv1.weight.flatten().tolist()))


def test_what_a_killed_writer_left_of_a_finished_run_goes(lab: Any) -> None:
    """It was killed behind the record, before checkpoints and attempts; checkpoints of a failed run are kept."""
    record, folder = run(lab, "student")
    left = folder.checkpoints / f"p01-e00000-s0000000-{'0' * 16}.pt"
    left.parent.mkdir()
    left.touch()
    (folder.path / ATTEMPTS).write_text("[]")
    tidy(folder)
    assert not left.parent.exists()
    assert not (folder.path / ATTEMPTS).exists()
    (folder.path / ATTEMPTS).write_text("[]")
    tidy(folder)
    assert not (folder.path / ATTEMPTS).exists(), "although nothing else was left"
    left.parent.mkdir()
    left.touch()
    (folder.path / RECORD).write_text(record.model_copy(update={"status": "infra_failed"}).model_dump_json())
    (folder.path / ATTEMPTS).write_text("[]")
    tidy(folder)
    assert not (folder.path / ATTEMPTS).exists(), "the record has them"
    assert left.exists()


def test_what_a_killed_writer_left_at_a_url_goes(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local copy holds nothing of it; what was set aside as damaged stays, there as here."""
    record, _ = run(lab, "student")
    monkeypatch.setenv(SCRATCH_VARIABLE, str(lab.root / "scratch"))
    there = RunStore(Url(f"file://{lab.root}/runs")).folder(record.run_id)
    before = there.shelf.find()
    left, damaged = (f"{CHECKPOINTS}/p01-e00000-s0000000-{'0' * 16}.pt{suffix}" for suffix in ("", ".corrupt"))
    for name in (left, damaged):
        there.shelf.write(name, b"")
    tidy(there)
    assert set(there.shelf.find()) == {*before, damaged}
    claims: list[object] = []
    monkeypatch.setattr(type(there), "claimed", claims.append)
    tidy(there)
    there.shelf.write(left, b"")
    there.shelf.write(RECORD, record.model_copy(update={"status": "infra_failed"}).model_dump_json().encode())
    tidy(there)
    assert claims == [], "nothing is to be done, and so nothing is brought here"
    monkeypatch.undo()
    tidy(there)
    assert there.shelf.read(left) == b"", "it may be tried again from them"


def test_attempts_of_an_unfinished_run_are_not_tidied_away(lab: Any) -> None:
    spec = lab.spec("student")
    with pytest.raises(Interrupted):
        lab.run([spec], "runs", should_stop=lab.stop_after(6))
    (folder,) = lab.folders([spec], "runs")
    before = (folder.path / ATTEMPTS).read_bytes()
    tidy(folder)
    assert (folder.path / ATTEMPTS).read_bytes() == before
