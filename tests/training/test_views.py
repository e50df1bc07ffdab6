"""Views: turned, newly cropped copies of a batch, against pixels written out by hand; and lanes that ask for them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import registry as registries
from kdbench.config.schema import Data
from kdbench.datasets.base import Split
from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Phase, TapRequest, View
from kdbench.plan import open_source
from kdbench.registry import Registry
from kdbench.testing import check_method
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.data import load_data
from kdbench.training.inputs import BatchStream, Inputs
from kdbench.training.mixing import MixPlan, plan_mixing
from kdbench.training.networks import load_teacher, new_network
from kdbench.training.trainer import Interrupted
from kdbench.types import Context, Source, StageShape, Taps, Term

DIGIT = StageShape((1, 8, 8))

CPU = torch.device("cpu")
COUNT, BATCH = 24, 8
TURNS = (0, 1, 2, 3)
CASES = [(8, 4, 1), (32, 4, 4), (24, 3, 2), (8, 0, 0)]  # size, crop_padding, pixels of padding
MIXES: list[dict[str, float]] = [{}, {"mixup_alpha": 0.5}, {"cutmix_alpha": 1.0}]
SOURCE = Source("A toy", 2020, "https://example.org")

# --- toys -------------------------------------------------------------------------------------------------------------


class Turns(Method[Options]):
    """Uses views in two phases, the first without the student; its helper has dropout and is trained in both."""

    name, source = "toy_turns", SOURCE
    views = (View(1), View(3))
    taps = TapRequest(Taps(embedding=True), Taps((-1,), embedding=True))

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        wide = context.teachers[0].embedding
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.Dropout(0.3))
        self.adapter = nn.Linear(context.student.embedding, wide)
        self.register_buffer("seen", torch.zeros(len(self.views), wide))

    def phases(self) -> tuple[Phase, ...]:
        return Phase("head", 2, self.head_losses, self.head.parameters, student="off"), Phase()

    def head_losses(self, batch: Batch) -> Losses:
        own = self.head(batch.teacher.embedding)
        others = [F.mse_loss(self.head(view.teacher.embedding), own) for view in batch.views]
        return {"head": Term(torch.stack(others).mean()), "wide": Term(-own.std().clamp(max=1.0))}

    def losses(self, batch: Batch) -> Losses:
        near = [
            F.mse_loss(self.head(self.adapter(view.student.embedding)), view.teacher.embedding) for view in batch.views
        ]
        return {"ce": batch.supervised(), "kd": batch.kd(), "near": Term(torch.stack(near).mean(), 0.1)}

    def after_step(self, batch: Batch) -> None:
        for place, view in enumerate(batch.views):
            self.seen[place].lerp_(view.teacher.embedding.mean(0), 0.1)


class WatchViews(Method[Options]):
    """Keeps its batches, for the test to look at."""

    name, source = "toy_watch_views", SOURCE
    views = (View(1), View(0))
    taps = TapRequest(Taps((0,), embedding=True), Taps((1, -1), pre_activation=True))
    batches: list[Batch] = []  # noqa: RUF012 (shared on purpose: tests read and clear it)

    def losses(self, batch: Batch) -> Losses:
        self.batches.append(batch)
        near = [F.mse_loss(view.student.logits, view.teacher.logits) for view in batch.views]
        return {"ce": batch.supervised(), "near": Term(torch.stack(near).mean(), 0.01)}


class WatchPhases(WatchViews):
    """The same in two phases."""

    name = "toy_watch_phases"

    def phases(self) -> tuple[Phase, ...]:
        return Phase("first", 1), Phase()


class Untaught(Method[Options]):
    """Views without a teacher."""

    name, source, uses_teacher = "toy_untaught", SOURCE, False
    views = (View(2),)

    def losses(self, batch: Batch) -> Losses:
        assert batch.views[0].teachers == ()
        return {"ce": batch.supervised(), "turned": batch.supervised(batch.views[0].student.logits)}


class ViewVandal(Method[Options]):
    """Overwrites its views, which the views of the lane beside it must not feel."""

    name, source = "toy_view_vandal", SOURCE
    views = Turns.views
    taps = Turns.taps

    def losses(self, batch: Batch) -> Losses:
        for view in batch.views:
            view.images.zero_()
            view.teacher.logits.zero_()
            view.teacher.stages[0].zero_()
        return {"ce": batch.supervised()}


@hookimpl
def kdbench_methods() -> Iterable[type[AnyMethod]]:
    return [Turns, WatchViews, WatchPhases, Untaught, ViewVandal]


@cache
def _registry(toys: Any) -> Registry:
    return registries.load(extra=[toys, sys.modules[__name__]])


@pytest.fixture
def lab(lab: Any, toys: Any) -> Any:
    lab.place = replace(lab.place, registry=_registry(toys))
    return lab


@pytest.fixture
def seen() -> Iterator[list[Batch]]:
    WatchViews.batches.clear()
    yield WatchViews.batches
    WatchViews.batches.clear()


# --- pixels -----------------------------------------------------------------------------------------------------------


def images_of(size: int, count: int = COUNT) -> Tensor:
    draws = torch.Generator().manual_seed(size)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=draws)


def stream_of(size: int = 8, seed: int = 0, *, mirror: bool = True, **data: Any) -> BatchStream:
    split = Split(images_of(size), torch.arange(COUNT) % 5)
    return BatchStream(split, Data(batch_size=BATCH, **data), seed, CPU, mirror=mirror)


def padded(image: np.ndarray, padding: int, mode: str) -> np.ndarray:
    sides = ((0, 0), (padding, padding), (padding, padding))
    return np.pad(image, sides, mode="constant" if mode == "zeros" else "reflect")  # type: ignore[call-overload]


def places_of(window: Tensor, image: np.ndarray) -> list[tuple[int, int]]:
    """Return (down, across) of every place of a larger image (C,H,W) of bytes that holds exactly these pixels."""
    size, room = window.shape[1], image.shape[1] - window.shape[1]
    wanted = (window.double() * 255).round().numpy().astype(np.uint8)
    assert torch.equal(torch.tensor(wanted).float() / 255, window), "no division of bytes by 255"
    return [
        (y, x)
        for y in range(room + 1)
        for x in range(room + 1)
        if np.array_equal(image[:, y : y + size, x : x + size], wanted)
    ]


def test_a_quarter_turn_is_counter_clockwise() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    turned = [View(turns).turned(image)[0, 0].tolist() for turns in TURNS]
    assert turned == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


@pytest.mark.parametrize("turns", [-1, 4])
def test_there_are_four_turns(turns: int) -> None:
    with pytest.raises(ValueError, match="0, 1, 2 or 3"):
        View(turns)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("size", "crop_padding", "padding"), CASES)
def test_a_view_is_the_mirrored_image_turned_and_cropped_anew(
    size: int, crop_padding: int, padding: int, mode: str
) -> None:
    stream, original = stream_of(size, crop_padding=crop_padding, padding_mode=mode), images_of(size).numpy()
    drawn: dict[int, list[tuple[int, int]]] = {turns: [] for turns in TURNS}
    own, flips = [], set()
    for epoch in range(2):
        for step in range(stream.steps):
            inputs = stream.batch(epoch, step)
            views = {turns: stream.view(View(turns), epoch, step) for turns in TURNS}
            for row, index in enumerate(inputs.index.tolist()):
                whole = padded(original[index], padding, mode)
                # Mirroring a crop is cropping the mirrored image at the other side.
                straight = places_of(inputs.images[row], whole)
                mirrored = [(y, 2 * padding - x) for y, x in places_of(inputs.images[row], whole[:, :, ::-1])]
                ((flip, place),) = [(False, at) for at in straight] + [(True, at) for at in mirrored]
                own.append(place)
                flips.add(flip)
                for turns, images in views.items():
                    assert (images.shape, images.dtype) == (inputs.images.shape, torch.float32)
                    turned = np.rot90(whole[:, :, ::-1] if flip else whole, turns, axes=(1, 2))
                    (place,) = places_of(images[row], turned)
                    drawn[turns].append(place)
    assert flips == {False, True}
    for offsets in (own, *drawn.values()):
        for values in zip(*offsets, strict=True):
            assert set(values) == set(range(2 * padding + 1)), "some offset was never drawn"
    kinds = [tuple(own), *(tuple(offsets) for offsets in drawn.values())]
    assert len(set(kinds)) == (5 if padding else 1), "two inputs share their crops"


def test_without_mirroring_no_view_is_mirrored() -> None:
    for changes in ({"mirror": False}, {}):
        split = Split(images_of(8), torch.zeros(COUNT).long())
        data = Data(batch_size=BATCH, crop_padding=0, **changes)
        stream = BatchStream(split, data, 0, CPU, mirror=bool(changes))
        index = stream.batch(0, 1).index
        assert torch.equal(stream.view(View(3), 0, 1), torch.rot90(images_of(8)[index].float() / 255, 3, (2, 3)))


def _mixed_by_hand(images: Tensor, plan: MixPlan) -> np.ndarray:
    """Mix one image after the other; the patch of cutmix is at the same pixels of each."""
    plain, found = images.double().numpy(), []
    for own, partner in zip(plain, plan.partners.tolist(), strict=True):
        if plan.box is None:
            found.append(plan.share * own + (1 - plan.share) * plain[partner])
            continue
        x1, y1, x2, y2 = plan.box
        pasted = own.copy()
        pasted[:, y1:y2, x1:x2] = plain[partner][:, y1:y2, x1:x2]
        found.append(pasted)
    return np.stack(found)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("mix", [*MIXES[1:], {"mixup_alpha": 0.5, "cutmix_alpha": 1.0}])
def test_views_are_mixed_like_the_images(mix: dict[str, float], padding_mode: str) -> None:
    plain = stream_of(padding_mode=padding_mode)
    mixed = stream_of(padding_mode=padding_mode, **mix)
    changed = 0
    for epoch in range(3):
        plans = plan_mixing(mixed.data, 0, epoch, mixed.steps, BATCH, (8, 8))
        assert plans is not None
        for step, plan in enumerate(plans):
            inputs, before = mixed.batch(epoch, step), plain.batch(epoch, step)
            assert inputs.mix is not None
            assert inputs.mix.share == plan.share
            assert torch.equal(inputs.mix.labels, before.labels[plan.partners])
            for view in map(View, TURNS):
                images = plain.view(view, epoch, step)
                expected = torch.tensor(_mixed_by_hand(images, plan))
                found = mixed.view(view, epoch, step).double()
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if plan.box is None else 0)
                changed += not torch.equal(found, images.double())
    assert changed > 24, "hardly anything was mixed"


@pytest.mark.parametrize("mix", MIXES)
def test_a_view_is_a_function_of_seed_epoch_and_step_alone(mix: dict[str, float]) -> None:
    places = [(0, 0), (0, 1), (0, 2), (1, 1), ("head:0", 1)]
    straight = {
        (turns, *at): stream_of(**mix).view(View(turns), *at)  # type: ignore[arg-type]
        for turns in TURNS
        for at in places
    }
    other = stream_of(**mix)
    for turns, epoch, step in reversed([*straight, *straight]):
        torch.manual_seed(step)
        if turns % 2:
            other.batch(epoch, (step + 1) % 3)
        assert torch.equal(other.view(View(turns), epoch, step), straight[turns, epoch, step])
    assert len({image.numpy().tobytes() for image in straight.values()}) == len(straight), "two views are one"
    assert not torch.equal(stream_of(seed=1, **mix).view(View(1), 0, 0), straight[1, 0, 0])


@pytest.mark.parametrize("mix", MIXES)
def test_asking_for_views_leaves_batches_and_generators_alone(mix: dict[str, float]) -> None:
    plain, asked = stream_of(**mix), stream_of(**mix)
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def bits(inputs: Inputs) -> list[Any]:
        mixed = [inputs.mix.labels.tolist(), inputs.mix.share] if inputs.mix else []
        return [inputs.images.numpy().tobytes(), inputs.labels.tolist(), inputs.index.tolist(), *mixed]

    for epoch in (0, 1, "head:0", 0):
        for step in range(plain.steps):
            asked.view(View(1), epoch, step).zero_()
            first = asked.batch(epoch, step)
            asked.view(View(0), epoch, step).zero_()
            assert bits(first) == bits(plain.batch(epoch, step)), "the batch as it was handed out"
            assert bits(asked.batch(epoch, step)) == bits(first)
    assert torch.equal(torch.get_rng_state(), before)


# --- what a lane sees -------------------------------------------------------------------------------------------------


def _stopped(lab: Any, spec: Any, where: str, steps: int) -> dict[str, Any]:
    with pytest.raises(Interrupted):
        lab.train([spec], where, should_stop=lab.stop_after(steps))
    state = CheckpointFolder(lab.folders([spec], where)[0].checkpoints).newest()
    assert state is not None
    return state


def _fresh_student(lab: Any, spec: Any) -> Any:
    """Return the student before its first step, as a lane has it."""
    backbone = lab.place.registry.backbones[spec.student]
    source = open_source(spec.dataset.name, lab.place.registry, lab.place.data_root)
    data = load_data(source, spec.dataset, spec.anchor.data, spec.anchor.evaluation, CPU)
    network = new_network(backbone, 10, DIGIT, spec.seed)
    network.set_normalisation(data.mean, data.std)
    network.place(CPU, channels_last=spec.anchor.step.channels_last and backbone.channels_last)
    return network.train()


def test_images_and_views_share_one_forward_pass(lab: Any, seen: list[Batch]) -> None:
    """BatchNorm sees all of them at once, so its statistics are those of the whole, and one batch is counted."""
    spec = lab.spec("toy_watch_views", anchor=lab.anchor(data__cutmix_alpha=1.0))
    state = _stopped(lab, spec, "runs", 1)["student"]
    (batch,) = seen
    network = _fresh_student(lab, spec)
    taps = WatchViews.taps.student.resolve(network.stage_count)
    features = network(torch.cat([batch.images, *(view.images for view in batch.views)]), taps)
    statistics = {key: value for key, value in network.state_dict().items() if "running" in key or "tracked" in key}
    assert len(statistics) > 6
    for key, value in statistics.items():
        assert torch.equal(state[key], value), key
    for place, said in enumerate((batch.student, *(view.student for view in batch.views))):
        rows = slice(40 * place, 40 * place + 40)
        assert torch.equal(said.logits, features.logits[rows])
        assert torch.equal(said.embedding, features.embedding[rows])  # type: ignore[arg-type]
        assert torch.equal(said.stages[0], features.stages[0][rows])
        assert (len(said.stages), said.pre_stages, said.indices) == (1, (), (0,))
        assert said.logits.requires_grad
    alone = network(batch.images, taps)
    assert not torch.allclose(alone.logits, batch.student.logits), "the case says nothing"


@pytest.mark.parametrize(("chunks", "sizes"), [(1, [40]), (4, [10] * 4)])
def test_rows_match_the_images(lab: Any, seen: list[Batch], chunks: int, sizes: list[int]) -> None:
    """Uncropped and unmixed, so a view is the turned image: what is said of row i is said of image i, in each part."""
    anchor = lab.anchor(step__accumulate=chunks, data__crop_padding=0)
    spec = lab.spec("toy_watch_views", anchor=anchor, networks=("toy_plain", ("resnet14_w8",)))
    _stopped(lab, spec, "runs", 1)
    (manifest,) = lab.place.teachers.all()
    teacher = load_teacher(lab.place.teachers, manifest, lab.place.registry.backbones["resnet14_w8"], DIGIT)
    student = _fresh_student(lab, spec)
    assert [len(batch.labels) for batch in seen] == sizes
    assert len(torch.cat([batch.index for batch in seen]).unique()) == 40
    for batch in seen:
        turned, straight = batch.views
        assert torch.equal(straight.images, batch.images)
        assert torch.equal(turned.images, torch.rot90(batch.images, 1, (2, 3)))
        torch.testing.assert_close(straight.student.logits, batch.student.logits, rtol=1e-5, atol=1e-6)
        for view in batch.views:
            with torch.no_grad():
                taught = teacher(view.images, Taps((1, -1), pre_activation=True))
                ours = student(view.images, Taps((0,), embedding=True))
            torch.testing.assert_close(view.student.logits.detach(), ours.logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(view.student.embedding, ours.embedding, rtol=1e-4, atol=1e-5, check_stride=False)
            found = [view.teacher.logits, *view.teacher.stages, *view.teacher.pre_stages]
            expected = [taught.logits, *taught.stages, *taught.pre_stages]
            assert len(found) == len(expected) == 5
            for one, other in zip(found, expected, strict=True):
                assert not one.requires_grad
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            assert view.teacher.embedding is None, "nobody asked for it"


@pytest.mark.parametrize("changes", [{}, {"data__mixup_alpha": 0.5}, {"step__accumulate": 4}])
def test_in_every_step_of_every_phase_views_show_the_batch(
    lab: Any, seen: list[Batch], changes: dict[str, Any]
) -> None:
    """Uncropped, turning and mixing may change places."""
    anchor = lab.anchor(data__crop_padding=0, schedule__epochs=2, **changes)
    lane = lab.train([lab.spec("toy_watch_phases", anchor=anchor)], "runs")[0].lane
    assert lane.failure is None
    assert len(seen) == 3 * 4 * anchor.step.accumulate
    assert [(batch.mix is not None) for batch in seen] == ["data__mixup_alpha" in changes] * len(seen)
    for batch in seen:
        turned, straight = batch.views
        assert torch.equal(straight.images, batch.images)
        assert torch.equal(turned.images, torch.rot90(batch.images, 1, (2, 3)))


@pytest.mark.parametrize("mix", [{}, {"data__cutmix_alpha": 1.0}])
def test_accumulated_steps_with_views_are_those_of_the_whole_batch(lab: Any, mix: dict[str, Any]) -> None:
    """Without BatchNorm every image counts by itself, so how a batch and its views are cut must not matter."""
    plain = {"optimizer__momentum": 0.0, "optimizer__nesterov": False, "step__grad_clip_norm": 0.0}
    networks = ("toy_plain", ("resnet14_w8",))
    anchors = [lab.anchor(f"a{count}", **plain, **mix, step__accumulate=count) for count in (1, 4)]
    specs = [lab.spec("toy_watch_views", anchor=anchor, networks=networks) for anchor in anchors]
    whole, cut = (lab.train([spec], spec.anchor.name)[0].lane for spec in specs)
    fresh = dict(new_network(lab.place.registry.backbones["toy_plain"], 10, DIGIT, seed=0).named_parameters())
    for key, value in whole.student.named_parameters():
        assert not torch.allclose(value, fresh[key], atol=1e-3), "the run did too little to tell"
        torch.testing.assert_close(dict(cut.student.named_parameters())[key], value, rtol=1e-4, atol=1e-6)
    for one, other in zip(whole.history, cut.history, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_methods_see_float32_whatever_the_networks_compute_in(lab: Any, seen: list[Batch], precision: str) -> None:
    _stopped(lab, lab.spec("toy_watch_views", anchor=lab.anchor(step__precision=precision)), "runs", 2)
    for view in seen[-1].views:
        tensors = [view.images, view.student.logits, view.student.stages[0], view.teacher.logits, *view.teacher.stages]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}


# --- cost -------------------------------------------------------------------------------------------------------------

IMAGES = 160  # of one epoch; the main phase has three


def test_views_count_as_forward_passes(lab: Any) -> None:
    plain = lab.make_teacher("toy_plain")
    two = {"networks": ("resnet8_w4", ("resnet14_w8", "toy_plain")), "teachers": (lab.teacher, plain)}
    for accumulate in (1, 4):
        anchor = lab.anchor(f"a{accumulate}", step__accumulate=accumulate)
        specs = [lab.spec("toy_turns", anchor=anchor), lab.spec("toy_watch_views", anchor=anchor, **two)]
        one, both = (lab.train([spec], anchor.name)[0].lane.counters for spec in specs)
        # Two epochs of the head without the student, three of all; each image and two views of it.
        assert (one.images, one.student_forwards) == (5 * IMAGES, 3 * IMAGES * 3)
        assert one.teacher_forwards == 5 * IMAGES * 3
        assert (both.images, both.student_forwards) == (3 * IMAGES, 3 * IMAGES * 3)
        assert both.teacher_forwards == 3 * IMAGES * 3 * 2


def test_in_a_cohort_the_batch_is_shared_and_views_are_not(lab: Any) -> None:
    specs = [lab.spec(method) for method in ("toy_watch_views", "toy_untaught", "vanilla_kd")]
    views, untaught, other = (entry.lane.counters for entry in lab.train(specs, "runs"))
    assert views.teacher_forwards == 3 * IMAGES * (0.5 + 2)
    assert other.teacher_forwards == 3 * IMAGES * 0.5
    assert (untaught.teacher_forwards, untaught.student_forwards) == (0, 3 * IMAGES * 2)
    assert other.student_forwards == 3 * IMAGES


def test_a_method_without_a_teacher_may_have_views(lab: Any) -> None:
    (record,) = lab.run([lab.spec("toy_untaught")], "runs")
    assert record.status == "ok"


# --- bits -------------------------------------------------------------------------------------------------------------


def _bits(lab: Any, entry: Any) -> str:
    """A lane's share of the teacher's work is the one thing that may differ: it is what the run cost."""
    state = lab.timeless(entry.lane.state())
    state["counters"].pop("teacher_forwards")
    return str(lab.digest_of(state))


@pytest.mark.parametrize("changes", [{}, {"data__cutmix_alpha": 1.0, "step__accumulate": 4}])
def test_a_lane_with_views_has_the_same_bits_alone_and_in_a_cohort(lab: Any, changes: dict[str, Any]) -> None:
    anchor = lab.anchor(**changes)
    specs = [lab.spec(method, anchor=anchor) for method in ("dkd", "toy_turns", "toy_watch_views", "toy_untaught")]
    together = [_bits(lab, entry) for entry in lab.train(specs, "together")]
    assert together == [_bits(lab, lab.train([spec], "alone")[0]) for spec in specs]


def test_the_lane_beside_sees_the_same_batch(lab: Any, seen: list[Batch]) -> None:
    anchor = lab.anchor(data__mixup_alpha=0.5)
    specs = [lab.spec(method, anchor=anchor) for method in ("toy_turns", "toy_watch_views", "toy_view_vandal")]
    _stopped(lab, specs[1], "alone", 6)
    alone = [(b.images, b.labels, b.index, b.mix.labels, b.teacher.logits) for b in seen if b.mix]
    seen.clear()
    trained = lab.train(specs, "together")
    assert len(seen) == 12
    for batch, expected in zip(seen, alone, strict=False):
        assert batch.mix is not None
        parts = (batch.images, batch.labels, batch.index, batch.mix.labels, batch.teacher.logits)
        assert all(torch.equal(one, other) for one, other in zip(parts, expected, strict=True))
    assert [entry.lane.failure for entry in trained[:2]] == [None, None]


def test_a_lane_that_overwrites_its_views_costs_no_other(lab: Any) -> None:
    specs = [lab.spec(method) for method in ("toy_view_vandal", "toy_turns", "dkd")]
    beside = [_bits(lab, entry) for entry in lab.train(specs, "beside")[1:]]
    assert beside == [_bits(lab, lab.train([spec], "alone")[0]) for spec in specs[1:]]


RICH: dict[str, Any] = {
    "step__precision": "fp16",
    "step__ema_decay": 0.9,
    "step__accumulate": 4,
    "data__cutmix_alpha": 1.0,
}
# Steps 1-8 are the head's phase, 9-20 the main phase.
STOPS = [*((stop, {}) for stop in (1, 3, 4, 6, 8, 9, 13, 16, 19)), *((stop, RICH) for stop in (6, 14))]


@pytest.mark.parametrize(("stop", "changes"), STOPS)
def test_a_stopped_run_with_views_ends_in_the_bits_of_an_uninterrupted_one(
    lab: Any, stop: int, changes: dict[str, Any]
) -> None:
    spec = lab.spec("toy_turns", anchor=lab.anchor(**changes))
    _stopped(lab, spec, "cut", stop)
    torch.manual_seed(999)  # a new process would not have the old one's generators
    lane = lab.train([spec], "cut")[0].lane
    assert lane.failure is None
    assert lab.digest(lane) == lab.digest_after(spec, "whole")


def test_a_stopped_cohort_with_views_goes_on_exactly(lab: Any) -> None:
    specs = [lab.spec(method) for method in ("toy_turns", "toy_watch_views", "dkd")]
    expected = [lab.digest(entry.lane) for entry in lab.train(specs, "whole")]
    for stop in (3, 10):
        with pytest.raises(Interrupted):
            lab.train(specs, "cut", should_stop=lab.stop_after(stop))
    assert [lab.digest(entry.lane) for entry in lab.train(specs, "cut")] == expected


# --- the conformance kit ----------------------------------------------------------------------------------------------


class TurnedLog(Untaught):
    name = "toy_turned_log"

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised(), "log": Term(batch.views[0].student.logits.softmax(1).log().mean())}


@pytest.mark.parametrize("method", [Turns, Untaught], ids=lambda method: method.name)
def test_the_kit_knows_views(method: type[AnyMethod]) -> None:
    assert [result.message for result in check_method(method) if not result.ok] == []


@pytest.mark.parametrize(
    ("method", "failed"), [(ViewVandal, ["batch_unchanged", "teacher_unchanged"]), (TurnedLog, ["extreme_logits"])]
)
def test_the_kit_looks_into_views(method: type[AnyMethod], failed: list[str]) -> None:
    results = {result.name: result.message for result in check_method(method) if not result.ok}
    assert list(results) == failed
    if method is ViewVandal:
        assert "changed batch.views[0].images" in results["batch_unchanged"]
        assert "changed batch.views[0].teachers[0]" in results["teacher_unchanged"]
