"""Stages of a run: which steps there are, what counts through them, and what goes on from one to the next (5, 3.7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.stages import steps


@pytest.mark.parametrize(
    ("epochs", "options", "expected"),
    [
        (5, {}, [("b1", 5, 0, 0)]),
        (5, {"num_stages": 2}, [("b1", 2, 0, 0), ("b2", 3, 0, 2)]),
        (4, {"num_stages": 1, "teacher_adapt_epochs": 3}, [("a1", 3, 0, 0), ("b1", 4, 3, 0)]),
        (
            6,
            {"num_stages": 3, "teacher_adapt_epochs": 2, "student_epochs_per_stage": [1, 3, 2]},
            [("a1", 2, 0, 0), ("b1", 1, 2, 0), ("a2", 2, 2, 1), ("b2", 3, 4, 1), ("a3", 2, 4, 4), ("b3", 2, 6, 4)],
        ),
        (
            5,
            {"teacher_adapt_epochs": 1, "use_cccp": True, "cccp_nt": 2, "cccp_ns": 2},
            [("a1", 1, 0, 0), ("a1_2", 1, 1, 0), ("b1", 2, 2, 0), ("b1_2", 3, 2, 2)],
        ),
        # Without use_cccp the numbers of turns mean nothing; without a bottleneck ib_epochs_per_stage does not.
        (2, {"teacher_adapt_epochs": 1, "cccp_nt": 2, "cccp_ns": 2}, [("a1", 1, 0, 0), ("b1", 2, 1, 0)]),
        (2, {"ib_epochs_per_stage": 4}, [("b1", 2, 0, 0)]),
        (2, {"ib_epochs_per_stage": 4, "use_ib": True}, [("a1", 4, 0, 0), ("b1", 2, 4, 0)]),
    ],
)
def test_steps_and_their_counters(epochs: int, options: dict[str, Any], expected: list[tuple[Any, ...]]) -> None:
    found = steps(ASIBOptions(**options), epochs)
    assert [(step.name, step.epochs, step.a, step.b) for step in found] == expected
    assert sum(step.epochs for step in found if step.kind == "b") == epochs
    ends = [step.name for step in found if step.ends_stage]
    assert len(ends) == options.get("num_stages", 1)
    for step in found:
        last = step.counters(step.epochs - 1)
        assert (last.ep, last.g, last.a + last.b) == (step.epochs - 1, step.a + step.b + step.epochs - 1, last.g)
        assert (last.a, last.b)["ab".index(step.kind)] == (step.a, step.b)["ab".index(step.kind)] + step.epochs - 1


def _of(lane: Any, kind: str) -> list[Any]:
    return [report for report in lane.history if report.phase.startswith(kind)]


def test_three_stages_in_a_run(two: Any) -> None:
    """beta counts all epochs, tau the student's, the A-Step's rate its own; KD's warm-up starts anew."""
    lane = two.run(
        num_stages=3,
        student_epochs_per_stage=[1, 2, 1],
        ib_beta=1.0,
        ib_beta_warmup_epochs=100,
        kd_warmup_epochs=2,
        a_step_loss_guard=False,
        anchor={"schedule__epochs": 4, "loss__tau_start": 5.0, "loss__tau_end": 1.0},
    )
    assert [(report.phase, report.epoch) for report in lane.history] == [
        ("a1", 0), ("a1", 1), ("b1", 0), ("a2", 0), ("a2", 1), ("b2", 0), ("b2", 1), ("a3", 0), ("a3", 1), ("b3", 0),
    ]  # fmt: skip
    assert [report.metrics["stage"] for report in lane.history] == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [report.student_epoch for report in _of(lane, "b")] == [0, 1, 2, 3]
    assert [report.metrics["ib_beta"] for report in _of(lane, "a")] == pytest.approx([0, 0.01, 0.03, 0.04, 0.07, 0.08])
    assert [report.metrics["tau"] for report in _of(lane, "b")] == pytest.approx([5, 4, 3, 2])
    assert [report.metrics["tau"] for report in _of(lane, "a")] == pytest.approx([4.0] * 6)  # the key tau comes first
    assert [report.metrics["kd_alpha_eff"] for report in _of(lane, "b")] == pytest.approx([0.175, 0.175, 0.35, 0.175])
    rates = [0.02 * (1 + math.cos(math.pi * a / 6)) / 2 for a in range(6)]
    assert [report.learning_rate for report in _of(lane, "a")] == pytest.approx(rates)


def test_turns_of_cccp_in_a_run(two: Any) -> None:
    lane = two.run(
        use_cccp=True, use_cccp_in_a=True, cccp_alpha=0.2, cccp_nt=2, cccp_ns=2, anchor={"schedule__epochs": 3}
    )
    assert [report.phase for report in lane.history] == ["a1", "a1", "a1_2", "a1_2", "b1", "b1_2", "b1_2"]
    # The window is that of each A-Step; behind it CCCP is a term.
    assert [set(report.losses) for report in _of(lane, "a")] == 2 * [
        {"ce", "total"},
        {"ce", "kd", "cccp", "ib", "total"},
    ]


def test_without_an_a_step_the_teachers_alone_teach(two: Any, moments: list[Any], helpers: Any) -> None:
    lane = two.run(
        num_stages=2,
        teacher_adapt_epochs=0,
        use_ib=False,
        kd_target="weighted_conf",
        feat_kd_alpha=0.0,
        anchor={"schedule__epochs": 3},
    )
    assert [report.phase for report in lane.history] == ["b1", "b2", "b2"]
    assert all(report.metrics["kd_tgt_mode"] == "weighted_conf" for report in lane.history)
    assert all("last_synergy_acc" not in report.metrics for report in lane.history)
    assert lane.method.bridge is None
    assert helpers.moved(moments[0].method, moments[-1].method) == set()


