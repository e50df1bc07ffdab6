"""Dry runs: what is wrong with a cell is known from its plan, and what is not wrong is not held against it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones.base import Backbone, Network, by_channels
from kdbench.backbones.freezing import FreezeLevel
from kdbench.datasets.base import Dataset, DatasetInfo, Split
from kdbench.errors import ConfigError, KdbenchError, PluginError, ProblemList, Unsupported
from kdbench.memory import estimate, student_costs, teacher_costs, teacher_flops, too_large
from kdbench.method import AnyMethod, Batch, Losses, LossProtocol, Method, Options, Phase, Setup, TapRequest, View
from kdbench.options import apply_deviations
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.rehearsal import REAL_BATCH, Burden, Passes
from kdbench.schedule import loss_protocol
from kdbench.types import Context, Deviation, LossWeights, Pair, PairInfo, Source, StageShape, Taps, Term

SOURCE = Source("t", 2020, "https://example.org")
EPOCHS, TRAIN = 2, 30  # of fair_baseline_smoke; 40 images, of the four of each class one is for validation
REQUEST = Request((), ("tiny",), (0,), "fair_baseline_smoke", dataset="sealed")
Plan_ = Callable[..., Plan]


class Sealed:
    """A dataset that may be described, and must not be read. 10 classes of 4 training images."""

    shape = (1, 8, 8)

    def __init__(self, _argument: str, _root: Path) -> None:
        pass

    @property
    def info(self) -> DatasetInfo:
        name = type(self).__name__.lower()
        return DatasetInfo(name, name, tuple("0123456789"), StageShape(self.shape), 40, 20, "f")

    def train(self) -> Split:
        raise AssertionError("training images were read")

    def test(self) -> Split:
        raise AssertionError("test images were read")


class Oblong(Sealed):
    shape = (1, 8, 16)


class Giant(Network):
    """Twelve terabytes of weights."""

    stage_count, embedding_dim = 1, 10**6

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        self.first = nn.Conv2d(in_channels, 10**6, 1)
        self.middle = nn.Linear(10**6, 3 * 10**6, bias=False)
        self.head = nn.Linear(10**6, num_classes)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:  # noqa: ARG002
        x = self.first(x[:, :, :1, :1])
        return (x if pre else None), x.relu()

    def embed(self, x: Tensor) -> Tensor:
        return self.middle(x.mean((2, 3)))[:, : self.embedding_dim]


class Reticent(Network):
    """Its only stage ends without an activation, so there is no value before one."""

    stage_count, embedding_dim = 1, 6

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        self.first, self.head = nn.Conv2d(in_channels, 6, 3), nn.Linear(6, num_classes)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:  # noqa: ARG002
        if pre:
            raise NotImplementedError("no activation, so nothing before it")
        return None, self.first(x)

    def embed(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


PAIRS = (
    Pair("giants", "giant", ("giant", "giant"), "sealed"),
    Pair("reticents", "reticent", ("reticent",), "sealed"),
    Pair("two", "resnet8_w4", ("resnet14_w8", "resnet8_w4"), "sealed"),
)


class Guest(Method[Options]):
    name, source = "guest", SOURCE

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised(), "kd": batch.kd()}


@pytest.fixture
def plan(with_plugin: Callable[..., Registry]) -> Plan_:
    """Return what plans methods, by name or as part of all; built-in methods are left out."""

    def make(*methods: type[AnyMethod], named: bool = True, registry: bool = False, **changes: Any) -> Any:
        known = with_plugin(
            kdbench_datasets=lambda: [Dataset("sealed", Sealed), Dataset("oblong", Oblong)],
            kdbench_methods=lambda: list(methods),
            kdbench_backbones=lambda: [
                Backbone("giant", "t", by_channels(Giant), SOURCE),
                Backbone("reticent", "t", by_channels(Reticent), SOURCE),
            ],
        )
        for pair in PAIRS:
            known.pairs.add(pair.name, pair, known.methods.owner(methods[0].name))
        entries = known.methods._entries
        own = {method.name for method in methods}
        for name in [name for name in entries if name not in own]:
            del entries[name]
        wanted = tuple(method.name for method in methods) if named else ("all",)
        made = make_plan(replace(REQUEST, methods=wanted, **changes), known)
        return (made, known) if registry else made

    return make


def made(method: type[AnyMethod], name: str, **attributes: object) -> type[AnyMethod]:
    return type(name, (method,), {"name": name, **attributes})


# --- methods that decline or break ------------------------------------------------------------------------------------


class Declines(Guest):
    name = "declines"

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        if context.batch_size < 100:
            raise Unsupported(f"a batch of {context.batch_size} is too small")


@pytest.mark.parametrize("named", [True, False])
def test_a_constructor_that_declines_leaves_a_skipped_cell(plan: Plan_, *, named: bool) -> None:
    found = plan(Declines, Guest, named=named)
    assert [run.method for run in found.runs] == ["guest"]
    assert [(s.method, s.pair, s.reason) for s in found.skipped] == [
        ("declines", "tiny", "a batch of 30 is too small")  # fair_baseline_smoke asks for more than there are
    ]
    assert found.passes.keys() == {("tiny", "guest")}


def test_nothing_but_methods_that_decline(plan: Plan_) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(Declines)
    assert str(caught.value) == "nothing to run: declines on tiny: a batch of 30 is too small"


def test_supports_is_asked_before_the_constructor(plan: Plan_) -> None:
    no = made(Declines, "no", supports=classmethod(lambda _cls, _pair: "not here"))
    assert [s.reason for s in plan(no, Guest).skipped] == ["not here"]


def test_what_a_constructor_is_told_is_what_the_run_will_tell_it(plan: Plan_) -> None:
    told: list[Context] = []

    class Curious(Guest):
        name = "curious"
        deviations = (Deviation("data.batch_size", 10, "r"), Deviation("schedule.epochs", 5, "r"))

        def __init__(self, options: Options, context: Context) -> None:
            super().__init__(options, context)
            told.append(context)

    untaught = made(Curious, "untaught", uses_teacher=False, losses=lambda _self, b: {"ce": b.supervised()})
    plan(Curious, untaught)
    for context, teachers in zip(told, (1, 0), strict=True):
        assert (context.train_size, context.epochs, context.steps_per_epoch, context.batch_size) == (TRAIN, 5, 3, 10)
        assert len(context.teachers) == teachers
        assert (context.pair.name, context.student.name, context.pair.image.dims) == ("tiny", "resnet8_w4", (1, 8, 8))


class Crashes(Guest):
    """Crashes where its name says."""

    def _crash(self, here: str) -> None:
        if type(self).name == f"crash-{here}":
            raise ZeroDivisionError(f"in {here}")

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self._crash("init")
        self.helper = nn.Linear(context.student.embedding, context.teachers[0].embedding)

    def prepare(self, setup: Setup) -> None:  # noqa: ARG002
        self._crash("prepare")

    def phases(self) -> tuple[Phase, ...]:
        self._crash("phases")
        return Phase("head", 1, self._head, self.helper.parameters), Phase()

    def _head(self, batch: Batch) -> Losses:
        self._crash("head")
        return {"ce": batch.supervised()}

    def losses(self, batch: Batch) -> Losses:
        self._crash("losses")
        return super().losses(batch)

    def after_step(self, batch: Batch) -> None:  # noqa: ARG002
        self._crash("after_step")

    def deploy(self, student: nn.Module) -> nn.Module:
        self._crash("deploy")
        return student


PLACES = ("init", "prepare", "phases", "head", "losses", "after_step", "deploy")


@pytest.mark.parametrize("place", PLACES)
def test_a_method_that_breaks_is_refused_if_it_was_asked_for(plan: Plan_, place: str) -> None:
    broken = made(Crashes, f"crash-{place}")
    with pytest.raises(PluginError) as caught:
        plan(broken, Guest)
    said = str(caught.value)
    assert "method 'crash-" in said
    assert "pair 'tiny'" in said
    assert f"ZeroDivisionError: in {place}" in said


@pytest.mark.parametrize("place", PLACES)
def test_a_method_that_breaks_is_left_out_of_all(plan: Plan_, place: str) -> None:
    found = plan(made(Crashes, f"crash-{place}"), Guest, named=False)
    assert [run.method for run in found.runs] == ["guest"]
    ((skipped),) = found.skipped
    assert (skipped.method, skipped.pair) == (f"crash-{place}", "tiny")
    assert f"ZeroDivisionError: in {place}" in skipped.reason
    assert found.passes.keys() == {("tiny", "guest")}


def test_a_shape_that_does_not_fit_is_found(plan: Plan_) -> None:
    class Misfit(Guest):
        name = "misfit"
        taps = TapRequest(Taps(embedding=True), Taps(embedding=True))

        def losses(self, batch: Batch) -> Losses:
            return {"gap": Term((batch.student.embedding - batch.teacher.embedding).mean())}  # of other widths

    with pytest.raises(PluginError, match="method 'misfit' breaks in a dry run on pair 'tiny': RuntimeError"):
        plan(Misfit)


def test_a_tap_that_does_not_exist_is_found(plan: Plan_) -> None:
    for taps in (TapRequest(Taps((99,))), TapRequest(teachers=Taps((99,)))):
        with pytest.raises(PluginError, match="stage 99 does not exist"):
            plan(made(Guest, "deep", taps=taps))


def test_what_was_not_tapped_is_not_there(plan: Plan_) -> None:
    seen: list[Batch] = []

    class Modest(Guest):
        name = "modest"
        taps = TapRequest(Taps((-1, 0)), Taps((1,), pre_activation=True))

        def losses(self, batch: Batch) -> Losses:
            seen.append(batch)
            return super().losses(batch)

    plan(Modest)
    (batch,) = seen
    assert (batch.student.embedding, batch.student.pre_stages, batch.student.indices) == (None, (), (0, 3))
    assert (batch.teacher.embedding, len(batch.teacher.pre_stages), batch.teacher.indices) == (None, 1, (1,))
    assert batch.student.logits.requires_grad
    assert not any(t.requires_grad for t in (batch.teacher.logits, *batch.teacher.stages, *batch.teacher.pre_stages))
    assert batch.student.logits.shape == batch.teacher.logits.shape == (TRAIN, 10)


class Grafts(Guest):
    """Replaces the student's head in place, and its teacher's."""

    name = "a-grafts"

    def prepare(self, setup: Setup) -> None:
        setup.teachers[0].head = nn.Identity()
        setup.labels.zero_()

    def deploy(self, student: nn.Module) -> nn.Module:
        student.fc = nn.Identity()
        return student


class UsesLogits(Guest):
    name = "b-uses"

    def prepare(self, setup: Setup) -> None:
        image = torch.zeros(2, 1, 8, 8)
        assert setup.teachers[0](image).logits.shape == (2, 10)

    def deploy(self, student: nn.Module) -> nn.Module:
        return nn.Sequential(student)


def test_what_one_method_does_to_its_networks_is_not_held_against_the_next(plan: Plan_) -> None:
    found = plan(Grafts, UsesLogits, named=False)
    assert "b-uses" not in {skipped.method: skipped.reason for skipped in found.skipped}
    assert "b-uses" in {run.method for run in found.runs}


# --- deployment -------------------------------------------------------------------------------------------------------


class Deploys(nn.Module):
    def __init__(self, change: Callable[[Any], Any], student: nn.Module) -> None:
        super().__init__()
        self.change, self.student = change, student

    def forward(self, images: Tensor) -> Any:
        return self.change(self.student(images))


WRONG: dict[str, Callable[[Any], Any]] = {
    "more classes": lambda said: torch.cat([said.logits, said.logits[:, :1]], 1),
    "one class": lambda said: said.logits.argmax(1),
    "fewer images": lambda said: said.logits[1:],
    "maps": lambda said: said.logits[:, :, None],
    "a tuple": lambda said: (said.logits,),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_deployed_module_that_returns_something_else_is_found(plan: Plan_, what: str) -> None:
    wrong = made(Guest, "wrong", deploy=lambda _self, student: Deploys(WRONG[what], student))
    with pytest.raises(PluginError, match="method 'wrong' breaks in a dry run on pair 'tiny'"):
        plan(wrong)


def test_what_is_deployed_must_be_a_module(plan: Plan_) -> None:
    with pytest.raises(PluginError, match="method 'wrong' breaks in a dry run"):
        plan(made(Guest, "wrong", deploy=lambda _self, student: student.forward))


def test_a_student_changed_in_place_is_found(plan: Plan_) -> None:
    with pytest.raises(PluginError, match="method 'a-grafts' breaks in a dry run"):
        plan(Grafts)


@pytest.mark.parametrize("kind", ["features", "logits"])
def test_a_deployed_module_may_return_features_or_logits(plan: Plan_, kind: str) -> None:
    change: Callable[[Any], Any] = (lambda said: said) if kind == "features" else (lambda said: said.logits)
    assert plan(made(Guest, "right", deploy=lambda _self, student: Deploys(change, student))).runs


# --- code that needs numbers ------------------------------------------------------------------------------------------


class Numbers(Guest):
    """Sees real numbers, or the test fails."""

    name = "numbers"
    images = 0

    def compute(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def losses(self, batch: Batch) -> Losses:
        value = self.compute(batch)
        Numbers.images = len(batch.labels)
        assert batch.student.logits.device.type == "cpu"
        assert batch.student.logits.isfinite().all()
        assert batch.labels.unique().numel() > 1
        return {"ce": batch.supervised(), "own": Term(value)}


def numpy_mean(batch: Batch) -> Tensor:
    return torch.from_numpy(batch.teacher.logits.numpy().astype(np.float32)).mean()


def right_ones(batch: Batch) -> Tensor:
    right = batch.teacher.logits.argmax(1) != batch.labels
    return batch.student.logits[right].square().sum()


def branch(batch: Batch) -> Tensor:
    return batch.student.logits.mean() if batch.teacher.logits.max() > -1e9 else batch.student.logits.sum()


DATA_DEPENDENT: dict[str, Callable[[Batch], Tensor]] = {
    "item": lambda batch: batch.student.logits.mean() * batch.teacher.logits.mean().item(),
    "mask": right_ones,
    "numpy": numpy_mean,
    "branch": branch,
    "tolist": lambda batch: torch.stack(
        [batch.student.logits[i, c] for i, c in enumerate(batch.labels.tolist())]
    ).sum(),
    "bincount": lambda batch: batch.student.logits.mean() * batch.labels.bincount(minlength=10).max(),
}


@pytest.mark.parametrize("what", DATA_DEPENDENT)
def test_code_that_needs_numbers_gets_a_few(plan: Plan_, what: str) -> None:
    Numbers.images = 0
    found = plan(made(Numbers, "numbers", compute=lambda _self, batch: DATA_DEPENDENT[what](batch)))
    assert bare(found.passes["tiny", "numbers"]) == Passes(EPOCHS, EPOCHS)
    assert Numbers.images == REAL_BATCH


def test_a_set_up_that_needs_numbers_sees_all_labels_and_a_real_teacher(plan: Plan_) -> None:
    seen: dict[str, Any] = {}

    class Counts(Guest):
        name = "counts"

        def __init__(self, options: Options, context: Context) -> None:
            super().__init__(options, context)
            self.register_buffer("frequency", torch.zeros(context.student.classes))
            self.register_buffer("bank", torch.zeros(context.train_size, context.student.classes))

        def prepare(self, setup: Setup) -> None:
            self.frequency.copy_(torch.tensor(np.bincount(setup.labels.numpy())))
            seen["counts"] = self.frequency.tolist()
            seen["norm"] = float(setup.teachers[0].head.weight.norm())

        def after_step(self, batch: Batch) -> None:
            self.bank[batch.index] = batch.teacher.logits

    assert plan(Counts).runs
    assert sum(seen["counts"]) == TRAIN
    assert min(seen["counts"]) > 0
    assert seen["norm"] > 0


def test_what_is_wrong_with_real_numbers_too_is_refused(plan: Plan_) -> None:
    class Both(Guest):
        name = "both"

        def losses(self, batch: Batch) -> Losses:
            if batch.teacher.logits.mean().item() != 0:
                raise KeyError("only with numbers")
            return super().losses(batch)

    with pytest.raises(PluginError, match="method 'both' breaks in a dry run on pair 'tiny': KeyError: 'only with"):
        plan(Both)


def test_a_method_may_decline_on_the_second_try(plan: Plan_) -> None:
    class Late(Guest):
        name = "late"

        def prepare(self, setup: Setup) -> None:
            if setup.labels.bincount().min().item() < 10:
                raise Unsupported("a class has fewer than ten images")

    found = plan(Late, Guest)
    assert [(s.method, s.reason) for s in found.skipped] == [("late", "a class has fewer than ten images")]


@pytest.mark.parametrize("numbers", [False, True])
def test_a_batch_is_as_large_as_the_method_was_told(plan: Plan_, *, numbers: bool) -> None:
    """ "What methods are told; its batch size is that of the dry run", on the second try as well."""

    class Queue(Guest):
        name = "queue"

        def __init__(self, options: Options, context: Context) -> None:
            super().__init__(options, context)
            self.register_buffer("last", torch.zeros(context.batch_size, context.student.classes))

        def losses(self, batch: Batch) -> Losses:
            scale = batch.teacher.logits.mean().item() if numbers else 1.0
            gap = F.mse_loss(batch.student.logits, self.last)
            return {"ce": batch.supervised(), "gap": Term(gap * scale)}

        def after_step(self, batch: Batch) -> None:
            self.last.copy_(batch.student.logits)

    assert plan(Queue).runs


# --- the same as in the run -------------------------------------------------------------------------------------------


OWN_ANCHOR = {
    "loss": {"ce_alpha": 0.5, "kd_alpha": 0.5},
    "optimizer": {"lr": 0.1, "weight_decay": 0},
    "schedule": {"epochs": EPOCHS},
    "data": {"batch_size": 128, "validation_fraction": 0.1},
    "step": {},
}


def anchor_file(tmp_path: Path, **sections: dict[str, object]) -> str:
    path = tmp_path / "mine.yaml"
    tree = {section: {**values, **sections.get(section, {})} for section, values in OWN_ANCHOR.items()}
    path.write_text(json.dumps({"name": "mine", **tree}))
    return str(path)


class Protocols(Guest):
    name, published = "protocols", LossWeights(ce=1.0, kd=0.0)
    seen: dict[str, LossProtocol] = {}  # noqa: RUF012 (shared on purpose)

    def losses(self, batch: Batch) -> Losses:
        self.seen[type(self).name] = batch.protocol
        return super().losses(batch)


class Softer(Protocols):
    name = "softer"
    deviations = (Deviation("loss.tau", 1.5, "r"), Deviation("loss.ce_label_smoothing", 0.3, "r"))


LOSSES: list[dict[str, object]] = [
    {"tau": 2.0},
    {"tau_schedule": [6.0, 2.0]},
    {"kd_target": "teacher", "kd_teacher_index": 1},
    {"kd_target": "avg", "teacher_weights": [3, 1]},
    {"kd_target": "avg", "teacher_weights": {"resnet8_w4": 3, "resnet14_w8": 1}},
    {"kd_target": "weighted_conf"},
    {"weights": "published"},
]


@pytest.mark.parametrize("loss", LOSSES, ids="-".join)
@pytest.mark.parametrize("order", [(Protocols, Softer), (Softer, Protocols)], ids=["plain first", "softer first"])
def test_a_dry_run_has_the_loss_settings_of_the_first_epoch(
    plan: Plan_, tmp_path: Path, loss: dict[str, object], order: tuple[type[AnyMethod], ...]
) -> None:
    Protocols.seen.clear()
    found = plan(*order, pairs=("two",), anchor=anchor_file(tmp_path, loss=loss))
    for run, method in zip(found.runs, order, strict=True):
        protocol = apply_deviations(run.anchor, run.deviations)
        assert Protocols.seen[method.name] == loss_protocol(protocol, method, 0, EPOCHS, run.teachers)


def test_accumulated_batches_come_in_parts(plan: Plan_, tmp_path: Path) -> None:
    sizes: list[tuple[int, int]] = []

    class Sizes(Guest):
        name = "sizes"

        def losses(self, batch: Batch) -> Losses:
            sizes.append((len(batch.labels), self.context.batch_size))
            return super().losses(batch)

    plan(Sizes, anchor=anchor_file(tmp_path, data={"batch_size": 12}, step={"accumulate": 3}))
    assert sizes == [(4, 4)]


class Mixes(Guest):
    """Brings its own mixing, so every batch of its runs is mixed."""

    name = "mixes"
    deviations = (Deviation("data.mixup_alpha", 0.5, "published so"), Deviation("data.cutmix_alpha", 0.0, "r"))

    def losses(self, batch: Batch) -> Losses:
        gap = F.cross_entropy(batch.student.logits, batch.mix.labels) * (1 - batch.mix.share)
        return {"ce": batch.supervised(), "gap": Term(gap)}


def test_batches_are_mixed_where_the_protocol_mixes(plan: Plan_) -> None:
    assert plan(Mixes).runs


def test_what_breaks_on_mixed_images_is_found(plan: Plan_) -> None:
    broken = made(Guest, "crops", losses=lambda _self, b: {"ce": b.supervised()} if b.mix is None else b.mix.partners)
    with pytest.raises(PluginError, match="method 'crops' breaks in a dry run"):
        plan(broken)


def test_views_of_images_that_are_not_square_are_refused(plan: Plan_) -> None:
    """ "Images must be square": turned ones of another shape cannot be cropped to the image's."""
    sideways = made(Guest, "sideways", views=(View(1),))
    with pytest.raises((PluginError, ConfigError)):
        plan(sideways, dataset="oblong")
    assert plan(made(Guest, "upside-down", views=(View(2), View(0))), dataset="oblong").runs


