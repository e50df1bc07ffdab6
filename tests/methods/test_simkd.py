"""SimKD: projector and loss against slow re-computations, the teacher's parts, what is deployed, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdbench.backbones.base import Network
from kdbench.errors import Unsupported
from kdbench.evaluation import logits_of
from kdbench.maps import pool_to
from kdbench.method import Setup, total, trainable
from kdbench.methods.simkd import Projector, SimKD, SimKDOptions, predict, simkd_loss
from kdbench.testing.bench import Bench, Place
from kdbench.types import Pair, StageShape, Taps

START = Place(0, 0)
# Teachers of every kind of tail; sides of student and teacher maps at 16x16 pixels are 4 against 4, 2 or 1.
TEACHERS = ["resnet14_w8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bench(teacher: str = "resnet14_w8", student: str = "resnet8_w4") -> Bench:
    return Bench(SimKD, Pair("test", student, (teacher,), "digits"))


def settle(network: nn.Module) -> nn.Module:
    """Give BN other than its initial weights and statistics, so that skipping or moving it is seen."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """Return (N,O,H,W) of (N,C,H,W) and weights (O,C): a 1x1 convolution."""
    return torch.stack([(x * row[:, None, None]).sum(1) for row in weight], 1)


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_projector() -> None:
    projector, x = Projector(5, 7, 3).double(), torch.randn(4, 5, 3, 3, dtype=torch.float64)
    assert projector.conv2.weight.shape == (2, 2, 3, 3)
    assert [name for name, _ in projector.named_parameters() if name.startswith("conv") and "bias" in name] == []
    h = normalised(mixed(x, projector.conv1.weight[:, :, 0, 0])).clamp(min=0)
    padded, kernel = torch.zeros(4, 2, 5, 5, dtype=torch.float64), projector.conv2.weight
    padded[:, :, 1:4, 1:4] = h
    out = torch.zeros(4, 2, 3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            out = out + mixed(padded[:, :, i : i + 3, j : j + 3], kernel[:, :, i, j])
    out = normalised(out).clamp(min=0)
    out = normalised(mixed(out, projector.conv3.weight[:, :, 0, 0])).clamp(min=0)
    torch.testing.assert_close(projector(x), out, rtol=1e-9, atol=1e-9)


def test_loss_is_the_mean_over_all_entries_and_the_teacher_a_constant() -> None:
    ours, theirs = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = simkd_loss(ours, theirs)
    pairs = zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True)
    assert loss.item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / ours.numel(), rel=1e-5)
    loss.backward()
    assert theirs.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dead_channels_and_equal_images(dtype: torch.dtype) -> None:
    projector = Projector(3, 4, 2)
    maps = torch.zeros(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    loss = simkd_loss(projector(maps), torch.full((2, 4, 4, 4), 500.0, dtype=dtype))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (maps, *projector.parameters()))


@pytest.mark.parametrize("name", TEACHERS)
def test_the_target_is_the_map_the_teacher_pools(name: str) -> None:
    one = bench(name)
    teacher = settle(copy.deepcopy(one.teachers[0]))
    method = one.build().train()
    method.prepare(Setup(one.labels, (teacher,)))
    images = torch.rand(3, *one.image.dims)
    with torch.no_grad():
        features = teacher(images, Taps((-1,)))
        logits = predict(method.final(features.stages[0]), method.classifier)
    torch.testing.assert_close(logits, features.logits)


@pytest.mark.parametrize(("name", "student"), [("vgg8", "resnet8_w4"), ("resnet14_w8", "vgg8"), ("wrn_16_1", "vgg8")])
def test_the_larger_map_is_pooled(name: str, student: str) -> None:
    run = bench(name, student).start()
    batch = run.batch(START)
    ours, theirs = batch.student.stages[-1], run.method.final(batch.teacher.stages[-1])
    side = min(ours.shape[2], theirs.shape[2])
    assert ours.shape[2] != theirs.shape[2]
    expected = simkd_loss(run.method.projector(pool_to(ours, side)), pool_to(theirs, side))
    torch.testing.assert_close(run.losses(START, batch)["simkd"].value, expected)


@pytest.mark.parametrize("name", TEACHERS)
def test_what_is_deployed(name: str) -> None:
    """Student, pooling, projector and the teacher's classifier, and none of the teacher's other weights."""
    run = bench(name).start()
    teacher = run.bench.teachers[0]
    run.step(START)
    module, images = run.method.deploy(run.student), torch.rand(3, *run.bench.image.dims)
    parts = (run.student, run.method.projector, teacher.head)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for part in parts for p in part.parameters())
    module.eval()
    with torch.no_grad():
        maps = run.student(images, Taps((-1,))).stages[0]
        side = run.bench.info.teachers[0].stages[-1].height
        maps = pool_to(maps, side) if maps.shape[2] > side else maps
        expected = teacher.head(run.method.projector(maps).mean((2, 3)))
        torch.testing.assert_close(logits_of(module(images)), expected)


def test_deploying_leaves_modes_and_state_alone() -> None:
    run = bench("wrn_16_1").start()
    parts = (*run.student.modules(), *run.method.modules())
    modes = [part.training for part in parts]
    state = copy.deepcopy({**run.student.state_dict(), **run.method.state_dict()})
    module = run.method.deploy(run.student)
    assert [part.training for part in parts] == modes
    with torch.no_grad():
        module.eval()(torch.rand(2, *run.bench.image.dims))
    after = {**run.student.state_dict(), **run.method.state_dict()}
    assert all(torch.equal(after[key], value) for key, value in state.items())


def test_the_teachers_parts_are_frozen_copies() -> None:
    run = bench("wrn_16_1").start()
    method, teacher = run.method, copy.deepcopy(run.bench.teachers[0]).requires_grad_()
    method.prepare(Setup(run.bench.labels, (teacher,)))
    assert {id(p) for p in trainable(method)} == {id(p) for p in method.projector.parameters()}
    places = {t.data_ptr() for t in teacher.state_dict().values()}
    assert places.isdisjoint({t.data_ptr() for t in method.state_dict().values()})
    assert all(p.requires_grad for p in teacher.parameters())
    method.train()
    assert not any(part.training for top in (method.final, method.classifier) for part in top.modules())
    before = copy.deepcopy(method.final.state_dict())
    run.step(START)
    assert all(torch.equal(value, before[key]) for key, value in method.final.state_dict().items())
    assert {"final.0.running_mean", "classifier.0.weight"} <= set(method.state_dict())


def test_state_and_copies_carry_the_classifier() -> None:
    """A resumed run has it from the checkpoint, an average of weights from its copy of the method."""
    one = bench("wrn_16_1")
    run, other = one.start(), one.start()
    run.method.prepare(Setup(one.labels, (settle(copy.deepcopy(one.teachers[0])),)))
    other.student.load_state_dict(run.student.state_dict())
    other.method.load_state_dict(run.method.state_dict())
    images = torch.rand(2, *one.image.dims)
    copies = (run.method, other.method, copy.deepcopy(run.method))
    with torch.no_grad():
        first, *rest = (method.deploy(run.student).eval()(images) for method in copies)
    assert all(torch.equal(first, logits) for logits in rest)


@pytest.mark.parametrize(("weights", "learns"), [((0.0, 0.0), False), ((0.65, 0.35), True)])
def test_only_ce_and_kd_reach_the_students_own_classifier(weights: tuple[float, float], learns: bool) -> None:
    run = bench().start()
    batch = run.batch(START)
    batch = replace(batch, protocol=replace(batch.protocol, ce_weight=weights[0], kd_weight=weights[1]))
    terms = run.losses(START, batch)
    assert [term.weight for term in terms.values()] == [*weights, 1.0]
    total(terms).backward()
    assert bool(run.student.head.weight.grad.any()) is learns
    assert run.student.conv1.weight.grad.any()


def test_published_values() -> None:
    assert SimKDOptions() == SimKDOptions(weight=1.0, factor=2)
    assert (SimKD.published.ce, SimKD.published.kd) == (0.0, 0.0)
    assert SimKD.recommended("fair_baseline", Pair("p", "vgg8", ("vgg13",), "cifar100")) == {}
    for factor in (0, 9):
        with pytest.raises(ValueError, match="factor"):
            SimKDOptions(factor=factor)


def test_refusals() -> None:
    info = bench().info
    assert SimKD.supports(info) is None

    def with_last(shape: tuple[int, ...]) -> str | None:
        student = replace(info.student, stages=(*info.student.stages[:-1], StageShape(shape)))
        return SimKD.supports(replace(info, student=student))

    assert "has tokens" in str(with_last((4, 8)))
    assert "pooled to squares" in str(with_last((16, 8, 6)))
    teacher = replace(info.teachers[0], embedding=4)
    context = bench().context
    with pytest.raises(Unsupported, match="4 channels cannot be divided by factor 8"):
        SimKD(SimKDOptions(factor=8), replace(context, pair=replace(info, teachers=(teacher,))))
    with pytest.raises(Unsupported, match="two images or more"):
        SimKD(SimKDOptions(), replace(bench("vgg8", "MobileNetV2").context, batch_size=1))


def test_a_teacher_whose_tail_is_not_known_is_declined() -> None:
    class Strange(Network):
        head = nn.Identity()

        def embed(self, x: Tensor) -> Tensor:
            return x.amax(dim=(2, 3))

    with pytest.raises(Unsupported, match="cannot be taken over: Strange does not say"):
        bench().build().prepare(Setup(torch.zeros(0, dtype=torch.int64), (Strange(),)))
