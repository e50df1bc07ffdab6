"""The thirteen pitfalls of the reference notes (section 18), each against every method concerned and the trainer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import registry
from kdbench.backbones.base import Network
from kdbench.config.loading import load_anchor, validate
from kdbench.config.schema import Anchor
from kdbench.datasets.base import Split
from kdbench.errors import Unsupported
from kdbench.evaluation import TestSet, logits_of
from kdbench.method import AnyMethod, Batch, Losses, LossProtocol, Setup, View, Viewed, total, trainable
from kdbench.methods.ab import AB
from kdbench.methods.at import AT
from kdbench.methods.cc import CC
from kdbench.methods.crd import CRD
from kdbench.methods.dkd import DKD
from kdbench.methods.fitnet import FitNet
from kdbench.methods.ft import FT
from kdbench.methods.pkt import PKT
from kdbench.methods.reviewkd import ReviewKD
from kdbench.methods.rkd import RKD
from kdbench.methods.simkd import SimKD
from kdbench.methods.sp import SP
from kdbench.methods.sskd import SSKD
from kdbench.options import deviations_of, resolve_options
from kdbench.spec import DatasetRef, PluginRef, RunSpec
from kdbench.testing.bench import BATCH, CLASSES, PAIR, TRAIN_SIZE, Bench, Place, Run, pair_for
from kdbench.training.inputs import BatchStream
from kdbench.training.lane import Lane
from kdbench.training.networks import new_network
from kdbench.training.trainer import Observer, Trainer
from kdbench.types import Context, Features, NetworkInfo, Pair, PairInfo, StageShape, Taps

CIFAR = StageShape((3, 32, 32))

Change = Callable[[Tensor], Tensor]
KNOWN = registry.load()
BUILT_IN = [m for m in KNOWN.methods.values() if m.__module__.startswith("kdbench.methods.")]
# One teacher is all there is here; a method that needs more is taught in tests of its own.
TAUGHT = [m for m in BUILT_IN if m.uses_teacher and pair_for(m) is PAIR]
WRN = Pair("wrn", "wrn_16_1", ("wrn_16_1",), "digits")
EVERYTHING = Taps("all", pre_activation=True, embedding=True)
FAMILIES = ["resnet8_w4", "resnet20_he", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18"]
FAMILIES += ["mobilenet_v2_scratch"]
RAW = {"wrn_16_1", "MobileNetV2", "mobilenet_v2_scratch"}

each_method = pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.name)
each_taught = pytest.mark.parametrize("kind", TAUGHT, ids=lambda kind: kind.name)
each_family = pytest.mark.parametrize("name", FAMILIES)


def test_all_methods_are_here() -> None:
    names = {"fitnet", "at", "crd", "reviewkd", "simkd", "sskd", "ab", "ft", "sp", "rkd", "pkt", "vid", "nst", "cc"}
    assert names | {"vanilla_kd", "dkd"} <= {kind.name for kind in TAUGHT}
    assert {"student", "asib"} <= {kind.name for kind in BUILT_IN} - {kind.name for kind in TAUGHT}
    shipped = [b for b in KNOWN.backbones.values() if KNOWN.backbones.owner(b.name).distribution == "kdbench"]
    listed = {KNOWN.backbones[name].family for name in FAMILIES}
    assert listed == {backbone.family for backbone in shipped}, "name one small member of each family in FAMILIES"


# --- how the tests get at methods and batches -------------------------------------------------------------------------


@dataclass
class Started:
    """A run whose method has its own options, and what the method was shown of the teachers."""

    run: Run
    setup: Setup

    @property
    def method(self) -> Any:
        return self.run.method


def start(kind: type[AnyMethod], pair: Pair | None = None, *, epochs: int | None = None, **options: object) -> Started:
    bench = Bench(kind, pair)
    context = bench.context if epochs is None else replace(bench.context, epochs=epochs)
    run = bench.start()
    torch.manual_seed(0)
    run.method = kind(kind.options_type.model_validate(options), context).train()
    setup = Setup(bench.labels.clone(), bench.teachers if kind.uses_teacher else ())
    run.method.prepare(setup)
    run.phases = run.method.phases()
    run._trained = [*trainable(run.student), *trainable(run.method)]
    if isinstance(run.method, CRD):  # each image's comparisons, whatever batch it is in
        draws = torch.randint(TRAIN_SIZE, (TRAIN_SIZE, 9))
        run.method.draw = lambda index: draws[index]  # type: ignore[method-assign]
    return Started(run, setup)


def main_place(run: Run) -> Place:
    return next(Place(i, 0) for i, phase in enumerate(run.phases) if phase.is_main)


def mapped(features: Features, change: Change, logits: Change | None = None) -> Features:
    """Return features with every tensor changed; logits as the rest, or by a change of their own."""
    return replace(
        features,
        logits=(logits or change)(features.logits),
        embedding=None if features.embedding is None else change(features.embedding),
        stages=tuple(map(change, features.stages)),
        pre_stages=tuple(map(change, features.pre_stages)),
    )


def both(batch: Batch, student: Change, teacher: Change) -> Batch:
    """Return the batch with what the networks say changed, of the images and of their views."""
    views = tuple(
        replace(v, student=mapped(v.student, student), teachers=tuple(mapped(t, teacher) for t in v.teachers))
        for v in batch.views
    )
    teachers = tuple(mapped(t, teacher) for t in batch.teachers)
    return replace(batch, student=mapped(batch.student, student), teachers=teachers, views=views)


def rows(batch: Batch, at: Tensor) -> Batch:
    """Return a batch of some images of another, in a given order."""
    taken = both(batch, lambda x: x[at], lambda x: x[at])
    views = tuple(replace(view, images=view.images[at]) for view in taken.views)
    return replace(taken, images=batch.images[at], labels=batch.labels[at], index=batch.index[at], views=views)


def values(losses: Losses) -> dict[str, float]:
    return {name: term.value.item() for name, term in losses.items()}


def tensors_in(thing: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield every tensor a method holds, also where torch does not look: in lists, dicts and plain attributes."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for part in thing.values():
            yield from tensors_in(part, seen)
    elif isinstance(thing, list | tuple | set):
        for part in thing:
            yield from tensors_in(part, seen)
    elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("kdbench.methods"):
        yield from tensors_in(vars(thing), seen)


# --- a cohort of all methods under the real trainer -------------------------------------------------------------------


@dataclass
class Cohort:
    """All taught methods after an epoch (and their own phases) in one trainer, and what was seen of the teacher."""

    lanes: dict[str, Lane]
    teacher: Network
    untouched: dict[str, Tensor]
    test: TestSet
    modes: list[bool] = field(default_factory=list)
    graphs: list[bool] = field(default_factory=list)
    indices: list[Tensor] = field(default_factory=list)
    first: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class Noise:
    """Random images with a test split."""

    def __init__(self, count: int) -> None:
        draws = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, 16, 16), generator=draws, dtype=torch.uint8)
        self.split = Split(images, torch.arange(count) % CLASSES)

    def test(self) -> Split:
        return self.split


def small_anchor() -> Anchor:
    """Return crd, each method with its published weights, in one epoch of small batches."""
    tree = load_anchor("crd_smoke", KNOWN.anchors.as_mapping()).model_dump()
    tree.update(name="small", locked=())
    tree["schedule"].update(epochs=1, milestones=())
    tree["data"]["batch_size"] = 16
    return validate(Anchor, tree, "small")


def spec_of(kind: type[AnyMethod], anchor: Anchor) -> RunSpec:
    options = resolve_options(kind, anchor, PAIR, [])
    return RunSpec(
        method=kind.name,
        method_version=kind.version,
        plugin=PluginRef(distribution="kdbench", version="0"),
        options=options.model_dump(mode="json"),
        deviations=deviations_of(kind, anchor, options),
        pair=PAIR.name,
        student=PAIR.student,
        teachers=PAIR.teachers,
        dataset=DatasetRef(name="noise", slug="noise", fingerprint="0"),
        anchor=anchor,
        seed=0,
    )


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    torch.set_num_threads(1)
    anchor, device, source = small_anchor(), torch.device("cpu"), Noise(32)
    names, image = (PAIR.student, *PAIR.teachers), StageShape((3, 16, 16))
    student, *teachers = (KNOWN.backbones[name].info(CLASSES, image) for name in names)
    stream = BatchStream(source.split, anchor.data, 0, device, mirror=True)
    context = Context(PairInfo("p", student, tuple(teachers), image), 32, 1, stream.steps, stream.batch_size, seed=0)
    teacher = (
        new_network(KNOWN.backbones[PAIR.teachers[0]], CLASSES, CIFAR, 1).eval().requires_grad_(requires_grad=False)
    )
    untouched = {key: value.clone() for key, value in teacher.state_dict().items()}
    lanes = {}
    for kind in TAUGHT:
        network = new_network(KNOWN.backbones[PAIR.student], CLASSES, CIFAR, 0)
        setup = Setup(source.split.labels.clone(), (teacher,))
        lanes[kind.name] = Lane(spec_of(kind, anchor), kind, network, context, device, setup)
    found = Cohort(lanes, teacher, untouched, TestSet(source, device, 32))  # type: ignore[arg-type]
    for name, lane in lanes.items():
        found.first[name] = {key: value.clone() for key, value in lane.method.state_dict().items()}

    def watch(network: nn.Module, _: object) -> None:
        found.modes.append(any(part.training for part in network.modules()))
        found.graphs.append(torch.is_grad_enabled())

    teacher.register_forward_pre_hook(watch)
    inner = stream.batch

    def batch(epoch: int | str, step: int, *, mixed: bool = True) -> Any:
        inputs = inner(epoch, step, mixed=mixed)
        found.indices.append(inputs.index.clone())
        assert torch.equal(inputs.labels, source.split.labels[inputs.index])
        return inputs

    stream.batch = batch  # type: ignore[method-assign]
    Trainer(list(lanes.values()), stream, [teacher], None, found.test, Observer(save=lambda _lane: None)).run()
    for lane in lanes.values():
        assert lane.finished and not lane.failure and not lane.diverged, (lane.failure, lane.diverged)  # noqa: PT018
    return found


# --- 01: batchmean, not mean ------------------------------------------------------------------------------------------


def kl_rows(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return tau^2 KL of each row, in double precision."""
    p, q = (teacher.double() / tau).softmax(1), (student.double() / tau).softmax(1)
    return tau**2 * (p * (p / q).log()).sum(1)