def test_a_backbone_is_asked_only_for_what_methods_tap(plan: Plan_) -> None:
    found = plan(Guest, named=False, pairs=("reticents",))
    assert [skipped.reason for skipped in found.skipped] == []


def test_a_phase_without_the_student_has_none(plan: Plan_) -> None:
    seen: list[Batch] = []

    class Head(Guest):
        name = "head"
        views = (View(3),)
        taps = TapRequest(Taps("all", embedding=True), Taps(embedding=True))

        def __init__(self, options: Options, context: Context) -> None:
            super().__init__(options, context)
            self.head = nn.Linear(context.teachers[0].embedding, 10)

        def phases(self) -> tuple[Phase, ...]:
            return Phase("head", 1, self.head_losses, student="off"), Phase()

        def head_losses(self, batch: Batch) -> Losses:
            seen.append(batch)
            return {"head": batch.supervised(self.head(batch.views[0].teacher.embedding))}

    plan(Head)
    (batch,) = seen
    for said in (batch.student, batch.views[0].student):
        assert (said.logits.shape, said.embedding, said.stages) == ((TRAIN, 0), None, ())
    assert batch.views[0].images.shape == batch.images.shape == (TRAIN, 1, 8, 8)
    assert batch.teacher.embedding is not None


def test_a_method_without_a_teacher_meets_none(plan: Plan_) -> None:
    met: list[int] = []

    class Alone(Guest):
        name, uses_teacher = "alone", False

        def prepare(self, setup: Setup) -> None:
            met.append(len(setup.teachers))

        def losses(self, batch: Batch) -> Losses:
            met.append(len(batch.teachers))
            return {"ce": batch.supervised()}

    plan(Alone)
    assert met == [0, 0]


