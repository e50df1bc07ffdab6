"""Teachers that are fine-tuned, and partial freezing of teachers and student in a run (1.1, 2.1, 4.4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.methods.asib.method import ASIB
from kdbench.methods.asib.teachers import OwnTeachers

FREEZING = {"freezing__use_partial_freeze": True}
TUNED = {"use_teacher_finetuning": True, "train_distill_adapter_only": False, "a_step_loss_guard": False}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _teachers(names: set[str], place: int) -> set[str]:
    start = f"own_teachers.networks.{place}."
    return {name.removeprefix(start) for name in names if name.startswith(start)}


def _span(moments: list[Any], phase: str) -> tuple[Any, Any]:
    own = [moment for moment in moments if moment.phase == phase]
    return own[0], own[-1]


def _statistics(names: set[str]) -> set[str]:
    return {name for name in names if name.rpartition(".")[2] in STATISTICS}


def _norms(network: Any) -> set[str]:
    """Return the names of scale and shift of its BatchNorms."""
    norms = [name for name, part in network.named_modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    return {f"{name}.{part}" for name in norms for part in ("weight", "bias")}


def _head(network: Any) -> str:
    """Return the name of a network's classifier: the last linear layer there is."""
    return [name for name, part in network.named_modules() if isinstance(part, torch.nn.Linear)][-1]


