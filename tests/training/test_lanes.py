"""Cohorts: a lane's result is its own, whoever trains beside it and whatever happens to them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.training import cohort, trainer
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.networks import TeacherPass
from kdbench.training.trainer import Interrupted
from kdbench.types import Taps

SOUND = ("student", "vanilla_kd", "dkd", "toy_bank", "toy_head")


def _digests(lab: Any, trained: list[Any]) -> dict[str, str]:
    return {entry.lane.spec.method: lab.digest(entry.lane) for entry in trained}


@pytest.fixture
def alone(lab: Any) -> dict[str, str]:
    """Digests of single runs."""
    return {method: lab.digest_after(lab.spec(method), "alone") for method in SOUND}


def test_a_cohort_gives_each_method_the_bits_it_has_alone(lab: Any, alone: dict[str, str]) -> None:
    together = _digests(lab, lab.train([lab.spec(method) for method in SOUND], "together"))
    # A lane's share of the teacher's work is the one thing that differs: it is what the run cost.
    assert together.keys() == alone.keys()
    for method in SOUND:
        whole, single = _weights(lab, method, "together"), _weights(lab, method, "alone")
        assert whole == single, method


def _weights(lab: Any, method: str, where: str) -> str:
    state = lab.timeless(CheckpointFolder(lab.folders([lab.spec(method)], where)[0].checkpoints).newest())
    state["counters"].pop("teacher_forwards")
    return str(lab.digest_of(state))


@pytest.mark.parametrize(("stop", "changes"), [(2, {}), (9, {}), (13, {"step__precision": "bf16"})])
def test_a_stopped_cohort_ends_in_the_bits_of_an_uninterrupted_one(
    lab: Any, stop: int, changes: dict[str, Any]
) -> None:
    anchor = lab.anchor(**changes)
    specs = [lab.spec(method, anchor=anchor) for method in ("toy_bank", "student", "dkd")]
    expected = _digests(lab, lab.train(specs, "whole"))
    with pytest.raises(Interrupted):
        lab.train(specs, "cut", should_stop=lab.stop_after(stop))
    assert _digests(lab, lab.train(specs, "cut")) == expected


def test_lanes_that_stand_apart_catch_up(lab: Any, alone: dict[str, str]) -> None:
    """Three lanes at three positions, as kills between their saves (and a damaged file) leave them."""
    for method, stop in (("student", 3), ("dkd", 9), ("toy_head", 6)):
        with pytest.raises(Interrupted):
            lab.train([lab.spec(method)], "apart", should_stop=lab.stop_after(stop))
    lab.train([lab.spec(method) for method in SOUND], "apart")
    for method in SOUND:
        assert _weights(lab, method, "apart") == _weights(lab, method, "alone"), method


def test_lanes_that_caught_up_share_the_teacher_again(lab: Any) -> None:
    """One lane has five of twelve steps behind it; both do two epochs apart and the third together."""
    specs = [lab.spec("vanilla_kd"), lab.spec("dkd")]
    with pytest.raises(Interrupted):
        lab.train(specs[:1], "apart", should_stop=lab.stop_after(5))
    forwards = [entry.lane.counters.teacher_forwards for entry in lab.train(specs, "apart")]
    assert forwards == [2 * 160 + 160 / 2] * 2


def test_finished_and_unfinished_runs_of_a_cohort(lab: Any) -> None:
    specs = [lab.spec(method) for method in ("student", "vanilla_kd", "dkd")]
    (first,) = lab.run(specs[1:2], "runs")
    records = lab.run(specs, "runs")
    lab.run(specs[2:], "alone")
    assert [record.method for record in records] == ["student", "vanilla_kd", "dkd"]
    assert records[1] == first, "a finished run was run again"
    assert _student(lab, specs[2], "runs") == _student(lab, specs[2], "alone")


def _student(lab: Any, spec: Any, where: str) -> bytes:
    data: bytes = (lab.folders([spec], where)[0].path / "student.safetensors").read_bytes()
    return data


# --- a faulty method ends alone -----------------------------------------------------------------------------------

FAULTS = [
    (("where=init",), "failed in its set-up: ValueError: toy fails in init"),
    (("where=prepare",), "failed in its set-up: ValueError: toy fails in prepare"),
    (("where=student taps",), "failed in its set-up: IndexError: stage 99 does not exist"),
    (("where=teacher taps",), "stage 99 does not exist"),
    (("where=losses",), "failed in phase 'main', epoch 1: ValueError: toy fails in losses"),
    (("where=losses", "epoch=2"), "failed in phase 'main', epoch 3: ValueError: toy fails in losses"),
    (("where=after_step", "epoch=1"), "failed in phase 'main', epoch 2: ValueError: toy fails in after_step"),
    (("where=deploy",), "ValueError: toy fails in deploy"),
    (("where=state",), "failed in saving its state: ValueError: toy fails in state"),
    (("where=result",), "failed in the final evaluation: RuntimeError"),
]


@pytest.mark.parametrize(("settings", "reason"), FAULTS, ids=[",".join(settings) for settings, _ in FAULTS])
def test_a_method_that_raises_ends_alone(lab: Any, settings: tuple[str, ...], reason: str) -> None:
    anchor = lab.anchor(schedule__epochs=5)
    bad = lab.spec("toy_bad", *settings, anchor=anchor)
    good = [lab.spec(name, anchor=anchor) for name in ("student", "vanilla_kd")]
    records = lab.run([good[0], bad, good[1]], "runs")
    assert [record.status for record in records] == ["ok", "infra_failed", "ok"]
    assert reason in records[1].reason
    assert "method 'toy_bad'" in records[1].reason
    assert records[1].accuracy is None
    lab.run(good, "without")
    for spec in good:
        assert _student(lab, spec, "runs") == _student(lab, spec, "without")


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_loss_that_is_not_a_number_ends_alone_as_diverged(lab: Any, epoch: int) -> None:
    good = lab.spec("student")
    bad, other = lab.run([lab.spec("toy_nan", f"epoch={epoch}"), good], "runs")
    assert (bad.status, bad.reason) == ("diverged", f"non-finite loss in phase 'main', epoch {epoch + 1}")
    assert other.status == "ok"
    assert bad.accuracy is not None, "a diverged run is a result"
    assert bad.nll is None, "not a number is no JSON"
    lab.run([good], "alone")
    assert _student(lab, good, "runs") == _student(lab, good, "alone")


def test_a_diverged_lane_stays_so_after_an_interruption(lab: Any) -> None:
    """Its last checkpoint says that it has diverged: it does not train on, nor end as something else."""
    specs = [lab.spec("toy_nan", "epoch=0"), lab.spec("student")]
    with pytest.raises(Interrupted):
        lab.run(specs, "runs", should_stop=lab.stop_after(6))
    records = lab.run(specs, "runs")
    assert [record.status for record in records] == ["diverged", "ok"]
    assert records[0].reason == "non-finite loss in phase 'main', epoch 1"


def test_divergence_by_a_huge_learning_rate(lab: Any) -> None:
    anchor = lab.anchor(optimizer__lr=1e9, step__grad_clip_norm=0.0)
    (record,) = lab.run([lab.spec("vanilla_kd", anchor=anchor)], "runs")
    assert record.status == "diverged"


# --- what must not matter -----------------------------------------------------------------------------------------


def test_a_method_that_exits_ends_alone(lab: Any) -> None:
    expected = lab.digest_of(lab.train([lab.spec("dkd")], "alone")[0].lane.student.state_dict())

    def losses(_self: Any, _batch: Any) -> Any:
        raise SystemExit(0)

    lab.probe("toy_exit", losses=losses)
    gone, dkd = lab.train([lab.spec("toy_exit"), lab.spec("dkd")], "beside")
    assert isinstance(gone.lane.failure, SystemExit)
    assert lab.digest_of(dkd.lane.student.state_dict()) == expected
    record = lab.run([lab.spec("toy_exit")], "recorded")[0]
    assert (record.status, record.reason) == (
        "infra_failed", "method 'toy_exit' failed in phase 'main', epoch 1: SystemExit: 0",
    )  # fmt: skip


@pytest.mark.parametrize("method", ["dkd", "toy_bank"])
def test_how_often_is_evaluated_does_not_change_the_weights(lab: Any, method: str) -> None:
    """R3: evaluation draws nothing and leaves no trace."""
    rare, often = (lab.anchor(schedule__epochs=8, evaluation__every=every, step__ema_decay=0.5) for every in (5, 1))
    lanes = [lab.train([lab.spec(method, anchor=anchor)], name)[0].lane for anchor, name in ((rare, "r"), (often, "o"))]
    assert [report.test_accuracy is None for report in lanes[0].history if report.phase == "main"] == [
        True, True, True, False, False, False, False, False,
    ]  # fmt: skip
    assert all(report.test_accuracy is not None for report in lanes[1].history if report.phase == "main")
    for part in ("student", "method", "optimizers", "average"):
        assert lab.digest_of(lanes[0].state()[part]) == lab.digest_of(lanes[1].state()[part]), part


def test_the_global_generators_do_not_matter(lab: Any) -> None:
    spec = lab.spec("toy_bank")
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        digests.add(lab.digest_after(spec, str(seed)))
    assert len(digests) == 1


def test_the_teacher_is_left_alone(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """R12: same weights and buffers, eval mode, no gradients anywhere."""
    loaded = []
    original = cohort.load_teacher
    monkeypatch.setattr(cohort, "load_teacher", lambda *args: loaded.append(original(*args)) or loaded[-1])
    lab.train([lab.spec(method) for method in ("toy_bank", "dkd", "toy_watch")], "runs")
    (teacher,) = loaded
    manifest = lab.place.teachers.manifest(lab.dataset, lab.teacher)
    stored = lab.place.teachers.weights(manifest)
    assert lab.digest_of(dict(sorted(teacher.state_dict().items()))) == lab.digest_of(dict(sorted(stored.items())))
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_teacher_features_are_constants(lab: Any, toys: Any) -> None:
    toys.Watch.batches.clear()
    lab.train([lab.spec("toy_watch")], "runs")
    batch = toys.Watch.batches[-1]
    tensors: list[Tensor] = [
        batch.teacher.logits,
        batch.teacher.embedding,
        *batch.teacher.stages,
        *batch.teacher.pre_stages,
    ]
    assert len(tensors) == 2 + 4 + 4
    assert not any(tensor.requires_grad for tensor in tensors)
    assert batch.student.logits.requires_grad
    assert len({tensor.dtype for tensor in tensors}) == 1


TWO = ("resnet8_w4", ("resnet14_w8", "toy_plain"))


def taps_of_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Taps, ...]]:
    """Return a list that fills with the taps of every teacher pass that is made from now on."""
    seen: list[tuple[Taps, ...]] = []

    class Spied(TeacherPass):
        def __init__(self, teachers: Any, taps: Any, *rest: Any) -> None:
            super().__init__(teachers, taps, *rest)
            seen.append(self.taps)

    monkeypatch.setattr(trainer, "TeacherPass", Spied)
    return seen


def test_other_teachers_give_logits_alone(lab: Any, toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.Watch.batches.clear()
    names, passes = (lab.teacher, lab.make_teacher("toy_plain")), taps_of_passes(monkeypatch)
    assert lab.train([lab.spec("toy_watch", networks=TWO, teachers=names)], "runs")[0].lane.failure is None
    first, second = toys.Watch.batches[-1].teachers
    assert (len(first.stages), len(first.pre_stages), first.embedding is None) == (4, 4, False)
    assert (second.stages, second.pre_stages, second.embedding) == ((), (), None)
    assert second.logits.shape == first.logits.shape == (lab.anchor().data.batch_size, 10)
    assert {taps for _, taps in passes} == {Taps()}  # not computed to be thrown away


def test_a_cohort_asks_each_teacher_for_what_its_lanes_need_of_it(
    lab: Any, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, passes = (lab.teacher, lab.make_teacher("toy_plain")), taps_of_passes(monkeypatch)
    methods = ("toy_deepest", "fitnet", "dkd", "rkd")
    specs = [lab.spec(method, networks=TWO, teachers=names) for method in methods]
    entries = lab.train(specs, "together")
    assert [entry.lane.failure for entry in entries] == [None] * 4
    # FitNet taps stage 2 of the first teacher, RKD its embedding; the toy taps both ends of every teacher.
    assert set(passes) == {(Taps((0, 2, 3), embedding=True), Taps((0, 1)))}
    assert toys.Deepest.widths == [(8, 32), (4, 6)]
    alone = lab.train([specs[1]], "alone")[0].lane.state()
    for part in ("student", "method", "optimizers"):
        assert lab.digest_of(entries[1].lane.state()[part]) == lab.digest_of(alone[part]), part


@pytest.mark.parametrize("method", ["dkd", "reviewkd", "sskd"])
def test_a_teacher_that_is_not_asked_changes_no_bit(lab: Any, method: str) -> None:
    names = (lab.teacher, lab.make_teacher("toy_plain"))
    first = lab.anchor(loss__kd_target="teacher")
    alone = lab.train([lab.spec(method, anchor=first)], "alone")[0].lane.state()
    both = lab.train([lab.spec(method, anchor=first, networks=TWO, teachers=names)], "both")[0].lane.state()
    for part in ("student", "method", "optimizers", "average"):
        assert lab.digest_of(alone[part]) == lab.digest_of(both[part]), part
    # The second one is asked for its logits, of which the whole average would make use.
    mean = lab.train([lab.spec(method, networks=TWO, teachers=names)], "mean")[0].lane.state()
    assert lab.digest_of(mean["student"]) != lab.digest_of(alone["student"])


def test_teachers_of_different_depth_are_tapped_from_their_own_end(lab: Any, toys: Any) -> None:
    """A ResNet has four stages, the toy two: stage -1 is another one in each."""
    plain = lab.make_teacher("toy_plain")
    spec = lab.spec("toy_deepest", networks=TWO, teachers=(lab.teacher, plain))
    lane = lab.train([spec], "runs")[0].lane
    assert lane.failure is None
    assert toys.Deepest.widths == [(8, 32), (4, 6)], "shallow to deep, as the student's"