@each_taught
def test_pitfall_01_kd_is_summed_over_classes_and_averaged_over_images(kind: type[AnyMethod]) -> None:
    run = start(kind).run
    batch = both(run.batch(main_place(run)), lambda x: 3 * x, lambda x: 3 * x)
    losses = run.losses(main_place(run), batch)
    wanted = kl_rows(batch.student.logits, batch.teacher.logits, batch.tau).mean().item()
    if "kd" not in losses:
        assert kind is DKD
    else:
        assert losses["kd"].value.item() == pytest.approx(wanted, rel=1e-4)


def test_pitfall_01_both_parts_of_dkd_are() -> None:
    parts = []
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0)):
        run = start(DKD, alpha=alpha, beta=beta).run
        batch = both(run.batch(Place(0, 0)), lambda x: 3 * x, lambda x: 3 * x)
        parts.append(run.losses(Place(0, 0), batch)["dkd"].value.item())
    tau, labels = batch.tau, batch.labels
    one_hot = F.one_hot(labels, CLASSES).bool()
    rest = [x[~one_hot].view(BATCH, CLASSES - 1) for x in (batch.student.logits, batch.teacher.logits)]
    both_ways = []
    for logits in (batch.student.logits, batch.teacher.logits):
        p = (logits.double() / tau).softmax(1)[one_hot]
        both_ways.append(tau * torch.stack([p, 1 - p], 1).log())
    assert parts[0] == pytest.approx(kl_rows(*both_ways, tau).mean().item(), rel=1e-4)
    assert parts[1] == pytest.approx(kl_rows(*rest, tau).mean().item(), rel=1e-4)


# --- 02: the teacher stays in eval mode and out of the graph ----------------------------------------------------------


@each_taught
@pytest.mark.parametrize("pair", [PAIR, WRN], ids=lambda pair: pair.name)
def test_pitfall_02_parts_of_the_teacher_stay_frozen_in_eval_mode(kind: type[AnyMethod], pair: Pair) -> None:
    started = start(kind, pair)
    run, method = started.run, started.method
    shared = {id(part) for network in started.setup.networks for part in network.modules()}
    copies = {id(part) for network in started.setup.teachers for part in network.modules()}
    owned = {id(tensor) for network in started.setup.teachers for tensor in network.parameters()}
    taken = [part for part in method.modules() if id(part) in copies]
    assert not [part for part in method.modules() if id(part) in shared], "the other runs have it, too"
    assert bool(taken) == (kind is SimKD)
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in taken]
    for wrapper in (method, nn.ModuleList([run.student, method])):
        wrapper.train()
        assert not any(part.training for part in taken)
    assert not any(p.requires_grad for p in method.parameters() if id(p) in owned)
    for place in run.places():
        run.step(place)
    for part, state in zip(taken, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())


