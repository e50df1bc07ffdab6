"""The B-Step in a run: what stands still, what the student learns from, and what its adapter learns from (3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.methods.asib.bridge import Bridge
from kdbench.methods.asib.head import SynergyHead
from kdbench.methods.asib.method import ASIB

SHUT = {"enable_kd_after_syn_acc": 0.999}


def _b(lane: Any) -> list[Any]:
    return [report for report in lane.history if report.phase.startswith("b")]


def _span(moments: list[Any], phase: str) -> tuple[Any, Any]:
    """Return the first and the last moment of a phase."""
    own = [moment for moment in moments if moment.phase == phase]
    return own[0], own[-1]


def test_bridge_head_and_teachers_stand_still_in_eval_mode(
    two: Any, moments: list[Any], helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, bool, bool, bool]] = set()
    now = [""]
    losses = {"a": ASIB.a_losses, "b": ASIB.b_losses}

    def told(kind: str) -> Any:
        def run(self: ASIB, step: Any, batch: Any) -> Any:
            now[0] = kind
            try:
                return losses[kind](self, step, batch)
            finally:
                now[0] = ""

        return run

    def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if now[0]:
            seen.add((type(self).__name__, self.training, torch.is_grad_enabled(), now[0] == "a"))
        return torch.nn.Module.__call__(self, *args, **kwargs)

    monkeypatch.setattr(ASIB, "a_losses", told("a"))
    monkeypatch.setattr(ASIB, "b_losses", told("b"))
    for part in (Bridge, SynergyHead):
        monkeypatch.setattr(part, "__call__", watch, raising=False)
    lane = two.run(synergy_head_dropout=0.5)
    assert seen == {
        (name, in_a, in_a, in_a) for name in ("Bridge", "SynergyHead") for in_a in (True, False)
    }  # trained with gradients in A, asked in eval mode without in B
    first, last = _span(moments, "b1")
    assert {name.split(".")[1] for name in helpers.moved(first.method, last.method)} == {"student"}
    assert all(parameter.requires_grad for parameter in lane.method.parameters())  # flags as before
    assert helpers.moved(first.student, last.student)


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        ({"feat_kd_alpha": 0.05}, True),
        ({"feat_kd_alpha": 0.0}, False),
        ({"feat_kd_alpha": 0.05, **SHUT}, False),
        ({"feat_kd_alpha": 0.05, "auto_align_ib_out_dim": False, "ib_mbm_out_dim": 16}, False),  # no term: 8 is not 16
    ],
    ids=["feature term", "without", "gate shut", "other width"],
)
def test_the_students_adapter_learns_from_the_feature_term_alone(
    two: Any, moments: list[Any], helpers: Any, options: dict[str, Any], learns: bool
) -> None:
    lane = two.run(**options, anchor={"schedule__epochs": 1})
    first, last = _span(moments, "b1")
    moved = helpers.moved(first.method, last.method)
    assert moved == ({n for n in first.method if n.startswith("adapters.student")} if learns else set())
    assert ("feat" in _b(lane)[0].losses) == learns


@pytest.mark.parametrize(
    ("options", "mode", "gate", "share"),
    [
        ({"kd_target": "synergy"}, "synergy", 1.0, 1.0),
        ({"kd_target": "synergy", **SHUT}, "avg", 0.0, 0.0),
        ({"kd_target": "auto", **SHUT}, "weighted_conf", 0.0, 0.0),
        ({"kd_target": "avg"}, "avg", 1.0, 0.0),
        ({"kd_target": "weighted_conf"}, "weighted_conf", 1.0, 0.0),
        ({"kd_target": "teacher"}, "teacher", 1.0, 0.0),
    ],
)
def test_targets(two: Any, options: dict[str, Any], mode: str, gate: float, share: float) -> None:
    lane = two.run(**options, anchor={"schedule__epochs": 1}, feat_kd_alpha=0.0)
    (report,) = _b(lane)
    metrics = report.metrics
    assert (metrics["kd_tgt_mode"], metrics["gate_ratio"], metrics["kd_syn_ratio"]) == (mode, gate, share)
    assert metrics["kd_gate_on"] == gate
    assert report.losses["kd"] > 0  # KD is there whatever the gate says


def test_auto_reports_whom_most_samples_learn_from(two: Any) -> None:
    (report,) = _b(two.run(kd_target="auto", anchor={"schedule__epochs": 1}))
    wins = report.metrics["auto_syn_win_ratio"]
    assert report.metrics["kd_tgt_mode"] == ("synergy" if wins >= 0.5 else "avg")
    assert report.metrics["kd_syn_ratio"] == wins


def test_a_shut_gate_trains_the_same_student_as_the_teachers_alone(two: Any, helpers: Any) -> None:
    """Bridge and A-Step leave no trace: not in the student's random numbers, not in its order of images."""
    options = {"anchor": {"schedule__epochs": 2, "data__mixup_alpha": 0.2}}
    shut = two.train(two.spec(kd_target="synergy", **SHUT, **options), "shut")
    plain = two.train(
        two.spec(kd_target="avg", use_ib=False, teacher_adapt_epochs=0, feat_kd_alpha=0.0, **options), "plain"
    )
    assert helpers.moved(helpers.tensors(shut.student), helpers.tensors(plain.student)) == set()


