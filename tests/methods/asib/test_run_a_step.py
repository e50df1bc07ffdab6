"""The A-Step in a run: what it trains and what it leaves alone, its optimizer, its measurements and snapshots (2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdbench.config.schema import Optimizer
from kdbench.methods.asib.method import ASIB
from kdbench.testing.bench import Bench, Place
from kdbench.training.lane import Lane
from kdbench.training.optimizer import FACTOR, Optimizers

MIXING = {"data__mixup_alpha": 0.2, "data__cutmix_alpha": 1.0}


def _a(lane: Any) -> list[Any]:
    return [report for report in lane.history if report.phase.startswith("a")]


def bench(**options: Any) -> Bench:
    """Return a bench of the kit with other options."""
    made = Bench(ASIB)
    given = {**ASIB.recommended("fair_baseline", made.pair), "distill_out_dim": 8, **options}
    made.__dict__["options"] = ASIB.options_type.model_validate(given)
    return made


def test_the_student_keeps_every_bit_and_images_are_not_mixed(
    two: Any, moments: list[Any], helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, bool]] = []
    batch_of, lanes = Lane.batch_of, []

    def watch(self: Lane, *args: Any, **kwargs: Any) -> Any:
        batch = batch_of(self, *args, **kwargs)
        if not self.looking:
            seen.append((self.phase.name, batch.mix is not None, batch.student.logits.requires_grad))
            lanes.append(self)
        return batch

    monkeypatch.setattr(Lane, "batch_of", watch)
    two.run(num_stages=2, anchor={"schedule__epochs": 2, **MIXING})
    assert set(seen) == {("a1", False, False), ("b1", True, True), ("a2", False, False), ("b2", True, True)}
    at = {(moment.phase, moment.epoch): moment.student for moment in moments}
    for phase in ("a1", "a2"):
        # Weights, and the statistics of BN with their counters.
        assert any("num_batches_tracked" in name for name in at[phase, 0])
        assert helpers.moved(at[phase, 0], at[phase, 2]) == set()
    assert helpers.moved(at["b1", 0], at["b1", 1])
    assert all(parameter.requires_grad for parameter in lanes[0].student.parameters())


def test_what_it_trains(two: Any, moments: list[Any], helpers: Any) -> None:
    two.run(anchor={"schedule__epochs": 1}, a_step_loss_guard=False)
    at = {(moment.phase, moment.epoch): moment.method for moment in moments}
    moved = helpers.moved(at["a1", 0], at["a1", 2])
    parts = {name.split(".")[0] if not name.startswith("adapters") else name[:17] for name in moved}
    assert parts == {"bridge", "head", "adapters.teachers"}
    # With use_ib every tensor of them has a gradient.
    trained = {name for name in at["a1", 0] if name.startswith(("bridge", "head", "adapters.teachers"))}
    assert moved == trained


def test_adapters_stand_still_unless_they_are_trained(two: Any, moments: list[Any], helpers: Any) -> None:
    two.run(anchor={"schedule__epochs": 1}, train_distill_adapter_only=False, a_step_loss_guard=False)
    moved = helpers.moved(moments[0].method, moments[-1].method)
    assert {name.split(".")[0] for name in moved} == {"bridge", "head", "adapters"}
    assert {name for name in moved if name.startswith("adapters")} == {
        f"adapters.student.{layer}.{part}" for layer in ("first", "second") for part in ("weight", "bias")
    }  # the student's, in the B-Step


@pytest.mark.parametrize(
    ("options", "rates", "decay"),
    [
        ({"a_step_lr": 1e-3, "ib_mbm_lr_factor": 2.0}, (2e-3, 1e-3), 1e-4),
        ({"a_step_lr": 1e-3, "teacher_lr": 5e-5, "teacher_weight_decay": 0.02}, (2e-3, 5e-5), 0.02),
        ({"a_step_lr": 0.0, "teacher_lr": 4e-4, "ib_mbm_lr_factor": 10.0}, (4e-3, 4e-4), 1e-4),
    ],
)
def test_one_adam_with_coupled_decay_and_separate_rates(
    options: dict[str, Any], rates: tuple[float, float], decay: float
) -> None:
    method = bench(**options, adam_beta1=0.8, adam_beta2=0.95, num_stages=2).build()
    phases = method.phases()
    made = Optimizers(Optimizer(lr=0.1, weight_decay=0.5), [])
    first = made.of(phases[0], [], phases[0].optimizer.lr)
    assert type(first) is torch.optim.Adam  # AdamW would decouple the decay
    assert [group["lr"] * group[FACTOR] for group in first.param_groups] == pytest.approx(rates)
    assert {group["weight_decay"] for group in first.param_groups} == {decay}
    assert {group["betas"] for group in first.param_groups} == {(0.8, 0.95)}
    synergy, teachers = (group["params"] for group in first.param_groups)
    assert {id(p) for p in synergy} == {id(p) for part in (method.bridge, method.head) for p in part.parameters()}
    assert {id(p) for p in teachers} == {id(p) for p in method.adapters.teachers.parameters()}
    assert phases[2].name == "a2"
    assert made.of(phases[2], [], 0.0) is first  # one for all A-Steps


def test_the_window_and_the_gate_say_which_terms_there_are(two: Any) -> None:
    options = {"teacher_adapt_epochs": 4, "synergy_only_epochs": 2, "teacher_eval_every": 3}
    open_ = two.train(two.spec(**options, enable_kd_after_syn_acc=0.0), "open")
    only, learned = {"ce", "total"}, {"ce", "ib", "total"}
    assert [set(report.losses) for report in _a(open_)] == [only, only, learned | {"kd"}, learned | {"kd"}]
    shut = two.train(two.spec(**options, enable_kd_after_syn_acc=0.99), "shut")
    assert [set(report.losses) for report in _a(shut)] == [only, only, learned, learned]
    assert [report.metrics["kd_gate"] for report in _a(open_)] == [0, 0, 1, 1]
    # Behind a threshold an unmeasured synergy is shut; the third epoch's measurement opens the gate for the fourth.
    late = two.train(two.spec(**options, enable_kd_after_syn_acc=0.01), "late")
    assert [report.metrics["kd_gate"] for report in _a(late)] == [0, 0, 0, 1]


def test_the_default_threshold_is_none_in_the_a_step_and_80_percent_in_the_b_step(two: Any) -> None:
    lane = two.run(enable_kd_after_syn_acc=None, anchor={"schedule__epochs": 1})
    assert [report.metrics["kd_gate"] for report in _a(lane)] == [0, 1]  # 0 in A ...
    assert lane.history[-1].metrics["gate_ratio"] == 0  # ... and 0.8 in B


def test_the_synergy_is_measured_every_n_epochs_and_after_the_last_and_averaged_across_stages(
    two: Any, script: Callable[..., None]
) -> None:
    script("synergy", [20.0, 50.0, 30.0, 100.0, 10.0, 60.0])
    lane = two.run(num_stages=2, teacher_adapt_epochs=5, teacher_eval_every=2, anchor={"schedule__epochs": 2})
    told = [report.metrics.get("syn_acc") for report in _a(lane)]
    assert told == [None, 20.0, None, 50.0, 30.0, None, 100.0, None, 10.0, 60.0]
    last = [report.metrics.get("last_synergy_acc") for report in _a(lane)]
    second = 0.8 * 0.2 + 0.2 * 0.5
    third = 0.8 * second + 0.2 * 0.3
    fourth = 0.8 * third + 0.2 * 1.0
    fifth = 0.8 * fourth + 0.2 * 0.1
    sixth = 0.8 * fifth + 0.2 * 0.6
    expected = [0.2, 0.2, second, third, third, fourth, fourth, fifth, sixth]
    assert last[0] is None
    assert last[1:] == pytest.approx(expected)
    percent = [report.metrics["last_synergy_acc_pct"] for report in _a(lane)[1:]]
    assert percent == pytest.approx([100 * value for value in expected])
    assert [r.metrics["best_synergy_acc"] for r in lane.history if "best_synergy_acc" in r.metrics] == [50.0, 100.0]
    # B-Steps change nothing of it.
    assert [r.metrics["last_synergy_acc"] for r in lane.history if r.phase == "b1"] == pytest.approx([third])


@pytest.mark.parametrize(
    ("every", "accuracies", "kept"),
    [
        (1, [50.0, 90.0, 10.0], 2),
        (1, [50.0, 50.0, 50.0], 1),
        (1, [0.0, 0.0, 5.0], 3),
        (10, [1.0], 3),
        (2, [7.0, 3.0], 2),
    ],
)
def test_the_best_measured_epoch_is_what_an_a_step_ends_with(
    two: Any,
    moments: list[Any],
    script: Callable[..., None],
    helpers: Any,
    every: int,
    accuracies: list[float],
    kept: int,
) -> None:
    script("synergy", accuracies)
    raw: list[dict[str, Any]] = []  # as the steps left it, before anything was restored
    options = {"teacher_adapt_epochs": 3, "teacher_eval_every": every, "a_step_loss_guard": False}
    spec = two.spec(**options, anchor={"schedule__epochs": 1})
    after = ASIB.after_epoch

    def watch(self: ASIB, interlude: Any) -> Any:
        raw.append(helpers.tensors(self))
        return after(self, interlude)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ASIB, "after_epoch", watch)
        two.train(spec)
    begun = next(moment for moment in moments if moment.phase == "b1")
    assert helpers.moved(begun.method, raw[kept - 1]) == set()
    for other in {1, 2, 3} - {kept}:
        assert helpers.moved(begun.method, raw[other - 1])


def test_a_worse_epoch_is_undone_and_the_rate_halved(two: Any, moments: list[Any], helpers: Any) -> None:
    """The references begin anew with each A-Step and with each change of the terms; the rate stays halved."""
    losses = iter([5.0, 9.0, 1.0, 3.0, 7.0, 8.0])  # window, then other terms; a second A-Step
    guarded = ASIB._guarded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ASIB, "_guarded", lambda self, _loss, parts: guarded(self, next(losses), parts))
        lane = two.run(
            num_stages=2,
            teacher_adapt_epochs=3,
            synergy_only_epochs=1,
            teacher_eval_every=9,
            ib_mbm_lr_factor=1.0,
            anchor={"schedule__epochs": 2},
        )
    # a1: 5 (window), 9 is the first of other terms, 1 is better. a2: 3 (window), 7 first of other terms, 8 is worse.
    assert [report.metrics.get("guarded") for report in _a(lane)] == [None] * 5 + [1.0]
    at = {(moment.phase, moment.epoch): moment for moment in moments}
    assert helpers.moved(at["a2", 3].method, at["a2", 2].method) == set()
    assert helpers.moved(at["a2", 2].method, at["a2", 1].method)
    assert [at["a2", epoch].rate for epoch in (2, 3)] == [1.0, 0.5]
    # The epoch that was undone had the whole rate: 0.01 * (1 + cos(5 pi / 6)) / 2.
    assert _a(lane)[-1].learning_rate == pytest.approx(0.01 * 0.0669873, rel=1e-5)


def test_the_guard_halves_every_rate_that_follows(two: Any) -> None:
    losses = iter([1.0, 2.0, 3.0])
    guarded = ASIB._guarded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ASIB, "_guarded", lambda self, _loss, parts: guarded(self, next(losses), parts))
        lane = two.run(
            teacher_adapt_epochs=3, synergy_only_epochs=0, ib_mbm_lr_factor=1.0, anchor={"schedule__epochs": 1}
        )
    assert [report.metrics.get("guarded") for report in _a(lane)] == [None, 1.0, 1.0]
    assert [r.learning_rate for r in _a(lane)] == pytest.approx([0.01, 0.0075, 0.5 * 0.0025])


def test_each_a_step_has_references_of_its_own(two: Any, script: Callable[..., None]) -> None:
    """A loss above that of the A-Step before is no worse epoch, an accuracy below that A-Step's may be the best."""
    script("synergy", [90.0, 20.0])
    losses = iter([1.0, 2.0])
    guarded = ASIB._guarded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ASIB, "_guarded", lambda self, _loss, parts: guarded(self, next(losses), parts))
        lane = two.run(num_stages=2, teacher_adapt_epochs=1, synergy_only_epochs=0)
    assert all("guarded" not in report.metrics for report in _a(lane))
    assert [report.metrics["best_synergy_acc"] for report in _a(lane)] == [90.0, 20.0]