@each_taught
def test_pitfall_02_no_gradient_reaches_the_teachers_features(kind: type[AnyMethod]) -> None:
    """Even if someone forgot to stop it before: learned helpers on the teacher's side start from constants."""
    run = start(kind).run
    given: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        given.append(x.detach().clone().requires_grad_())
        return given[-1]

    place = main_place(run)
    batch = both(run.batch(place), lambda x: x, leaf)
    total(run.losses(place, batch)).backward()  # type: ignore[no-untyped-call]
    assert given
    assert all(x.grad is None or not x.grad.any() for x in given)


def test_pitfall_02_the_trainer_runs_it_in_eval_mode_without_a_graph(cohort: Cohort) -> None:
    assert len(cohort.modes) > 4
    assert not any(cohort.modes)
    assert not any(cohort.graphs)
    state = cohort.teacher.state_dict()
    assert all(torch.equal(state[key], value) for key, value in cohort.untouched.items())
    assert not any(parameter.grad is not None for parameter in cohort.teacher.parameters())


# --- 03: learned helpers are registered, stored, trained and in train mode --------------------------------------------


@each_method
def test_pitfall_03_every_tensor_of_a_method_is_registered(kind: type[AnyMethod]) -> None:
    """A parameter or bank in a list is not moved to the device, not trained and not stored."""
    started = start(kind)
    for place in started.run.places():
        started.run.step(place)
    method = started.method
    registered = {id(tensor) for tensor in (*method.parameters(), *method.buffers())}
    assert all(id(tensor) in registered for tensor in tensors_in(method))
    assert {name for name, _ in method.named_parameters()} <= method.state_dict().keys()
    assert all(parameter.is_leaf for parameter in method.parameters())
    moved = copy.deepcopy(method).to("meta")
    assert all(tensor.is_meta for tensor in tensors_in(moved))


def cancelled_biases(module: nn.Module) -> set[int]:
    """Return ids of biases in front of a BatchNorm, which takes them out again: their gradient is rounding noise."""
    found = set()
    for part in module.modules():
        children = list(part.children())
        for one, other in pairwise(children):
            bias = getattr(one, "bias", None)
            if isinstance(other, nn.BatchNorm2d) and isinstance(bias, nn.Parameter):
                found.add(id(bias))
    return found


@each_method
def test_pitfall_03_every_helper_is_trained_in_its_phase_only(kind: type[AnyMethod]) -> None:
    """A helper with a phase of its own (paraphraser, teacher's head) is fixed in the main one."""
    run = start(kind).run
    moved: list[set[str]] = []
    for place in run.places():
        before = {name: p.detach().clone() for name, p in run.method.named_parameters()}
        run.step(place)
        noise = cancelled_biases(run.method)
        now = dict(run.method.named_parameters())
        learned = {name for name, p in now.items() if p.grad is not None and (id(p) in noise or bool(p.grad.any()))}
        still = {name for name, p in now.items() if torch.equal(p, before[name]) and id(p) not in noise}
        assert not learned & still
        assert {name for name in now if name not in still and id(now[name]) not in noise} <= learned
        moved.append(learned)
        run.method.zero_grad()
    expected = {name for name, p in run.method.named_parameters() if p.requires_grad}
    assert set().union(*moved) == expected
    early = {"sskd": "teacher_head.", "ft": "paraphraser."}.get(kind.name)
    if early:
        assert {name for name in expected if name.startswith(early)} == moved[0]
        assert moved[0].isdisjoint(moved[1])
    frozen = {name for name, p in run.method.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == ({"classifier"} if kind is SimKD else set())


def test_pitfall_03_vids_log_scales_are_among_them(cohort: Cohort) -> None:
    lane = cohort.lanes["vid"]
    scales = [name for name, _ in lane.method.named_parameters() if "scale" in name]
    assert len(scales) == 3
    for name in scales:
        assert not torch.equal(lane.state()["method"][name], cohort.first["vid"][name])


@each_method
def test_pitfall_03_helpers_are_in_train_mode_and_see_each_batch_once(kind: type[AnyMethod]) -> None:
    started = start(kind)
    run, method = started.run, started.method
    taken = {id(part) for network in started.setup.teachers for part in network.modules()}
    for place in run.places():
        seen = {id(m): int(m.num_batches_tracked) for m in method.modules() if isinstance(m, nn.BatchNorm2d)}  # type: ignore[arg-type]
        run.step(place)
        for part in method.modules():
            frozen = id(part) in taken or type(part).__name__ == "Frozen"
            assert part.training != frozen
            if isinstance(part, nn.BatchNorm2d) and not frozen:
                assert int(part.num_batches_tracked) - seen[id(part)] <= 1  # type: ignore[arg-type]
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d) and id(m) not in taken]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)  # type: ignore[arg-type]


def test_pitfall_03_the_trainer_optimises_them_with_the_student(cohort: Cohort) -> None:
    for name, lane in cohort.lanes.items():
        held = {id(p): group for group in lane.optimizer.param_groups for p in group["params"]}
        wanted = [*trainable(lane.student), *trainable(lane.method)]
        assert {id(p) for p in wanted} == held.keys(), name
        assert len({(group["lr"], group["weight_decay"], group["momentum"]) for group in held.values()}) == 1
        state = lane.state()["method"]
        for key, parameter in lane.method.named_parameters():
            assert torch.equal(state[key], parameter), name
            moved = not torch.equal(state[key], cohort.first[name][key])
            # Weight decay moves what has a gradient of 0, but a bias may be 0 itself.
            assert moved == parameter.requires_grad, (name, key)


# --- 04: CRD's index, banks and Z -------------------------------------------------------------------------------------


def test_pitfall_04_indices_are_delivered_and_distinct(cohort: Cohort) -> None:
    assert cohort.indices
    assert all(len(index.unique()) == len(index) == 16 for index in cohort.indices)
    stream = BatchStream(Noise(50).split, small_anchor().data, 3, torch.device("cpu"), mirror=True)
    for epoch in range(3):
        seen = torch.cat([stream.batch(epoch, step).index for step in range(stream.steps)])
        assert len(seen.unique()) == len(seen) == 48