# --- passes and cost --------------------------------------------------------------------------------------------------


class Staged(Guest):
    """Two extra phases of three and four epochs, the second without the student."""

    name = "staged"

    def phases(self) -> tuple[Phase, ...]:
        return Phase("init", 3), Phase(), Phase("head", 4, self.head_losses, student="off")

    def head_losses(self, batch: Batch) -> Losses:
        return {"zero": Term(batch.teacher.logits.mean())}


class Banked(Guest):
    """A linear helper, a bank of the embeddings of all images, and losses that keep known numbers."""

    name = "banked"
    taps = TapRequest(Taps(embedding=True), Taps((0,), embedding=True))

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.helper = nn.Linear(10, 3)
        self.register_buffer("bank", torch.zeros(context.train_size, 5, dtype=torch.float64))

    def losses(self, batch: Batch) -> Losses:
        far = self.helper(batch.student.logits).exp().exp()  # keeps logits, which are the student's, and twice three
        return {"far": Term(far.mean())}


def bare(passes: Passes) -> Passes:
    """Return passes without what the method adds to memory."""
    return replace(passes, burden=Burden(), phases=())


UNTAUGHT = {"uses_teacher": False, "losses": lambda _self, batch: {"ce": batch.supervised()}}
COUNTED: list[tuple[type[AnyMethod], Passes]] = [
    (Guest, Passes(2, 2)),
    (Staged, Passes(5, 9)),
    (made(Staged, "two-views", views=(View(1), View(2))), Passes(15, 27, 3)),
    (made(Guest, "untaught", **UNTAUGHT, views=(View(1),)), Passes(4, 0, 2)),
    (made(Guest, "longer", deviations=(Deviation("schedule.epochs", 7, "r"),)), Passes(7, 7)),
    (made(Guest, "off", phases=lambda _self: (Phase("init", 0), Phase())), Passes(2, 2)),
]


