"""Phases that do not run the student or have a course of their own, and what a method may take from its set-up."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench import registry as registries
from kdbench.backbones.base import Network
from kdbench.config.schema import Schedule
from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Phase, Setup, TapRequest, View
from kdbench.registry import Registry
from kdbench.schedule import learning_rate, phase_rate
from kdbench.testing import check_method
from kdbench.testing.bench import Bench
from kdbench.training import cohort
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.networks import load_teacher, new_network
from kdbench.training.trainer import Interrupted
from kdbench.types import Context, Source, StageShape, Taps, Term

DIGIT = StageShape((1, 8, 8))

SOURCE = Source("A toy", 2020, "https://example.org")
EPOCHS = 2  # of an extra phase: steps 1-8; the main phase has three more
IMAGES = 160  # of one epoch

# --- toys -------------------------------------------------------------------------------------------------------------


def halving(share: float) -> float:
    return 0.5 ** (4 * share)


class HeadOptions(Options):
    where: str = Field("before", description="place of the head's phase: before or after the main phase")
    chosen: bool = Field(True, description="whether the phase says what it trains")
    rate: float | None = Field(None, description="initial rate of the phase")
    factor: bool = Field(True, description="whether the phase has a course of its own")
    epochs: int = Field(EPOCHS, description="epochs of the phase")
    views: bool = Field(False, description="whether there is a view")


class HeadFirst(Method[HeadOptions]):
    """Trains a head on the teacher's features alone, in a phase that does not run the student."""

    name, source, options_type = "toy_head_first", SOURCE, HeadOptions
    taps = TapRequest(Taps((0, -1), pre_activation=True, embedding=True), Taps(embedding=True))
    batches: list[Batch] = []  # noqa: RUF012 (of the head's phase; shared on purpose: tests read and clear it)

    def __init__(self, options: HeadOptions, context: Context) -> None:
        super().__init__(options, context)
        wide = context.teachers[0].embedding
        self.head = nn.Sequential(nn.BatchNorm1d(wide), nn.Dropout(0.2), nn.Linear(wide, context.student.classes))
        self.adapter = nn.Linear(context.student.embedding, wide)
        self.views = (View(1),) if options.views else ()

    def phases(self) -> tuple[Phase, ...]:
        o = self.options
        head = Phase(
            "head",
            o.epochs,
            self.head_losses,
            self.head.parameters if o.chosen else None,
            learning_rate=o.rate,
            rate_factor=halving if o.factor else None,
            student="off",
        )
        return (Phase(), head) if o.where == "after" else (head, Phase())

    def head_losses(self, batch: Batch) -> Losses:
        self.batches.append(batch)
        return {"head": batch.supervised(self.head(batch.teacher.embedding))}

    def losses(self, batch: Batch) -> Losses:
        near = F.mse_loss(self.adapter(batch.student.embedding), batch.teacher.embedding)
        return {"ce": batch.supervised(), "kd": batch.kd(), "near": Term(near, 0.1)}


class StemFirst(Method[Options]):
    """Its first phase offers the whole student to the optimizer, but only the first stages get a gradient."""

    name, source = "toy_stem_first", SOURCE
    taps = TapRequest(Taps((1,)))

    def phases(self) -> tuple[Phase, ...]:
        return Phase("stem", EPOCHS, self.stem_losses), Phase()

    def stem_losses(self, batch: Batch) -> Losses:
        return {"stem": Term((batch.student.stages[0].mean(0) - 1).square().mean())}

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised()}


class AdoptOptions(Options):
    trained: bool = Field(True, description="whether the adopted head is trained on")


class Deployed(nn.Module):
    """The student up to its embedding, an adapter, and a head."""

    def __init__(self, student: Network, adapter: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.student, self.adapter, self.head = student, adapter, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.adapter(self.student(images, Taps(embedding=True)).embedding))


class Adopts(Method[AdoptOptions]):
    """Takes its copy of the teacher's head for its own, and deploys it."""

    name, source, options_type = "toy_adopts", SOURCE, AdoptOptions
    taps = TapRequest(Taps(embedding=True))

    def __init__(self, options: AdoptOptions, context: Context) -> None:
        super().__init__(options, context)
        self.adapter = nn.Linear(context.student.embedding, context.teachers[0].embedding)

    def prepare(self, setup: Setup) -> None:
        self.head = setup.teachers[0].head.requires_grad_(requires_grad=self.options.trained)
        self.register_buffer("frequency", setup.labels.bincount().float())

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised(self.head(self.adapter(batch.student.embedding)))}

    def deploy(self, student: nn.Module) -> nn.Module:
        assert isinstance(student, Network)
        return Deployed(student, self.adapter, self.head)