def crd_by_hand(method: CRD, batch: Batch, z: Tensor | None) -> tuple[float, Tensor]:
    """Return the loss from the banks as they are, by the formula without logarithms, and Z."""
    contrast, size = method.contrast, TRAIN_SIZE
    choice = method.draw(batch.index)
    assert batch.student.embedding is not None
    assert batch.teacher.embedding is not None
    u = contrast.student_embed(batch.student.embedding).double()
    v = contrast.teacher_embed(batch.teacher.embedding).double()
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    scores = [
        torch.einsum("bkd,bd->bk", bank[choice].double(), anchor).div(contrast.tau).exp()
        for bank, anchor in ((contrast.teacher_bank, u), (contrast.student_bank, v))
    ]
    if z is None:
        z = torch.stack([size * score.mean() for score in scores])
    loss, noise = torch.zeros((), dtype=torch.float64), (choice.shape[1] - 1) / size
    for score, constant in zip(scores, z, strict=True):
        p = score / constant
        right, wrong = p[:, 0] / (p[:, 0] + noise + 1e-7), noise / (p[:, 1:] + noise + 1e-7)
        loss = loss - (right.log() + wrong.log().sum(1)).mean()
    return loss.item(), z.detach()


def test_pitfall_04_scores_use_the_stale_bank_of_the_other_network_and_one_z_also_after_a_resume() -> None:
    started = start(CRD)
    run, z = started.run, None
    for step in range(3):
        place, method = Place(0, step), run.method
        assert isinstance(method, CRD)
        batch = run.batch(place)
        wanted, z = crd_by_hand(method, batch, z)
        banks = [bank.clone() for bank in (method.contrast.student_bank, method.contrast.teacher_bank)]
        losses = run.losses(place, batch)
        assert losses["crd"].value.item() == pytest.approx(wanted, rel=1e-4)
        assert torch.equal(banks[0], method.contrast.student_bank), "before after_step()"
        assert torch.equal(banks[1], method.contrast.teacher_bank), "before after_step()"
        copy.deepcopy(method)  # nothing in it may carry a graph
        run.method.after_step(batch)
        others = torch.ones(TRAIN_SIZE, dtype=torch.bool).index_fill(0, batch.index, value=False)
        for bank, old in zip((method.contrast.student_bank, method.contrast.teacher_bank), banks, strict=True):
            assert torch.equal(bank[others], old[others])
            assert not (bank[batch.index] == old[batch.index]).all(1).any()
            assert not bank.requires_grad
        draw, state = method.draw, method.state_dict()
        resumed = start(CRD).run  # a fresh object goes on
        resumed.method.load_state_dict(state)
        resumed.method.draw = draw  # type: ignore[assignment]
        run = resumed


# --- 05: what a stage is, family by family ----------------------------------------------------------------------------


@cache
def trained_once(name: str) -> Network:
    """Return a network in eval mode whose normalisation layers are not the identity."""
    torch.manual_seed(0)
    network = KNOWN.backbones[name].build(CLASSES, CIFAR)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.1)
            nn.init.normal_(part.bias, 0.0, 0.2)
    with torch.no_grad():
        network.train()(images())
    return network.eval()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@each_family
@torch.no_grad()
def test_pitfall_05_stages_are_after_relu_but_raw_in_wrn_and_mobilenet(name: str) -> None:
    network = trained_once(name)
    features = network(images(), EVERYTHING)
    raw = name in RAW
    assert features.embedding is not None
    assert (features.embedding >= 0).all(), "the pooled vector is behind a ReLU in all of them"
    for stage, pre in zip(features.stages[1:], features.pre_stages[1:], strict=True):
        assert bool((stage < 0).any()) == raw
        assert (pre < 0).any()
        if not raw:  # ShuffleV2 shuffles the channels in between
            assert torch.equal(pre.relu().sort(1).values, stage.sort(1).values)


@torch.no_grad()
def test_pitfall_05_wrn_pools_behind_its_last_norm_what_is_tapped_before_it() -> None:
    network, raw = trained_once("wrn_16_1"), []
    hooks = [network.get_submodule(f"block{i}").register_forward_hook(lambda *a: raw.append(a[2])) for i in (1, 2, 3)]
    features = network(images(), EVERYTHING)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(stage, x) for stage, x in zip(features.stages[1:], raw, strict=True))
    bn = network.get_submodule("bn1")
    torch.testing.assert_close(features.pre_stages[-1], bn(raw[-1]))
    torch.testing.assert_close(features.embedding, bn(raw[-1]).relu().mean((2, 3)))
    for number in (1, 2):
        norm = network.get_submodule(f"block{number + 1}.layer.0.bn1")
        torch.testing.assert_close(features.pre_stages[number], norm(raw[number - 1]))


@torch.no_grad()
def test_pitfall_05_mobilenets_stages_are_linear_and_their_own_pre_activation() -> None:
    network = trained_once("MobileNetV2")
    features = network(images(), EVERYTHING)
    assert all(torch.equal(pre, stage) for pre, stage in zip(features.pre_stages, features.stages, strict=True))
    assert [stage.shape[1] for stage in features.stages] == [16, 12, 16, 48, 160]


@pytest.mark.parametrize("name", ["fitnet", "at", "sp", "nst", "vid", "simkd", "reviewkd", "ft"])
def test_pitfall_05_methods_take_the_students_maps_as_they_are(name: str) -> None:
    """No method rectifies a WRN's sums: what is below 0 counts, and each method gets the sums themselves."""
    kind = KNOWN.methods[name]
    run = start(kind, WRN).run
    place, raw = main_place(run), []
    blocks = [run.student.get_submodule(f"block{number}") for number in (1, 2, 3)]
    hooks = [block.register_forward_hook(lambda *a: raw.append(a[2])) for block in blocks]
    batch = run.batch(place)
    for hook in hooks:
        hook.remove()
    assert all(any(torch.equal(stage, x) for x in raw) for stage in batch.student.stages)
    stages = tuple(stage.detach().requires_grad_() for stage in batch.student.stages)
    losses = run.losses(place, replace(batch, student=replace(batch.student, stages=stages)))
    (term,) = (term for key, term in losses.items() if key not in {"ce", "kd"})
    for stage, gradient in zip(stages, torch.autograd.grad(term.value, stages), strict=True):
        assert (stage < 0).any()
        assert gradient[stage < 0].count_nonzero() > 0.9 * (stage < 0).sum()


# --- 06: pre-activations without touching running statistics ----------------------------------------------------------


@each_family
@torch.no_grad()
def test_pitfall_06_taps_do_not_change_what_batchnorm_learns(name: str) -> None:
    torch.manual_seed(0)
    plain = KNOWN.backbones[name].build(CLASSES, CIFAR).train()
    tapped = copy.deepcopy(plain)
    for _ in range(2):
        one, other = plain(images()), tapped(images(), EVERYTHING)
        assert torch.equal(one.logits, other.logits)
    for (key, value), again in zip(plain.state_dict().items(), tapped.state_dict().values(), strict=True):
        assert torch.equal(value, again), key
        assert not key.endswith("num_batches_tracked") or value == 2, key