@pytest.mark.parametrize(("method", "expected"), COUNTED, ids=[method.name for method, _ in COUNTED])
def test_passes(plan: Plan_, method: type[AnyMethod], expected: Passes) -> None:
    assert {cell: bare(passes) for cell, passes in plan(method).passes.items()} == {("tiny", method.name): expected}


def test_what_a_method_adds_to_memory_by_hand(plan: Plan_) -> None:
    (teacher,) = plan(Banked).infos["tiny"].teachers
    stage = math.prod(teacher.stages[0].dims)
    found = plan(Banked).passes["tiny", "banked"].burden
    assert found == Burden(33, 8 * TRAIN * 5, 4 * (3 + 3), 4 * (10 + teacher.embedding + stage))
    viewed = made(Banked, "viewed", views=(View(1),))
    assert plan(viewed).passes["tiny", "viewed"].burden.taught_bytes == 2 * found.taught_bytes


def test_the_phase_that_keeps_most_counts(plan: Plan_) -> None:
    def much(self: Any, batch: Batch) -> Losses:
        return {"much": Term(self.helper(batch.student.logits).exp().exp().exp().mean())}

    both = made(Banked, "both", phases=lambda self: (Phase("init", 1, lambda batch: much(self, batch)), Phase()))
    assert plan(both).passes["tiny", "both"].burden.kept_bytes == 4 * (3 + 3 + 3)