class Curious(Method[Options]):
    """Keeps what it was set up with, and trains its copy of the teacher."""

    name, source = "toy_curious", SOURCE
    setups: list[Setup] = []  # noqa: RUF012 (as above)

    def prepare(self, setup: Setup) -> None:
        self.setups.append(setup)
        (teacher,) = setup.teachers
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        setup.labels.fill_(3)
        teacher.train().requires_grad_(requires_grad=True)
        with torch.no_grad():
            teacher(torch.rand(8, 1, 8, 8))  # other BatchNorm statistics
            for tensor in (*teacher.parameters(), *teacher.buffers()):
                tensor.zero_()
        teacher.set_normalisation((0.9,), (0.9,))
        teacher.to(torch.float64)
        teacher.head = nn.Identity()

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised()}


class Orphan(Method[Options]):
    """Has no teacher, neither to learn from nor to look at."""

    name, source, uses_teacher = "toy_orphan", SOURCE, False
    counts: list[int] = []  # noqa: RUF012 (as above)

    def prepare(self, setup: Setup) -> None:
        self.counts.append(len(setup.teachers))

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised()}


@hookimpl
def kdbench_methods() -> Iterable[type[AnyMethod]]:
    return [HeadFirst, StemFirst, Adopts, Curious, Orphan]


@cache
def _registry(toys: Any) -> Registry:
    return registries.load(extra=[toys, sys.modules[__name__]])


@pytest.fixture
def lab(lab: Any, toys: Any) -> Iterator[Any]:
    lab.place = replace(lab.place, registry=_registry(toys))
    for kept in (HeadFirst.batches, Curious.setups, Orphan.counts):
        kept.clear()
    yield lab
    for kept in (HeadFirst.batches, Curious.setups, Orphan.counts):
        kept.clear()


def _stopped(lab: Any, spec: Any, where: str, steps: int) -> dict[str, Any]:
    with pytest.raises(Interrupted):
        lab.train([spec], where, should_stop=lab.stop_after(steps))
    state = CheckpointFolder(lab.folders([spec], where)[0].checkpoints).newest()
    assert state is not None
    return state