@each_taught
def test_pitfall_06_one_update_of_the_statistics_per_step_with_every_method(kind: type[AnyMethod]) -> None:
    run = start(kind, WRN).run
    untouched = {key: value.clone() for key, value in run.bench.teachers[0].state_dict().items()}
    for place in run.places():
        run.step(place)
    steps = sum(phase.runs_student for phase in run.phases)
    counts = {int(v) for key, v in run.student.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {steps}
    assert all(torch.equal(value, untouched[key]) for key, value in run.bench.teachers[0].state_dict().items())


def test_pitfall_06_ab_and_the_teachers_side_of_reviewkd_use_pre_activations() -> None:
    for kind in (AB, ReviewKD):
        run = start(kind, WRN).run
        place = run.places()[0]
        batch = run.batch(place)
        value = values(run.losses(place, batch))[{"ab": "ab", "reviewkd": "hcl"}[kind.name]]

        def after(features: Features) -> Features:
            return replace(features, pre_stages=tuple(x.relu() - 1 for x in features.pre_stages))

        def gone(features: Features) -> Features:
            return replace(features, stages=tuple(torch.full_like(x, 7.0) for x in features.stages))

        for side, changed in {"teachers": (after, gone), "student": (after, gone)}.items():
            pre, post = (
                replace(batch, teachers=(how(batch.teacher),))
                if side == "teachers"
                else replace(batch, student=how(batch.student))
                for how in changed
            )
            uses_pre = not (kind is ReviewKD and side == "student")
            assert (values(run.losses(place, pre)).popitem()[1] != value) == uses_pre, (kind.name, side)
            assert (values(run.losses(place, post)).popitem()[1] == value) == uses_pre, (kind.name, side)


# --- 07: zero vectors, dead channels, equal images --------------------------------------------------------------------


def dead_channel(x: Tensor) -> Tensor:
    return x.index_fill(1, torch.tensor([0, 2]), 0.0)


def dead_image(x: Tensor) -> Tensor:
    return x.index_fill(0, torch.tensor([0, 5]), 0.0)


def equal_images(x: Tensor) -> Tensor:
    return x[[0, 0, 1, 2, 1, 0, 3, 4]]


def all_equal(x: Tensor) -> Tensor:
    return x[:1].repeat(len(x), *(1 for _ in x.shape[1:]))


STATES: dict[str, Change] = {
    "all_dead": torch.zeros_like,
    **{f.__name__: f for f in (dead_channel, dead_image, equal_images, all_equal)},
}
# Finite, but so large that one image drowns all others for good, is no better. Where nothing is left alive, FT's three
# BNs in a row may each divide a constant by the root of 1e-5.
LARGEST = dict.fromkeys(STATES, 1e6) | {"all_dead": 1e9}
VARIANTS = [
    *((kind, {}) for kind in BUILT_IN),
    (AT, {"p": 1}),
    (AT, {"p": 3}),
    (RKD, {"squared": True}),
    (FT, {"p2": 2}),
]


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "options"), VARIANTS, ids=["-".join([k.name, *(f"{n}{v}" for n, v in o.items())]) for k, o in VARIANTS]
)
def test_pitfall_07_losses_and_gradients_stay_finite(
    kind: type[AnyMethod], options: dict[str, object], rounded: bool
) -> None:
    """Rounded to bfloat16 means values as a network under autocast gives them, in float32 as the trainer hands on."""
    run = start(kind, **options).run
    for part in run.method.modules():  # so that zeros stay zeros in learned helpers, too
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
    for place in run.places():
        batch = run.batch(place)
        for name, state in STATES.items():
            for student, teacher in ((state, state), (state, torch.clone), (torch.clone, state)):
                given: list[Tensor] = []
                spoilt = both(batch, partial(leaf_of, given, student, rounded), partial(plain_of, teacher, rounded))
                loss = total(run.losses(place, spoilt))
                assert loss.isfinite(), (name, place)
                run.method.zero_grad()
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
                gradients = [x.grad for x in (*given, *run.method.parameters()) if x.grad is not None]
                assert all(g.isfinite().all() for g in gradients), (name, place)
                assert all(g.abs().amax() < LARGEST[name] for g in gradients if g.numel()), (name, place)


def plain_of(state: Change, rounded: bool, x: Tensor) -> Tensor:
    x = state(x.detach()) if x.numel() else x.detach()
    return x.bfloat16().float() if rounded else x.clone()


def leaf_of(given: list[Tensor], state: Change, rounded: bool, x: Tensor) -> Tensor:
    given.append(plain_of(state, rounded, x).requires_grad_())
    return given[-1]


# --- 08: the warm-up counts epochs from 1 -----------------------------------------------------------------------------


@each_method
def test_pitfall_08_only_dkd_and_reviewkd_warm_up_from_a_twentieth_to_one_in_twenty_epochs(
    kind: type[AnyMethod],
) -> None:
    run = start(kind, epochs=240).run
    place, ramps = main_place(run), {DKD: "dkd", ReviewKD: "hcl"}
    batch = run.batch(place)

    def weights(epoch: int) -> dict[str, float]:
        losses = run.losses(place, replace(batch, epoch=epoch, progress=epoch / 240))
        assert kind is CRD or values(losses) == values(run.losses(place, batch))
        return {name: term.weight for name, term in losses.items()}

    final = weights(239)
    for epoch, factor in ((0, 0.05), (1, 0.1), (9, 0.5), (18, 0.95), (19, 1.0), (20, 1.0), (100, 1.0)):
        for name, weight in weights(epoch).items():
            ramp = factor if name == ramps.get(kind) else 1.0
            assert weight == pytest.approx(ramp * final[name]), (epoch, name)


# --- 09: SSKD's selection and its views -------------------------------------------------------------------------------


def chosen_by_hand(ranks: list[int], ratio: float) -> list[int]:
    right = [row for row, rank in enumerate(ranks) if rank == 0]
    wrong = sorted((row for row, rank in enumerate(ranks) if rank), key=lambda row: (ranks[row], row))
    return right + wrong[: int(len(wrong) * ratio + 1e-9)]


def ranks_by_hand(scores: Tensor, truth: list[int]) -> list[int]:
    return [sum(s > row[t] for s in row) for row, t in zip(scores.tolist(), truth, strict=True)]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("right", [0, 3, 8])