def test_passes_do_not_depend_on_the_company(plan: Plan_) -> None:
    methods = [method for method, _ in COUNTED]
    alone = {cell: passes for method in methods for cell, passes in plan(method).passes.items()}
    for order in (methods, methods[::-1]):
        assert plan(*order, named=False).passes == alone


def test_a_phase_without_epochs_is_left_out_as_in_the_run(plan: Plan_) -> None:
    """A run never calls its losses, so what they need may be missing."""

    class Switched(Guest):
        name = "switched"

        def phases(self) -> tuple[Phase, ...]:
            return Phase("init", 0, self.init_losses), Phase()

        def init_losses(self, batch: Batch) -> Losses:
            return {"init": Term(self.helper(batch.student.logits))}  # only made where there is such a phase

    assert bare(plan(Switched).passes["tiny", "switched"]) == Passes(EPOCHS, EPOCHS)


def test_the_cost_of_a_plan_counts_phases_and_views(plan: Plan_) -> None:
    staged = made(Staged, "staged", views=(View(1),))
    found, registry = plan(staged, made(Guest, "untaught", **UNTAUGHT), registry=True)
    student, teacher = student_costs(found, registry)["tiny"].flops, teacher_flops(found, registry)["tiny"]
    expected = {
        "staged": (10 * TRAIN, TRAIN * (3 * 10 * student + 18 * teacher)),
        "untaught": (2 * TRAIN, TRAIN * 3 * 2 * student),
    }
    for run in found.runs:
        cost = estimate(found, [run], registry)
        images, flops = expected[run.method]
        assert (cost.images, cost.petaflops) == (images, pytest.approx(flops / 1e15))