def _fresh(lab: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = new_network(lab.place.registry.backbones["resnet8_w4"], 10, DIGIT, seed=0).state_dict()
    return state


# --- phases that do not run the student -------------------------------------------------------------------------------

HEAVY = {"optimizer__weight_decay": 0.1, "optimizer__lr": 0.5}
ADAMW = {"optimizer__name": "adamw", "optimizer__nesterov": False, "optimizer__weight_decay": 0.5}
VARIANTS = [HEAVY, ADAMW, {"step__precision": "fp16", **HEAVY}, {"step__accumulate": 4, "step__ema_decay": 0.5}]


@pytest.mark.parametrize("settings", [("chosen=true",), ("chosen=false",), ("chosen=false", "views=true")])
@pytest.mark.parametrize("changes", VARIANTS, ids=["sgd", "adamw", "fp16", "accumulated"])
def test_a_student_that_is_not_run_keeps_every_bit(lab: Any, settings: Any, changes: dict[str, Any]) -> None:
    """Weights, BatchNorm statistics and counts, even where the optimizer is given all of it and decays weights."""
    spec = lab.spec("toy_head_first", *settings, anchor=lab.anchor(**changes))
    early, late = _stopped(lab, spec, "early", 1), _stopped(lab, spec, "late", 8)
    fresh = _fresh(lab)
    assert late["student"].keys() == fresh.keys()
    for key, value in fresh.items():
        assert torch.equal(late["student"][key], value), key
    assert not torch.equal(early["method"]["head.2.weight"], late["method"]["head.2.weight"]), "nothing was trained"
    assert torch.equal(early["method"]["adapter.weight"], late["method"]["adapter.weight"]), "nobody used it"


def test_a_student_that_is_not_run_costs_nothing(lab: Any) -> None:
    for settings, inputs in (((), 1), (("views=true",), 2)):
        spec = lab.spec("toy_head_first", *settings)
        counters = _stopped(lab, spec, f"cut{inputs}", 8)["counters"]
        assert (counters["images"], counters["student_forwards"]) == (EPOCHS * IMAGES, 0)
        assert counters["teacher_forwards"] == EPOCHS * IMAGES * inputs
        lane = lab.train([spec], f"cut{inputs}")[0].lane
        assert (lane.counters.images, lane.counters.student_forwards) == (5 * IMAGES, 3 * IMAGES * inputs)
        assert lane.counters.teacher_forwards == 5 * IMAGES * inputs


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_student_that_is_not_run_says_nothing(lab: Any, chunks: int) -> None:
    spec = lab.spec("toy_head_first", "views=true", anchor=lab.anchor(step__accumulate=chunks))
    lane = lab.train([spec], "runs")[0].lane
    assert len(HeadFirst.batches) == 8 * chunks
    for batch in HeadFirst.batches:
        for said in (batch.student, batch.views[0].student):
            assert said.logits.shape == (40 // chunks, 0)
            assert (said.embedding, said.stages, said.pre_stages) == (None, (), ())
            assert not said.logits.requires_grad
        assert batch.teacher.logits.shape == (40 // chunks, 10)
        assert len(batch.images) == len(batch.labels) == len(batch.views[0].images) == 40 // chunks
    head = [report for report in lane.history if report.phase == "head"]
    assert len(head) == EPOCHS
    assert all(report.losses.keys() == {"head", "total"} for report in head)
    assert {(report.train_accuracy, report.validation_accuracy, report.test_accuracy) for report in head} == {
        (None, None, None)
    }
    assert all(report.train_accuracy is not None for report in lane.history if report.phase == "main")


def test_the_main_phase_after_it_starts_from_the_same_student(lab: Any) -> None:
    """Without its head phase the method trains to the very same student: no draw, no order, no rate is shifted."""
    both, alone = (
        lab.train([lab.spec("toy_head_first", f"epochs={epochs}")], str(epochs))[0].lane for epochs in (2, 0)
    )
    assert [report.phase for report in both.history] == ["head"] * 2 + ["main"] * 3
    assert [report.number for report in both.history] == [0, 1, 2, 3, 4]
    assert [report.phase for report in alone.history] == ["main"] * 3
    assert lab.digest_of(both.student.state_dict()) == lab.digest_of(alone.student.state_dict())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_phase_after_the_main_one_leaves_student_and_score_alone(lab: Any, decay: float) -> None:
    """ "If not, nothing of it changes": neither the student nor the average of it that is scored."""
    spec = lab.spec("toy_head_first", "where=after", anchor=lab.anchor(step__ema_decay=decay))
    main, end = _stopped(lab, spec, "cut", 12), lab.train([spec], "whole")[0].lane
    assert [report.phase for report in end.history] == ["main"] * 3 + ["head"] * EPOCHS
    assert lab.digest_of(end.student.state_dict()) == lab.digest_of(main["student"])
    if decay:
        kept = {key: value for key, value in main["average"]["model"].items() if key.startswith("0.")}
        now = end.state()["average"]["model"]
        moved = [key for key, value in kept.items() if not torch.equal(now[key], value)]
        assert not moved, f"{len(moved)} of {len(kept)} tensors of the student that is deployed have moved"


@pytest.mark.parametrize("stop", [1, 4, 6, 8, 9, 15])
def test_a_run_with_such_a_phase_resumes_exactly(lab: Any, stop: int) -> None:
    spec = lab.spec("toy_head_first", "views=true", "chosen=false", anchor=lab.anchor(step__ema_decay=0.9))
    _stopped(lab, spec, "cut", stop)
    assert lab.digest_after(spec, "cut") == lab.digest_after(spec, "whole")


@pytest.mark.parametrize("method", [HeadFirst, StemFirst, Adopts, Orphan], ids=lambda method: method.name)
def test_the_kit_knows_such_methods(lab: Any, method: type[AnyMethod]) -> None:
    assert [result.message for result in check_method(method) if not result.ok] == []


# --- the learning rate of a phase -------------------------------------------------------------------------------------

WARM = Schedule(name="cosine", epochs=6, warmup_epochs=2, min_lr=0.01)


def test_the_course_of_a_phase_by_hand() -> None:
    phase = Phase("head", epochs=4, rate_factor=lambda share: 1 - share)
    assert [phase_rate(WARM, phase, 0.8, epoch, 4) for epoch in range(4)] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    own = replace(phase, learning_rate=0.4)
    assert [phase_rate(WARM, own, 0.8, epoch, 4) for epoch in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_the_share_done_starts_at_zero_and_stays_below_one() -> None:
    asked: list[float] = []
    phase = Phase("head", epochs=3, rate_factor=lambda share: asked.append(share) or 1.0)  # type: ignore[func-returns-value]
    assert [phase_rate(WARM, phase, 0.5, epoch, 3) for epoch in range(3)] == [0.5] * 3
    assert asked == [0, 1 / 3, 2 / 3]


@pytest.mark.parametrize("rate", [None, 0.4])
def test_without_a_factor_a_phase_has_the_anchors_schedule_over_its_own_epochs(rate: float | None) -> None:
    phase = Phase("head", epochs=4, learning_rate=rate)
    for epoch in range(4):
        assert phase_rate(WARM, phase, 0.8, epoch, 4) == learning_rate(WARM, rate or 0.8, epoch, 4)
    assert phase_rate(WARM, phase, 0.8, 2, 4) == pytest.approx(rate or 0.8)  # behind the warm-up


@pytest.mark.parametrize(
    ("settings", "first"), [((), 0.5), (("rate=0.02",), 0.02), (("rate=0.02", "factor=false"), 0.02)]
)
def test_a_run_follows_the_course(lab: Any, settings: tuple[str, ...], first: float) -> None:
    anchor = lab.anchor(optimizer__lr=0.5, schedule__name="cosine", schedule__warmup_epochs=1)
    spec = lab.spec("toy_head_first", "epochs=4", *settings, anchor=anchor)
    state = _stopped(lab, spec, "cut", 10)  # in the third epoch
    lane = lab.train([spec], "cut")[0].lane
    found = [report.learning_rate for report in lane.history]
    expected = [first * 0.5**epoch for epoch in range(4)]
    if "factor=false" in settings:
        expected = [learning_rate(anchor.schedule, first, epoch, 4) for epoch in range(4)]
    assert found[:4] == pytest.approx(expected)
    assert state["optimizers"]["head"]["param_groups"][0]["lr"] == pytest.approx(expected[2]), (
        "what the optimizer really used"
    )
    assert found[4:] == pytest.approx([learning_rate(anchor.schedule, 0.5, epoch) for epoch in range(3)])


def test_the_main_phase_takes_neither_a_course_nor_leave_of_the_student() -> None:
    with pytest.raises(ValueError, match="the main phase has the anchor's learning rate"):
        Phase(rate_factor=halving)
    with pytest.raises(ValueError, match="so it must run it"):
        Phase(student="off")
    assert Phase("head", epochs=0, rate_factor=halving, student="off").rate_factor is halving


# --- parameters without a gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [HEAVY, ADAMW, {"step__precision": "fp16", **HEAVY, "step__accumulate": 2}])
def test_parameters_without_a_gradient_are_left_alone(lab: Any, changes: dict[str, Any]) -> None:
    """No weight decay, no momentum: where a phase's loss does not reach, a weight keeps its bits."""
    spec = lab.spec("toy_stem_first", anchor=lab.anchor(**changes))
    student, fresh = _stopped(lab, spec, "runs", 8)["student"], _fresh(lab)
    weights = [key for key in fresh if "running" not in key and "tracked" not in key]
    still = {key for key in weights if torch.equal(student[key], fresh[key])}
    reached = {key for key in weights if key.startswith(("conv1", "bn1", "layer1"))}
    assert still == set(weights) - reached
    assert any(key.startswith("fc") for key in still)
    deeper = [key for key in fresh if key.startswith("layer3") and "running_mean" in key]
    assert deeper
    assert not any(torch.equal(student[key], fresh[key]) for key in deeper), "the student did run"


# --- the set-up -------------------------------------------------------------------------------------------------------


def test_what_a_method_does_to_its_copies_changes_nothing_beside_it(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    original = cohort.load_teacher
    monkeypatch.setattr(cohort, "load_teacher", lambda *args: loaded.append(original(*args)) or loaded[-1])
    specs = [lab.spec(method) for method in ("toy_curious", "dkd", "toy_adopts", "toy_bank")]
    beside = lab.train(specs, "beside")
    curious, *others = (entry.lane for entry in beside)
    assert curious.failure is None
    for spec, lane in zip(specs[1:], others, strict=True):
        alone = lab.train([spec], "alone")[0].lane
        for part in ("student", "method", "optimizers"):
            assert lab.digest_of(lane.state()[part]) == lab.digest_of(alone.state()[part]), (spec.method, part)
    teacher, setup = loaded[0], Curious.setups[0]
    assert setup.networks[0] is teacher
    manifest = lab.place.teachers.manifest(lab.dataset, lab.teacher)
    stored = lab.place.teachers.weights(manifest)
    assert lab.digest_of(dict(sorted(teacher.state_dict().items()))) == lab.digest_of(dict(sorted(stored.items())))
    assert (teacher.mean.item(), teacher.std.item()) == (manifest.mean[0], manifest.std[0])
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("what", ["prepared labels", "prepared teachers"])
def test_a_vandal_in_prepare_costs_no_other(lab: Any, what: str) -> None:
    expected = lab.digest_of(lab.train([lab.spec("dkd")], "alone")[0].lane.student.state_dict())
    vandal, dkd = lab.train([lab.spec("toy_vandal", f"what={what}"), lab.spec("dkd")], "beside")
    assert (vandal.lane.failure, dkd.lane.failure) == (None, None)
    assert lab.digest_of(dkd.lane.student.state_dict()) == expected


def test_each_lane_has_labels_and_teachers_of_its_own(lab: Any) -> None:
    specs = [lab.spec("toy_curious"), lab.spec("toy_curious", anchor=lab.anchor(loss__tau=2.0))]
    trained = lab.train(specs, "runs")
    one, other = Curious.setups
    assert one.labels.data_ptr() != other.labels.data_ptr()
    assert one.teachers[0] is one.teachers[0]
    assert len({id(one.teachers[0]), id(other.teachers[0]), id(one.networks[0])}) == 3
    (entry, _) = trained
    assert len(entry.data.train.labels.unique()) == 10
    assert (one.labels.dtype, one.labels.shape) == (torch.int64, entry.data.train.labels.shape)


def test_a_method_without_a_teacher_is_shown_none(lab: Any) -> None:
    lab.train([lab.spec("toy_orphan"), lab.spec("dkd")], "runs")
    assert Orphan.counts == [0]


def test_the_kit_shows_such_a_method_none_either(lab: Any) -> None:
    Bench(Orphan).start()
    assert Orphan.counts == [0]


# --- what a method adopts ---------------------------------------------------------------------------------------------


def _teacher_head(lab: Any) -> Any:
    (manifest,) = lab.place.teachers.all()
    return load_teacher(lab.place.teachers, manifest, lab.place.registry.backbones["resnet14_w8"], DIGIT).head


def test_an_adopted_module_is_checkpointed_averaged_and_deployed(lab: Any) -> None:
    """The average by hand: the first step's weights, then 3/4 of the old average and 1/4 of the new weights."""
    spec = lab.spec("toy_adopts", anchor=lab.anchor(step__ema_decay=0.75))
    states = [_stopped(lab, spec, str(steps), steps) for steps in (1, 2, 3)]
    assert {"head.weight", "head.bias", "frequency", "adapter.weight"} <= states[0]["method"].keys()
    for key in ("head.weight", "head.bias"):
        one, two, three = (state["method"][key].double() for state in states)
        assert not torch.equal(one, three)
        torch.testing.assert_close(one, getattr(_teacher_head(lab), key[5:]).double(), rtol=0, atol=0.2)
        expected = 0.75 * (0.75 * one + 0.25 * two) + 0.25 * three
        torch.testing.assert_close(states[2]["average"]["model"][f"1.{key}"].double(), expected, rtol=1e-5, atol=1e-7)
    lane = lab.train([spec], "whole")[0].lane
    assert lane.failure is None
    deployed, average = lane.deployed().state_dict(), lane.state()["average"]["model"]
    assert torch.equal(deployed["head.weight"], average["1.head.weight"])
    assert torch.equal(deployed["adapter.weight"], average["1.adapter.weight"])
    assert not torch.equal(deployed["head.weight"], lane.method.head.weight)


@pytest.mark.parametrize("trained", [True, False])
def test_an_adopted_module_is_trained_if_it_takes_a_gradient(lab: Any, trained: bool) -> None:
    spec = lab.spec("toy_adopts", f"trained={str(trained).lower()}", anchor=lab.anchor(**HEAVY))
    lane = lab.train([spec], "runs")[0].lane
    assert lane.failure is None
    assert torch.equal(lane.method.head.weight, _teacher_head(lab).weight) != trained
    assert torch.equal(lane.deployed().state_dict()["head.weight"], lane.method.head.weight)
    assert lane.method.frequency.sum() == IMAGES


RICH = {"step__precision": "fp16", "step__ema_decay": 0.9, "step__accumulate": 2, "data__cutmix_alpha": 1.0}


@pytest.mark.parametrize(("stop", "changes"), [(2, {}), (4, {}), (11, {}), (6, RICH)])
def test_an_adopted_module_resumes_exactly(lab: Any, stop: int, changes: dict[str, Any]) -> None:
    spec = lab.spec("toy_adopts", anchor=lab.anchor(**changes))
    state = _stopped(lab, spec, "cut", stop)
    assert not torch.equal(state["method"]["head.weight"], _teacher_head(lab).weight), "the case says nothing"
    assert lab.digest_after(spec, "cut") == lab.digest_after(spec, "whole")


def test_a_run_with_an_adopted_module_ends_in_a_record(lab: Any) -> None:
    (record,) = lab.run([lab.spec("toy_adopts")], "runs")
    assert record.status != "infra_failed", record.reason
    assert record.accuracy is not None