def test_teachers_average_is_what_vanilla_kd_teaches(two: Any, helpers: Any) -> None:
    anchor = {"schedule__epochs": 2, "loss__teacher_weights": (3.0, 1.0)}
    options = {"use_ib": False, "teacher_adapt_epochs": 0, "kd_max_ratio": None, "feat_kd_alpha": 0.0}
    ours = two.train(two.spec(kd_target="avg", **options, anchor=anchor), "ours")
    theirs = two.train(two.spec(method="vanilla_kd", anchor=anchor), "theirs")
    one, other = helpers.tensors(ours.student), helpers.tensors(theirs.student)
    for name in one:  # the sums are taken in another order
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_sample_or_the_mean_of_the_bottleneck(two: Any, helpers: Any) -> None:
    mean = two.train(two.spec(use_mu_for_kd=True, kd_target="synergy"), "mean")
    sample = two.train(two.spec(use_mu_for_kd=False, kd_target="synergy"), "sample")
    assert helpers.moved(helpers.tensors(mean.student), helpers.tensors(sample.student))
    again = two.train(two.spec(use_mu_for_kd=False, kd_target="synergy"), "again")
    assert helpers.moved(helpers.tensors(sample.student), helpers.tensors(again.student)) == set()


def test_three_teachers_with_weights(lab: Any, two: Any) -> None:
    networks = ("resnet8_w4", ("resnet14_w8", "resnet8_w4", "resnet14_w8"))
    names = (*two.teachers, two.teachers[0])
    words = [f"{key}={value}" for key, value in {"distill_out_dim": 8, "teacher_adapt_epochs": 1}.items()]
    words += ["enable_kd_after_syn_acc=0", "synergy_only_epochs=0", "a_step_lr=0.01"]

    def run(where: str, weights: Any, *more: str) -> Any:
        anchor = lab.anchor(schedule__epochs=1, loss__teacher_weights=weights)
        return two.train(lab.spec("asib", *words, *more, anchor=anchor, networks=networks, teachers=names), where)

    lane = run("auto", (1.0, 2.0, 5.0))
    assert lane.history[-1].metrics["gate_ratio"] == 1.0
    assert len(lane.method.adapters.teachers) == 3
    tokens = [report.metrics["teacher_disagree_n"] for report in lane.history if report.phase == "b1"]
    assert tokens == [40.0]
    # All three count: KD towards their weighted mean is another one for other weights, the same for a multiple.
    kd = {
        weights: run(f"w{place}", weights, "kd_target=avg").history[-1].losses["kd"]
        for place, weights in enumerate([(1.0, 2.0, 5.0), (2.0, 4.0, 10.0), (1.0, 9.0, 0.5), None])
    }
    assert kd[1.0, 2.0, 5.0] == pytest.approx(kd[2.0, 4.0, 10.0])
    assert len({round(value, 6) for value in kd.values()}) == 3