def test_views_need_memory(plan: Plan_) -> None:
    """Images and views are one forward pass, whose activations are kept until the backward pass."""
    found, registry = plan(Guest, made(Guest, "three-views", views=(View(1), View(2), View(3))), registry=True)
    plain, turned = (estimate(found, [run], registry).memory_bytes for run in found.runs)
    cost = student_costs(found, registry)["tiny"]
    batch = found.runs[0].anchor.data.batch_size
    (teacher,) = teacher_costs(found, registry)["tiny"]
    weights = cost.training_bytes(0) + 4 * teacher.parameters
    assert plain == weights + batch * max(cost.activation_bytes, teacher.forward_bytes)
    assert turned == weights + batch * 4 * cost.activation_bytes
    only = replace(found, runs=found.runs[1:])
    assert too_large(only, registry, turned - 1)


# --- traces -----------------------------------------------------------------------------------------------------------


class Draws(Guest):
    """Draws wherever it can."""

    name = "draws"

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.head = nn.Linear(10, 10)
        torch.rand(3)

    def prepare(self, setup: Setup) -> None:  # noqa: ARG002
        torch.randperm(5)

    def losses(self, batch: Batch) -> Losses:
        torch.manual_seed(5)
        return {"ce": batch.supervised(F.dropout(self.head(batch.student.logits)) + torch.rand(10))}