def test_the_best_student_of_a_stage_goes_on_but_the_last_stage_ends_with_its_last_epoch(
    two: Any, moments: list[Any], script: Callable[..., None], helpers: Any
) -> None:
    script("student", [30.0, 60.0, 50.0, 90.0, 10.0])
    lane = two.run(num_stages=2, student_epochs_per_stage=[3, 2], anchor={"schedule__epochs": 5})
    at = {(moment.phase, moment.epoch): moment.student for moment in moments}
    assert helpers.moved(at["b1", 1], at["b1", 2])
    assert helpers.moved(at["b1", 3], at["b1", 2]) == set()  # the third epoch was undone
    assert helpers.moved(at["b2", 0], at["b1", 2]) == set()
    assert helpers.moved(at["b2", 1], at["b2", 2])
    assert helpers.moved(helpers.tensors(lane.student), at["b2", 2]) == set()
    told = [report.metrics.get("restored_student_acc") for report in lane.history if report.phase == "b1"]
    assert told == [None, None, 60.0]
    assert all("restored_student_acc" not in report.metrics for report in lane.history if report.phase == "b2")
    assert lane.method.memory.student.state is None


@pytest.mark.parametrize(("accuracies", "undone"), [([50.0, 50.0, 1.0], True), ([0.0, 0.0, 1.0], False)])
def test_best_is_strictly_better_than_before_and_than_nothing(
    two: Any, moments: list[Any], script: Callable[..., None], helpers: Any, accuracies: list[float], undone: bool
) -> None:
    script("student", accuracies)
    two.run(num_stages=2, student_epochs_per_stage=[2, 1], anchor={"schedule__epochs": 3})
    at = {(moment.phase, moment.epoch): moment.student for moment in moments}
    assert (helpers.moved(at["b1", 2], at["b1", 1]) == set()) == undone


def test_restore_best_student_off(two: Any, moments: list[Any], script: Callable[..., None], helpers: Any) -> None:
    script("student", [60.0, 50.0, 1.0])
    options = {"num_stages": 2, "student_epochs_per_stage": [2, 1], "anchor": {"schedule__epochs": 3}}
    two.run(restore_best_student=False, **options)
    at = {(moment.phase, moment.epoch): moment.student for moment in moments}
    assert helpers.moved(at["b1", 1], at["b1", 2])


def test_disagreement_is_measured_once_a_stage_and_says_of_how_many(two: Any) -> None:
    options = {"num_stages": 2, "anchor": {"schedule__epochs": 4}}
    lane = two.run(**options)
    told = [(r.phase, r.epoch, r.metrics.get("teacher_disagree_n")) for r in lane.history if r.phase.startswith("b")]
    assert told == [("b1", 0, 40.0), ("b1", 1, None), ("b2", 0, 40.0), ("b2", 1, None)]
    values = {r.metrics["teacher_disagree"] for r in lane.history if "teacher_disagree" in r.metrics}
    assert len(values) == 1  # the teachers stand still
    (value,) = values
    assert 0 < value < 100
    assert value * 40 / 100 == pytest.approx(round(value * 40 / 100))


def test_disagreement_keeps_its_limit(two: Any) -> None:
    lane = two.train(two.spec(disagreement_max_samples=25))
    assert [r.metrics["teacher_disagree_n"] for r in lane.history if "teacher_disagree_n" in r.metrics] == [25.0]


A_METRICS = {"syn_acc", "tau", "ib_beta", "ib_kld", "cw_mean", "cw_std", "cw_below_one", "logvar_mean", "kd_gate"}
A_METRICS |= {"ib_mbm_trainable", "synergy_head_trainable", "last_synergy_acc", "last_synergy_acc_pct", "kd_gate_on"}
B_METRICS = {"tau", "kd_alpha_eff", "gate_ratio", "kd_syn_ratio", "kd_clamp_ratio", "kd_scale_mean", "kd_tgt_mode"}
B_METRICS |= {"auto_syn_win_ratio", "cw_mean", "disagree_mean", "last_synergy_acc", "last_synergy_acc_pct"}
B_METRICS |= {"kd_gate_on", "teacher_disagree", "student_trainable", "stage"}


def test_reports_have_the_metrics(two: Any) -> None:
    lane = two.run(teacher_adapt_epochs=1, synergy_only_epochs=0, anchor={"schedule__epochs": 1})
    a, b = lane.history
    assert set(a.metrics) >= A_METRICS | {"best_synergy_acc", "skipped_steps"}
    assert set(b.metrics) >= B_METRICS
    assert set(a.losses) == {"ce", "kd", "ib", "total"}
    assert set(b.losses) == {"ce", "kd", "feat", "total"}
    assert b.validation_accuracy is not None
    assert b.train_accuracy is not None
    numbers = {key: value for key, value in {**a.metrics, **b.metrics}.items() if not isinstance(value, str)}
    assert all(value is not None and math.isfinite(value) for value in numbers.values())
    assert b.metrics["kd_scale_mean"] == 1.0  # no batch was scaled down
    assert b.metrics["kd_clamp_ratio"] == 0.0


def test_scaled_batches_have_their_own_mean(two: Any) -> None:
    lane = two.run(kd_max_ratio=1e-4, anchor={"schedule__epochs": 1})
    metrics = lane.history[-1].metrics
    assert metrics["kd_clamp_ratio"] == 1.0
    assert 0 < metrics["kd_scale_mean"] < 0.5