def test_pitfall_09_ratios_count_wrong_rows_only_and_means_chosen_rows_only(ratio: float, right: int) -> None:
    run = start(SSKD, tf_ratio=ratio, ss_ratio=ratio).run
    place = main_place(run)
    batch, views = run.batch(place), []
    draws = torch.Generator().manual_seed(1)
    for view in batch.views:  # the teacher knows the first images of each view, and matches them to themselves
        logits = torch.randn(BATCH, CLASSES, generator=draws)
        logits[:right] = logits[:right].scatter(1, batch.labels[:right, None], 9.0)
        embedding = torch.randn(batch.teacher.embedding.shape, generator=draws)  # type: ignore[union-attr]
        embedding[:right] = batch.teacher.embedding[:right]  # type: ignore[index]
        views.append(replace(view, teachers=(replace(view.teacher, logits=logits, embedding=embedding),)))
    batch = replace(batch, views=tuple(views))
    found = run.losses(place, batch)

    order = [(i, v) for i in range(BATCH) for v in range(3)]  # image by image
    method: Any = run.method
    truth = [int(batch.labels[i]) for i, _ in order]
    theirs = torch.stack([batch.views[v].teacher.logits[i] for i, v in order])
    ours = torch.stack([batch.views[v].student.logits[i] for i, v in order])
    rows_kl = kl_rows(ours, theirs, 4.0)
    keep = chosen_by_hand(ranks_by_hand(theirs, truth), ratio)
    wanted = rows_kl[keep].mean().item() if keep else 0.0
    assert found["tf"].value.item() == pytest.approx(wanted, rel=1e-4)

    def matching(head: nn.Module, upright: Any, turned: list[Any]) -> Tensor:
        a = head(torch.stack([turned[v][i] for i, v in order]))
        return F.cosine_similarity(a[:, None], head(upright)[None], dim=2)

    theirs = matching(method.teacher_head, batch.teacher.embedding, [v.teacher.embedding for v in batch.views])
    ours = matching(method.student_head, batch.student.embedding, [v.student.embedding for v in batch.views])
    keep = chosen_by_hand(ranks_by_hand(theirs, [i for i, _ in order]), ratio)
    wanted = kl_rows(ours, theirs, 0.5)[keep].mean().item() if keep else 0.0
    assert found["ss"].value.item() == pytest.approx(wanted, rel=1e-3)


def test_pitfall_09_it_costs_four_passes_and_every_view_has_crops_of_its_own(cohort: Cohort) -> None:
    lane = cohort.lanes["sskd"]
    main = 32  # images of one epoch
    assert lane.counters.student_forwards == 4 * main
    # The teacher's pass over the images is shared by all methods of the main phase, not that over the views.
    assert lane.counters.images == 2 * main
    assert lane.counters.teacher_forwards == pytest.approx(4 * main + 3 * main + main / len(cohort.lanes))
    assert cohort.lanes["vanilla_kd"].counters.student_forwards == main

    source = Noise(32).split
    stream = BatchStream(source, small_anchor().data, 0, torch.device("cpu"), mirror=True)
    assert stream.padding > 0
    upright = stream.batch(0, 0).images
    crops = [upright, *(torch.rot90(stream.view(View(t), 0, 0), -t, (2, 3)) for t in (1, 2, 3))]
    for one in range(4):
        for other in range(one):
            same = sum(torch.equal(a, b) for a, b in zip(crops[one], crops[other], strict=True))
            assert same <= 4, "of 16 images with 25 crops each"
    # Turned back, a view shows the image as it was mirrored: the middle, which no crop leaves out, is found in it.
    for image, view in zip(crops[0], crops[2], strict=True):
        middle = image[:, 4:12, 4:12]
        assert any(torch.equal(view[:, y : y + 8, x : x + 8], middle) for y in range(9) for x in range(9))


# --- 10: the order of the batch ---------------------------------------------------------------------------------------


@each_taught
def test_pitfall_10_only_cc_depends_on_the_order_of_the_batch(kind: type[AnyMethod]) -> None:
    run = start(kind).run
    for place in run.places():
        batch = run.batch(place)
        there = values(run.losses(place, batch))
        again = values(run.losses(place, rows(batch, torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]))))
        for name, value in there.items():
            assert (again[name] == pytest.approx(value, rel=1e-3, abs=1e-6)) == (name != "cc"), name


def test_pitfall_10_ft_and_cc_are_those_of_the_field_and_say_so() -> None:
    for kind in (FT, CC):
        assert "reference" in kind.source.deviations
    run = start(CC).run
    batch = run.batch(Place(0, 0))
    method: Any = run.method
    delta = (method.embed.student(batch.student.embedding) - method.embed.teacher(batch.teacher.embedding)).abs()
    wanted = sum(delta[b] @ delta[b + 1] for b in range(BATCH - 1)) / (BATCH - 1)
    torch.testing.assert_close(run.losses(Place(0, 0), batch)["cc"].value, wanted)

    run = start(FT).run
    place, method = main_place(run), run.method
    batch = run.batch(place)
    ours, theirs = (
        F.normalize(x.square().mean(1).flatten(1))
        for x in (method.translator(batch.student.stages[-1]), method.paraphraser.encoder(batch.teacher.stages[-1]))
    )
    torch.testing.assert_close(run.losses(place, batch)["ft"].value, (ours - theirs).abs().mean())


# --- 11: what SimKD deploys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["resnet14_w8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_pitfall_11_simkd_predicts_with_the_teachers_classifier(teacher: str) -> None:
    """In every family: the target is what this classifier sees, and a perfect student repeats the teacher."""
    started = start(SimKD, Pair("p", "resnet8_w4", (teacher,), "digits"))
    run, method = started.run, started.method
    network = started.setup.networks[0]
    batch = run.batch(Place(0, 0))
    target = method.final(batch.teacher.stages[-1])
    torch.testing.assert_close(method.classifier(target.mean((2, 3))), batch.teacher.logits)
    assert (target >= 0).all(), "as the projector ends in a ReLU"
    maps = batch.student.stages[-1]
    height = min(maps.shape[2], target.shape[2])
    ours, theirs = (F.adaptive_avg_pool2d(x, height) for x in (maps, target))
    loss = run.losses(Place(0, 0), batch)["simkd"].value
    torch.testing.assert_close(loss, (method.projector(ours) - theirs).square().mean())

    run.step(Place(0, 0))
    deployed = method.deploy(run.student).eval()
    with torch.no_grad():
        before = logits_of(deployed(batch.images))
        for parameter in run.student.head.parameters():
            parameter.normal_()
        assert torch.equal(logits_of(deployed(batch.images)), before), "the student's own classifier has no say"
        maps = run.student(batch.images, Taps((-1,))).stages[0]
        side = network(batch.images, Taps((-1,))).stages[0].shape[2]
        pooled = F.adaptive_avg_pool2d(maps, side) if maps.shape[2] > side else maps
        wanted = network.head(method.projector(pooled).mean((2, 3)))
    torch.testing.assert_close(before, wanted)
    held = {id(parameter) for parameter in deployed.parameters()}
    assert {id(p) for p in (*method.projector.parameters(), *run.student.parameters())} < held
    assert sum(p.numel() for p in deployed.parameters()) > sum(p.numel() for p in run.student.parameters())