NEEDY = made(Draws, "needy", after_step=lambda _self, batch: batch.student.logits.sum().item())
FAULTY = made(Draws, "faulty", after_step=lambda _self, _batch: 1 / 0)
NO = made(Draws, "no", prepare=lambda _self, _setup: (_ for _ in ()).throw(Unsupported("no")))


@pytest.mark.parametrize("method", [Draws, NEEDY, FAULTY, NO], ids=lambda method: method.name)
def test_dry_runs_leave_the_global_generator_alone(plan: Plan_, method: type[AnyMethod]) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    plan(method, Guest, named=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_device().type == "cpu"
    assert torch.is_grad_enabled()


def test_dry_runs_do_not_depend_on_the_global_generator(plan: Plan_) -> None:
    seen = []

    class Shows(Guest):
        name = "shows"

        def losses(self, batch: Batch) -> Losses:
            seen.append(batch.student.logits.sum().item())
            return super().losses(batch)

    for seed in (1, 2):
        torch.manual_seed(seed)
        plan(Shows)
    assert seen[0] == seen[1]


def test_dry_runs_leave_python_and_numpy_alone(plan: Plan_) -> None:
    """As the checks of the conformance kit do."""

    def losses(_self: AnyMethod, batch: Batch) -> Losses:
        weight = random.random() + np.random.rand()
        return {"ce": Term(batch.supervised().value, weight)}

    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    plan(made(Guest, "foreign", losses=losses))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]


class Adopts(Guest):
    name = "adopts"

    def prepare(self, setup: Setup) -> None:
        self.head = setup.teachers[1].head.requires_grad_()
        self.whole = setup.teachers[0]
        assert self.whole.head.weight.is_meta


def test_networks_of_any_size_need_no_memory(plan: Plan_) -> None:
    """Nobody has the 12 TB of one of the three networks, let alone of the copies."""
    found = plan(Guest, Adopts, made(Guest, "views", views=(View(1),)), pairs=("giants",))
    assert [run.method for run in found.runs] == ["guest", "adopts", "views"]
    assert found.infos["giants"].student.parameters > 3e12


def test_every_problem_is_told_even_if_a_method_breaks(plan: Plan_) -> None:
    """ "Raises ProblemList: with every problem of the command"."""
    with pytest.raises(ProblemList) as caught:
        plan(made(Crashes, "crash-losses"), Guest, settings=("guest.x=1",), seeds=(1, 1))
    assert len(caught.value.problems) >= 2


def test_every_built_in_method_is_rehearsed_on_a_pair_of_its_own_dataset(registry: Registry) -> None:
    found = make_plan(Request(("all",), ("tiny",), (0,), "fair_baseline_smoke"), registry)
    assert {run.method for run in found.runs} >= {"student", "vanilla_kd", "dkd"}
    assert not [s for s in found.skipped if "breaks in a dry run" in s.reason]
    assert found.passes.keys() == {(run.pair, run.method) for run in found.runs}


def test_pairs_do_not_share_what_they_must_not(plan: Plan_) -> None:
    """Two pairs with the same student and other teachers, in either order."""
    widths: dict[str, list[int]] = {}

    class Wide(Guest):
        name = "wide"
        taps = TapRequest(teachers=Taps(embedding=True), every_teacher=True)

        def losses(self, batch: Batch) -> Losses:
            widths[self.context.pair.name] = [said.embedding.shape[1] for said in batch.teachers]
            return super().losses(batch)

    for pairs in (("tiny", "two"), ("two", "tiny")):
        widths.clear()
        assert len(plan(Wide, pairs=pairs).runs) == 2
        assert widths == {"tiny": [32], "two": [32, 16]}