def test_without_the_guard_nothing_is_undone(two: Any) -> None:
    losses = iter([1.0, 2.0])
    guarded = ASIB._guarded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ASIB, "_guarded", lambda self, _loss, parts: guarded(self, next(losses), parts))
        lane = two.run(synergy_only_epochs=0, a_step_loss_guard=False, anchor={"schedule__epochs": 1})
    assert all("guarded" not in report.metrics for report in _a(lane))
    assert lane.method.memory.rate == 1.0


def test_a_batch_without_a_finite_loss_is_left_out_and_counted(
    two: Any, moments: list[Any], helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = ASIB.a_losses, []

    def broken(self: ASIB, step: Any, batch: Any) -> Any:
        terms = dict(original(self, step, batch))
        calls.append(1)
        if len(calls) in broken_at:
            terms["ce"] = type(terms["ce"])(terms["ce"].value * float("nan"), terms["ce"].weight)
        return terms

    monkeypatch.setattr(ASIB, "a_losses", broken)
    broken_at = {2}
    lane = two.train(two.spec(anchor={"schedule__epochs": 1}), "one")
    assert [report.metrics["skipped_steps"] for report in _a(lane)] == [1, 0]
    assert all(report.losses["total"] is not None for report in _a(lane))
    # Not even one good step in an epoch: there is nothing to go on with.
    calls.clear()
    broken_at = set(range(100))
    lane = two.lab.train([two.spec(anchor={"schedule__epochs": 1})], "all")[0].lane
    assert [report.metrics["skipped_steps"] for report in _a(lane)] == [4]
    assert lane.diverged == "non-finite loss in phase 'a1', epoch 1"


def test_a_gate_that_was_never_measured_is_measured_before_the_b_step() -> None:
    run = bench(teacher_adapt_epochs=1, synergy_only_epochs=0).start()
    place = next(Place(index, 0) for index, phase in enumerate(run.phases) if phase.name == "b1")
    assert run.method.memory.last_synergy_acc is None
    with torch.no_grad():
        run.method.before_phase(run._interlude(place, 0, 0, {}))
    first = run.method.memory.last_synergy_acc
    assert first is not None
    assert 0 <= first <= 1
    run.method.memory.last_synergy_acc = 0.42
    with torch.no_grad():
        run.method.before_phase(run._interlude(place, 0, 0, {}))
    assert run.method.memory.last_synergy_acc == 0.42  # B-Steps only ever initialise it


def test_nothing_is_measured_where_the_synergy_is_no_target() -> None:
    run = bench(kd_target="avg").start()
    place = next(Place(index, 0) for index, phase in enumerate(run.phases) if phase.name == "b1")
    run.method.before_phase(run._interlude(place, 0, 0, {}))
    assert run.method.memory.last_synergy_acc is None