def test_pitfall_11_what_is_deployed_is_what_is_scored(cohort: Cohort) -> None:
    for name, lane in cohort.lanes.items():
        assert (lane.deployed() is lane.student) == (name != "simkd")
        scored = cohort.test.predict(lane.method.deploy(lane.student))
        assert lane.history[-1].test_accuracy == scored.accuracy, name
    simkd = cohort.lanes["simkd"]
    alone = cohort.test.predict(simkd.student)
    assert not torch.equal(alone.confidence, cohort.test.predict(simkd.deployed()).confidence)
    assert simkd.history[-1].train_accuracy is None, "the student's own logits say nothing of it"


def test_pitfall_11_without_ce_and_kd_simkd_leaves_the_students_classifier() -> None:
    run = start(SimKD).run
    batch = run.batch(Place(0, 0))
    published = SimKD.published
    batch = replace(batch, protocol=LossProtocol(published.ce, published.kd, 4.0))
    total(run.losses(Place(0, 0), batch)).backward()  # type: ignore[no-untyped-call]
    assert not any(p.grad is not None and p.grad.any() for p in run.student.head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in run.student.parameters())


# --- 12: sizes of maps ------------------------------------------------------------------------------------------------

SIZES = [(ours, theirs) for ours in range(1, 10) for theirs in range(1, 10)]


class Given(Network):
    """A teacher of which only the classifier is looked at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage_count, self.embedding_dim, self.head = 4, width, nn.Linear(width, CLASSES)


def info(name: str, widths: tuple[int, ...], side: int) -> NetworkInfo:
    """Return shapes of a network whose maps behind the stem all have one size."""
    stages = tuple(
        StageShape((width, 16 if at == 0 else side, 16 if at == 0 else side)) for at, width in enumerate(widths)
    )
    return NetworkInfo(name, stages, widths[-1], CLASSES, 1)


def said(network: NetworkInfo, taps: Taps, seed: int) -> Features:
    draws = torch.Generator().manual_seed(seed)
    taps = taps.resolve(len(network.stages))
    assert taps.stages != "all"
    maps = tuple(torch.randn(BATCH, *network.stages[i].dims, generator=draws) for i in taps.stages)
    embedding = torch.randn(BATCH, network.embedding, generator=draws) if taps.embedding else None
    logits = torch.randn(BATCH, CLASSES, generator=draws)
    return Features(logits, embedding, maps, maps if taps.pre_activation else (), taps.stages)


def outcome(kind: type[AnyMethod], ours: int, theirs: int) -> str:
    """Return why a method declines maps of these sides, or nothing if its losses and gradients are sound."""
    image = StageShape((3, 16, 16))
    pair = PairInfo("p", info("ours", (4, 5, 6, 7), ours), (info("theirs", (4, 6, 8, 10), theirs),), image)
    if reason := kind.supports(pair):
        return reason
    context = Context(pair, TRAIN_SIZE, 4, 4, BATCH, seed=0)
    torch.manual_seed(0)
    try:
        method = kind(kind.options_type(), context).train()
    except Unsupported as error:
        return str(error)
    labels = torch.arange(TRAIN_SIZE) % CLASSES
    method.prepare(Setup(labels, (Given(pair.teachers[0].embedding),)))
    for phase in method.phases():
        student = said(pair.student, method.taps.student, 0)
        leaves: list[Tensor] = []
        student = mapped(student, partial(leaf_of, leaves, torch.clone, False))
        teacher = said(pair.teachers[0], method.taps.teachers, 1)
        views = tuple(Viewed(torch.empty(BATCH, *image.dims), student, (teacher,)) for _ in method.views)
        batch = Batch(
            images=torch.empty(BATCH, *image.dims),
            labels=labels[:BATCH],
            index=torch.arange(BATCH),
            student=student,
            teachers=(teacher,),
            protocol=LossProtocol(0.5, 0.5, 4.0),
            views=views,
        )
        loss = total((phase.losses or method.losses)(batch))
        assert loss.isfinite()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(x.grad is None or x.grad.isfinite().all() for x in leaves)
    return ""


@pytest.mark.parametrize("kind", [FitNet, AB], ids=lambda kind: kind.name)
def test_pitfall_12_regressors_fit_or_the_pair_is_declined(kind: type[AnyMethod]) -> None:
    for ours, theirs in SIZES:
        reason = outcome(kind, ours, theirs)
        fits = ours >= theirs or 2 * ours == theirs
        # FitNet needs one stage that fits, and its stem does; the stage of the hint is then refused by name.
        assert (reason == "") == fits, (ours, theirs, reason)
        assert fits or "smaller" in reason


def test_pitfall_12_the_regressor_is_that_of_the_reference() -> None:
    for ours, theirs in ((8, 4), (2, 1), (4, 8), (1, 2), (8, 8), (8, 7), (8, 3), (1, 1)):
        pair = PairInfo("p", info("s", (4, 5, 6), ours), (info("t", (4, 6, 8), theirs),), StageShape((3, 16, 16)))
        method: Any = FitNet(FitNet.options_type(), Context(pair, 32, 4, 4, BATCH, seed=0))
        conv = method.regressor.conv
        if ours == 2 * theirs:
            wanted: tuple[type[nn.Module], int, int, int] = (nn.Conv2d, 3, 2, 1)
        elif 2 * ours == theirs:
            wanted = (nn.ConvTranspose2d, 4, 2, 1)
        else:
            wanted = (nn.Conv2d, 1 + ours - theirs, 1, 0)
        assert (type(conv), conv.kernel_size[0], conv.stride[0], conv.padding[0]) == wanted, (ours, theirs)
        assert method.regressor(torch.randn(2, 6, ours, ours)).shape == (2, 8, theirs, theirs)


@each_taught
def test_pitfall_12_no_method_crashes_on_other_sizes(kind: type[AnyMethod]) -> None:
    for sides in ((8, 8), (8, 4), (4, 8), (8, 7), (7, 8), (8, 3), (3, 8), (1, 4), (4, 1), (1, 1)):
        reason = outcome(kind, *sides)
        assert reason == "" or kind.taps.student.stages != () or "stage" in reason or "map" in reason, sides
        if kind.name in {"vanilla_kd", "dkd", "crd", "rkd", "pkt", "cc", "sp", "vid", "simkd", "reviewkd", "sskd"}:
            assert reason == "", sides


# --- 13: weights and the means they belong to -------------------------------------------------------------------------

DOUBLED = torch.arange(BATCH).repeat(2)
# Rows of length 1, or that sum to 1, get twice as long: entries are smaller, and the mean falls with the batch.
FALLING = {"sp": 0.5, "pkt": 0.5}


@each_taught
def test_pitfall_13_a_batch_repeated_twice_has_the_same_loss(kind: type[AnyMethod]) -> None:
    """A sum in place of a mean would double; SP and PKT halve, as the references' do."""
    options = {"ss_ratio": 1.0} if kind is SSKD else {}
    run = start(kind, **options).run
    for place in run.places():
        batch = run.batch(place)
        once = values(run.losses(place, batch))
        twice = values(run.losses(place, rows(batch, DOUBLED)))
        for name, value in once.items():
            # With twice as many images, each with an equal, there are twice as many to take a turned one for.
            more = math.log(2) if name == "matching" else 0.0
            if name not in {"cc", "rkd"}:  # whose pairs are not those of a repeated batch: see below
                assert twice[name] == pytest.approx(FALLING.get(name, 1.0) * value + more, rel=1e-3), name