def test_fine_tuned_copies_move_in_a_and_teach_in_b(
    two: Any, moments: list[Any], helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[tuple[Any, dict[str, Any]]] = []
    prepare, forward, calls = ASIB.prepare, OwnTeachers.forward, []

    def watch(self: ASIB, setup: Any) -> None:
        shared.extend((network, helpers.tensors(network)) for network in setup.networks)
        prepare(self, setup)

    def told(self: OwnTeachers, images: Any) -> Any:
        modes = {part.training for network in self.networks for part in network.modules()}
        calls.append((frozenset(modes), torch.is_grad_enabled()))
        return forward(self, images)

    monkeypatch.setattr(ASIB, "prepare", watch)
    monkeypatch.setattr(OwnTeachers, "forward", told)
    lane = two.run(**TUNED, num_stages=2, teacher_lr=1e-3, anchor={"schedule__epochs": 2})
    assert len(shared) == 2
    for network, before in shared:
        assert helpers.moved(before, helpers.tensors(network)) == set()
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not network.training
    for phase in ("a1", "a2"):
        first, last = _span(moments, phase)
        moved = helpers.moved(first.method, last.method)
        for place, network in enumerate(lane.method.own_teachers.networks):
            names = {name for name, _ in network.named_parameters()}
            # The bridge reads embeddings, so a teacher's own classifier has no part in the loss.
            assert {name for name in names if name.rpartition(".")[0] == _head(network)} == names - _teachers(
                moved, place
            )
            assert _statistics(_teachers(moved, place))
        assert any(name.startswith("adapters.teachers") for name in moved)
    for phase in ("b1", "b2"):
        first, last = _span(moments, phase)
        assert {name for name in helpers.moved(first.method, last.method) if "student" not in name} == set()
    assert set(calls) == {(frozenset({True}), True), (frozenset({False}), False)}
    # Each image passes both copies, never the shared ones: 4 A epochs, 2 B epochs, and the looks at 40 images.
    epochs, looks = 4 + 2, 2 + 2  # in each stage one measurement and one look for the disagreement
    assert lane.counters.teacher_forwards == 2 * (epochs * 160 + looks * 40)


def test_the_student_is_taught_by_the_copies(two: Any, helpers: Any) -> None:
    tuned = two.train(two.spec(**TUNED, kd_target="avg", teacher_lr=0.05, feat_kd_alpha=0.0), "tuned")
    fixed = two.train(two.spec(kd_target="avg", feat_kd_alpha=0.0), "fixed")
    assert helpers.moved(helpers.tensors(tuned.student), helpers.tensors(fixed.student))


@pytest.mark.parametrize(("freeze_bn", "level"), [(True, 0), (True, 1), (False, 1), (True, -1)])
def test_levels_of_the_teachers(two: Any, moments: list[Any], helpers: Any, freeze_bn: bool, level: int) -> None:
    """The head has no part in the tokens; a block has: level 1 moves the last one alone, level 0 none."""
    lane = two.run(
        **TUNED,
        teacher_lr=1e-2,
        reg_lambda=1e-3,  # so that every trained tensor has a gradient, the heads' too
        use_partial_freeze=True,
        teacher1_freeze_level=level,
        teacher1_freeze_bn=freeze_bn,
        teacher2_freeze_level=-1,
        anchor={"schedule__epochs": 1, **FREEZING},
    )
    first, last = _span(moments, "a1")
    moved = helpers.moved(first.method, last.method)
    network = lane.method.own_teachers.networks[0]
    names = {name for name, _ in network.named_parameters()}
    one, other = _teachers(moved, 0), _teachers(moved, 1)
    whole = {name for name, _ in lane.method.own_teachers.networks[1].named_parameters()}
    assert other - _statistics(other) == whole
    assert _statistics(other)
    norms = _norms(network)
    assert bool(_statistics(one)) == (level == -1 or not freeze_bn)
    parameters = one - _statistics(one)
    if level == -1:
        assert parameters == names
        return
    head = {f"{_head(network)}.weight", f"{_head(network)}.bias"}
    assert head <= parameters < names
    assert (parameters == head) == (level == 0)
    assert (norms <= parameters) == (not freeze_bn)
    text = lane.history[0].metrics["teacher1_trainable"]
    assert text == f"{len(parameters)}/{len(names)} tensors"


def test_a_schedule_of_the_second_teacher_holds_for_all_that_follow(lab: Any, two: Any) -> None:
    networks = ("resnet8_w4", ("resnet14_w8", "resnet8_w4", "resnet8_w4"))
    options = {"teacher_adapt_epochs": 1, "synergy_only_epochs": 0, "distill_out_dim": 8, "num_stages": 2}
    options |= {"use_teacher_finetuning": True, "use_partial_freeze": True}
    words = [f"{key}={value}" for key, value in options.items()]
    words += ["teacher1_freeze_level_schedule=[-1, 1]", "teacher2_freeze_level_schedule=[0, -1]"]
    spec = lab.spec(
        "asib",
        *words,
        anchor=lab.anchor(schedule__epochs=2, **FREEZING),
        networks=networks,
        teachers=(*two.teachers, two.teachers[1]),
    )
    lane = two.train(spec)
    first, second = (report.metrics for report in lane.history if report.phase in {"a1", "a2"})
    whole = {k: second[f"teacher{k}_trainable"] for k in (2, 3)}
    assert whole[2] == whole[3]
    total = int(whole[2].split("/")[0])
    assert whole[2] == f"{total}/{total} tensors"
    assert first["teacher2_trainable"] == first["teacher3_trainable"] == f"2/{total} tensors"
    assert first["teacher1_trainable"].split("/")[0] + " tensors" == first["teacher1_trainable"].split("/")[1]
    assert second["teacher1_trainable"] != first["teacher1_trainable"]


def test_adapters_alone(two: Any, moments: list[Any], helpers: Any) -> None:
    lane = two.run(a_step_loss_guard=False, anchor={"schedule__epochs": 1})
    first, last = _span(moments, "a1")
    moved = helpers.moved(first.method, last.method)
    assert lane.method.own_teachers is None
    assert {name for name in first.method if name.startswith("adapters.teachers")} <= moved


def test_without_an_a_step_nobody_fine_tunes(two: Any) -> None:
    lane = two.run(
        **TUNED,
        teacher_adapt_epochs=0,
        use_ib=False,
        kd_target="avg",
        feat_kd_alpha=0.0,
        anchor={"schedule__epochs": 1},
    )
    assert lane.method.own_teachers is None


def test_the_best_snapshot_holds_the_copies_too(two: Any, moments: list[Any], helpers: Any, script: Any) -> None:
    script("synergy", [90.0, 10.0])
    two.run(**TUNED, teacher_eval_every=1, teacher_lr=1e-2, anchor={"schedule__epochs": 1})
    at = {(moment.phase, moment.epoch): moment.method for moment in moments}
    assert helpers.moved(at["b1", 0], at["a1", 1]) == set()
    assert helpers.moved(at["a1", 0], at["a1", 1])


def _counts(lane: Any) -> list[str]:
    return [report.metrics["student_trainable"] for report in lane.history if report.phase.startswith("b")]


def test_the_students_schedule(two: Any, moments: list[Any], helpers: Any) -> None:
    lane = two.run(
        num_stages=3,
        use_partial_freeze=True,
        student_freeze_level_schedule=[-1, 1, 0],
        student_freeze_bn=True,
        restore_best_student=False,
        anchor={"schedule__epochs": 3, **FREEZING},
    )
    counts = [int(text.split("/")[0]) for text in _counts(lane)]
    names = {name for name, _ in lane.student.named_parameters()}
    assert counts[0] == len(names)
    assert counts[0] > counts[1] > counts[2] == 2
    for stage, count in enumerate(counts, 1):
        first, last = _span(moments, f"b{stage}")
        moved = helpers.moved(first.student, last.student)
        assert len(moved - _statistics(moved)) == count
        assert bool(_statistics(moved)) == (stage == 1)  # later BN is frozen, its statistics with it
        # The student's adapter trains at every level.
        assert any(name.startswith("adapters.student") for name in helpers.moved(first.method, last.method))


def test_batch_norm_that_is_not_frozen_trains_everywhere(two: Any, moments: list[Any], helpers: Any) -> None:
    two.run(
        num_stages=2,
        use_partial_freeze=True,
        student_freeze_level_schedule=[-1, 0],
        restore_best_student=False,
        anchor={"schedule__epochs": 2, **FREEZING},
    )
    first, last = _span(moments, "b2")
    moved = helpers.moved(first.student, last.student)
    assert _statistics(moved) == _statistics(set(first.student))


@pytest.mark.parametrize("off", [{"force_ppf_off": True, "use_partial_freeze": True}, {"use_partial_freeze": False}])
def test_no_level_holds_without_the_policy(two: Any, off: dict[str, bool]) -> None:
    levels = {"student_freeze_level_schedule": [0, 0, 0, 0], "teacher1_freeze_level": 0, **off}
    lane = two.run(**TUNED, **levels, anchor={"schedule__epochs": 1, **FREEZING})
    assert _counts(lane) == ["29/29 tensors"]
    trained = lane.history[0].metrics["teacher1_trainable"]
    assert trained.split("/")[0] + " tensors" == trained.split("/")[1]


def test_random_layers_may_be_frozen_on_demand(two: Any) -> None:
    lane = two.run(
        use_partial_freeze=True,
        student_freeze_level=0,
        allow_random_frozen=True,
        anchor={"schedule__epochs": 1, **FREEZING},
    )
    assert _counts(lane) == [f"{len(_norms(lane.student)) + 2}/29 tensors"]