def test_info_of_the_pair_is_that_of_supports(plan: Plan_) -> None:
    asked: list[PairInfo] = []

    class Asks(Guest):
        name = "asks"

        @classmethod
        def supports(cls, pair: PairInfo) -> str | None:
            asked.append(pair)
            return None

        def losses(self, batch: Batch) -> Losses:
            assert self.context.pair == asked[-1]
            return super().losses(batch)

    assert plan(Asks).runs


# --- phases -----------------------------------------------------------------------------------------------------------


FREEZES = """\
name: freezes
loss: {ce_alpha: 0.5, kd_alpha: 0.5}
optimizer: {lr: 0.1, weight_decay: 0}
schedule: {epochs: 2}
data: {batch_size: 16}
step: {}
freezing: {use_partial_freeze: true}
"""


def passes_of(plan: Plan_, *phases: Phase, pair: str = "tiny", **attributes: object) -> Passes:
    """Return the passes of a guest with these phases; its plan must have no problem."""
    method = made(Guest, "phased", phases=lambda _self: phases, **attributes)
    return bare(plan(method, pairs=(pair,)).passes[pair, "phased"])


def test_own_forwards_are_in_the_plan_and_teachers_may_rest(plan: Plan_) -> None:
    alone: Callable[[Batch], Losses] = lambda batch: {"ce": batch.supervised()}  # noqa: E731
    part = Phase("own", EPOCHS, main=True, teachers=False, own_forwards=3, losses=alone)
    assert passes_of(plan, part) == Passes(EPOCHS, 3 * EPOCHS)
    head = Phase("head", 4, student="off", losses=lambda batch: {"x": Term(batch.teacher.logits.mean())})
    assert passes_of(plan, head, Phase()) == Passes(EPOCHS, EPOCHS + 4)
    resting = Phase("head", 4, student="eval", teachers=False, losses=alone)
    assert passes_of(plan, resting, Phase()) == Passes(EPOCHS + 4, EPOCHS)


def test_own_forwards_are_shared_among_the_teachers_of_the_plan(plan: Plan_) -> None:
    """The plan counts passes of each teacher: two of own networks are one of each of two teachers."""
    part = Phase("own", EPOCHS, main=True, own_forwards=2)
    assert passes_of(plan, part, pair="two") == Passes(EPOCHS, 2 * EPOCHS)


def test_parts_count_once_and_empty_ones_not_at_all(plan: Plan_) -> None:
    parts = (Phase("a", 1, main=True), Phase("none", 0), Phase("b", EPOCHS - 1, main=True))
    assert passes_of(plan, *parts) == Passes(EPOCHS, EPOCHS)


def test_a_phase_sees_what_it_says_it_sees(plan: Plan_) -> None:
    def shown(batch: Batch) -> Losses:
        assert batch.teachers == ()
        assert batch.student.logits.shape[1] == 0
        assert batch.mix is None
        return {"x": Term(batch.images.mean())}

    head = Phase("head", 1, student="off", teachers=False, mixes=False, losses=shown)
    assert passes_of(plan, head, Phase()) == Passes(EPOCHS, EPOCHS)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase("a", EPOCHS + 1, main=True),), "the parts of the main phase have [3] epochs, the anchor has 2"),
        ((Phase("a", -1), Phase()), "phase 'a': epochs is -1"),
        ((Phase("a", 1, continues="b"), Phase()), "continues 'b', which is no phase before it"),
        (
            (Phase(freeze=FreezeLevel(0)),),
            "phase 'main' freezes parts of the student (level 0), but the anchor has freezing.use_partial_freeze false",
        ),
    ],
)
def test_phases_that_cannot_be_trained_are_in_the_plan(plan: Plan_, phases: tuple[Phase, ...], message: str) -> None:
    method = made(Guest, "phased", phases=lambda _self: phases)
    with pytest.raises(KdbenchError) as caught:
        plan(method)
    assert message in str(caught.value)


def test_levels_beyond_the_blocks_are_in_the_plan(plan: Plan_, tmp_path: Path) -> None:
    anchor = tmp_path / "freezes.yaml"
    anchor.write_text(FREEZES)
    for level, refused in ((1, False), (9, True)):
        method = made(Guest, "phased", phases=lambda _self, level=level: (Phase(freeze=FreezeLevel(level)),))
        if refused:
            with pytest.raises(KdbenchError, match="9"):
                plan(method, anchor=str(anchor))
        else:
            plan(method, anchor=str(anchor))


def test_a_level_that_freezes_nothing_needs_neither_leave_nor_blocks(plan: Plan_) -> None:
    """``reticent`` publishes no blocks."""
    assert passes_of(plan, Phase(freeze=FreezeLevel()), pair="reticents") == Passes(EPOCHS, EPOCHS)