def test_pitfall_13_means_over_pairs_and_triples_of_images() -> None:
    run = start(RKD, distance_weight=0.0, angle_weight=1.0).run
    batch = run.batch(Place(0, 0))
    angle = values(run.losses(Place(0, 0), batch))["rkd"]
    # Each triple counts eight times among eight times as many; an image and its copy form no angle.
    assert values(run.losses(Place(0, 0), rows(batch, DOUBLED)))["rkd"] == pytest.approx(angle, rel=1e-3)

    run = start(RKD, distance_weight=1.0, angle_weight=0.0).run
    parts = []
    for embedding in (batch.student.embedding, batch.teacher.embedding):
        assert embedding is not None
        d = torch.cdist(embedding.double(), embedding.double())
        parts.append(d / d[d > 0].mean())
    wanted = F.smooth_l1_loss(*parts).item()  # over all N^2 pairs, those of an image with itself included
    assert values(run.losses(Place(0, 0), batch))["rkd"] == pytest.approx(wanted, rel=1e-3)

    run = start(CC).run
    batch = both(run.batch(Place(0, 0)), all_equal, all_equal)
    once, twice = (values(run.losses(Place(0, 0), b))["cc"] for b in (batch, rows(batch, DOUBLED)))
    assert twice == pytest.approx(once, rel=1e-4)


def hint_by_hand(run: Run, batch: Batch) -> float:
    method: Any = run.method
    gap = method.regressor(batch.student.stages[0]) - batch.teacher.stages[0]
    return gap.square().sum().item() / gap.numel()


def at_by_hand(_: Run, batch: Batch) -> float:
    found = 0.0
    for ours, theirs in zip(batch.student.stages, batch.teacher.stages, strict=True):
        q = [x.double().square().sum(1).flatten(1) for x in (ours, theirs)]
        q = [x / x.norm(dim=1, keepdim=True) for x in q]
        found += (q[0] - q[1]).square().sum().item() / q[0].numel()
    return found


def sp_by_hand(_: Run, batch: Batch) -> float:
    g = [x.stages[0].double().flatten(1) for x in (batch.student, batch.teacher)]
    g = [x @ x.T for x in g]
    g = [x / x.norm(dim=1, keepdim=True) for x in g]
    return (g[0] - g[1]).square().sum().item() / BATCH**2


def pkt_by_hand(_: Run, batch: Batch) -> float:
    p = [x.embedding.double() for x in (batch.student, batch.teacher) if x.embedding is not None]
    p = [x / (x.norm(dim=1, keepdim=True) + 1e-7) for x in p]
    p = [(x @ x.T + 1) / 2 for x in p]
    ours, theirs = (x / x.sum(1, keepdim=True) for x in p)
    return (theirs * ((theirs + 1e-7) / (ours + 1e-7)).log()).sum().item() / BATCH**2


@pytest.mark.parametrize(
    ("kind", "term", "weight", "by_hand"),
    [
        (FitNet, "hint", 100.0, hint_by_hand),
        (AT, "at", 1000.0, at_by_hand),
        (SP, "sp", 3000.0, sp_by_hand),
        (PKT, "pkt", 30000.0, pkt_by_hand),
    ],
    ids=["fitnet", "at", "sp", "pkt"],
)
def test_pitfall_13_large_weights_go_with_their_mean(
    kind: type[AnyMethod], term: str, weight: float, by_hand: Callable[[Run, Batch], float]
) -> None:
    run = start(kind).run
    batch = run.batch(Place(0, 0))
    found = run.losses(Place(0, 0), batch)[term]
    assert found.value.item() == pytest.approx(by_hand(run, batch), rel=1e-3)
    assert found.weight == weight


PUBLISHED: dict[str, dict[str, object]] = {
    "vanilla_kd": {"ce": 0.1, "kd": 0.9},
    "fitnet": {"hint": 100.0},
    "at": {"at": 1000.0},
    "sp": {"sp": 3000.0},
    "cc": {"cc": 0.02},
    "vid": {"vid": 1.0},
    "rkd": {"rkd": 1.0},
    "pkt": {"pkt": 30000.0},
    "ab": {},
    "ft": {"ft": 200.0},
    "nst": {"nst": 50.0},
    "crd": {"crd": 0.8},
    "dkd": {"dkd": 1.0, "kd": None},
    "reviewkd": {"hcl": 1.0},
    "simkd": {"ce": 0.0, "simkd": 1.0},
    "sskd": {"ce": 0.1, "kd": 0.9, "tf": 2.7, "ss": 10.0},
}


@each_taught
def test_pitfall_13_published_weights_under_the_fields_protocol(kind: type[AnyMethod]) -> None:
    anchor = load_anchor("crd", KNOWN.anchors.as_mapping())
    options = resolve_options(kind, anchor, PAIR, []).model_dump()
    run = start(kind, epochs=240, **options).run
    batch = run.batch(main_place(run))
    protocol = replace(batch.protocol, ce_weight=kind.published.ce, kd_weight=kind.published.kd)
    losses = run.losses(main_place(run), replace(batch, protocol=protocol, epoch=200))
    wanted = {"ce": 1.0, "kd": 0.0, **PUBLISHED[kind.name]}
    assert {name: term.weight for name, term in losses.items()} == {k: v for k, v in wanted.items() if v is not None}
