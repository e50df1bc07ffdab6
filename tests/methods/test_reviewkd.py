"""ReviewKD: fusion and loss against slow re-computations, what is compared with what, ramp, weights, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.losses import warmup_factor
from kdbench.method import trainable
from kdbench.methods.reviewkd import Review, ReviewKD, ReviewKDOptions, hcl, hcl_stage
from kdbench.testing.bench import STEPS, Bench, Place
from kdbench.types import Pair, StageShape

START = Place(0, 0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bench(student: str = "resnet8_w4", *teachers: str) -> Bench:
    return Bench(ReviewKD, Pair("test", student, teachers or ("resnet14_w8",), "digits"))


def maps(*shapes: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(3, *shape, dtype=dtype) for shape in shapes]


def pooled(image: Tensor, side: int) -> Tensor:
    """Return (H, W) averaged over side x side cells, cell by cell."""
    height, width = image.shape
    out = torch.zeros(side, side, dtype=image.dtype)
    for i in range(side):
        for j in range(side):
            rows = slice(i * height // side, -(-(i + 1) * height // side))
            columns = slice(j * width // side, -(-(j + 1) * width // side))
            out[i, j] = image[rows, columns].mean()
    return out


def slow_hcl_stage(student: Tensor, teacher: Tensor) -> float:
    def mse(side: int | None) -> float:
        errors = []
        for ours, theirs in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
            a, b = (ours, theirs) if side is None else (pooled(ours, side), pooled(theirs, side))
            errors += (a - b).square().flatten().tolist()
        return sum(errors) / len(errors)

    terms = [(1.0, mse(None))]
    for side in (4, 2, 1):
        if side < student.shape[2]:
            terms.append((terms[-1][0] / 2, mse(side)))
    return sum(weight * value for weight, value in terms) / sum(weight for weight, _ in terms)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8])
def test_loss_of_a_stage(side: int) -> None:
    (student,), (teacher,) = maps((2, side, side)), maps((2, side, side))
    assert hcl_stage(student, teacher).item() == pytest.approx(slow_hcl_stage(student, teacher), rel=1e-12)


def test_stages_are_summed() -> None:
    student, teacher = maps((2, 8, 8), (3, 1, 1)), maps((2, 8, 8), (3, 1, 1))
    each = [hcl_stage(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    assert torch.equal(hcl(student, teacher), sum(each))


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """Return (N,O,H,W) of (N,C,H,W) and weights (O,C): a 1x1 convolution."""
    return torch.stack([(x * row[:, None, None]).sum(1) for row in weight], 1)


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()


def at_size(x: Tensor, size: tuple[int, int]) -> Tensor:
    out = torch.empty(*x.shape[:2], *size, dtype=x.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            out[:, :, i, j] = x[:, :, i * x.shape[2] // size[0], j * x.shape[3] // size[1]]
    return out


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Return a 3x3 convolution with zero padding, offset by offset."""
    height, width = x.shape[2:]
    padded = torch.zeros(*x.shape[:2], height + 2, width + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    out = torch.zeros(())
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + height, j : j + width]
            out = out + mixed(window, weight[:, :, i, j])
    return out


def slow_review(review: Review, student: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
    outputs: list[Tensor] = []
    carried = torch.empty(0)
    for i in reversed(range(len(student))):
        abf = review.abf[i]
        r = normalised(mixed(student[i], abf.conv1.weight[:, :, 0, 0]))
        if i < len(student) - 1:
            y = at_size(carried, tuple(r.shape[2:]))
            logits = mixed(torch.cat([r, y], 1), abf.att.weight[:, :, 0, 0])
            gate = 1 / (1 + (-logits - abf.att.bias[:, None, None]).exp())
            r = r * gate[:, 0:1] + y * gate[:, 1:2]
        carried = at_size(r, sizes[i])
        outputs.insert(0, normalised(convolved(carried, abf.conv2.weight)))
    return outputs


def test_fusion() -> None:
    """Sizes that neither agree nor divide: what is passed on must have the teacher's size already."""
    ours, theirs = [(3, 8, 8), (5, 4, 4), (6, 2, 2), (6, 1, 1)], [(4, 8, 8), (5, 2, 2), (6, 3, 3), (8, 1, 1)]
    review = Review([StageShape(s) for s in ours], [StageShape(s) for s in theirs]).double()
    student = maps(*ours)
    with torch.no_grad():
        fused, expected = review(student), slow_review(review, student, [s[1:] for s in theirs])
    assert [tuple(one.shape[1:]) for one in fused] == theirs
    for one, other in zip(fused, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_deepest_stage_has_no_gate_and_the_width_is_limited() -> None:
    review = Review([StageShape((3, 4, 4)), StageShape((600, 1, 1))], [StageShape((2, 4, 4)), StageShape((7, 1, 1))])
    assert [abf.att is None for abf in review.abf] == [False, True]
    assert review.abf[0].conv1.out_channels == 512


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dead_channels_and_equal_images(dtype: torch.dtype) -> None:
    shapes = [(3, 4, 4), (4, 1, 1)]
    review = Review([StageShape(s) for s in shapes], [StageShape(s) for s in shapes])
    student = [torch.zeros(2, *shapes[0], dtype=dtype), torch.ones(2, *shapes[1], dtype=dtype)]
    for one in student:
        one.requires_grad_()
    teacher = [torch.full((2, *shape), 500.0, dtype=dtype) for shape in shapes]
    loss = hcl(review(student), teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    leaves = [*student, *review.parameters()]
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_squares_do_not_overflow_in_half_precision() -> None:
    maps_of_300 = torch.full((2, 3, 4, 4), 300.0, dtype=torch.float16)
    assert hcl_stage(maps_of_300, torch.zeros_like(maps_of_300)).item() == 300.0**2


def test_the_teacher_is_a_constant() -> None:
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    hcl_stage(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("teacher", ["resnet14_w8", "wrn_16_1", "ShuffleV2"])
def test_students_maps_are_compared_with_the_teachers_pre_activations(teacher: str) -> None:
    run = bench("resnet8_w4", teacher).start()
    batch = run.batch(START)
    theirs = run.bench.teachers[0](batch.images, run.method.taps.teachers)
    expected = [*theirs.pre_stages[1:], theirs.embedding[:, :, None, None]]
    assert min(one.min().item() for one in expected[:-1]) < 0  # not behind a ReLU
    ours = [*batch.student.stages, batch.student.embedding[:, :, None, None]]
    assert [tuple(one.shape[1:]) for one in ours] == [s.dims for s in run.bench.info.student.stages[1:]] + [(16, 1, 1)]
    assert len(ours) == len(run.method.review.abf) == 4
    torch.testing.assert_close(run.losses(START, batch)["hcl"].value, hcl(run.method.review(ours), expected))


def test_all_weights_learn_and_statistics_move_once() -> None:
    run = bench().start()
    run.losses(START, run.batch(START))["hcl"].value.backward()
    assert [name for name, p in run.method.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(trainable(run.method)) == len(list(run.method.parameters()))
    counts = {int(value) for name, value in run.method.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {1}
    (hcl_value,) = (term.value for name, term in run.losses(START, run.batch(START)).items() if name == "hcl")
    hcl_value.backward()
    assert all(p.grad is not None for name, p in run.student.named_parameters() if not name.startswith("fc"))


def test_a_further_teacher_may_have_fewer_stages() -> None:
    run = bench("MobileNetV2", "vgg8", "resnet14_w8").start()
    assert run.losses(START, run.batch(START))["hcl"].value.isfinite()


def test_the_first_epoch_has_a_twentieth_and_the_twentieth_all() -> None:
    assert [warmup_factor(epoch, 20.0) for epoch in (0, 9, 19, 239)] == [0.05, 0.5, 1.0, 1.0]
    assert warmup_factor(0, 0.0) == 1.0


def test_the_ramp_is_a_share_of_the_epochs() -> None:
    one = bench()
    context = replace(one.context, epochs=12)
    method = ReviewKD(ReviewKDOptions(weight=4.0, warmup=0.25), context)
    batch = one.start().batch(Place(0, STEPS))  # second epoch
    terms = method.losses(batch)
    assert terms["hcl"].weight == pytest.approx(4.0 * 2 / 3)
    assert [terms[name].weight for name in ("ce", "kd")] == [batch.protocol.ce_weight, batch.protocol.kd_weight]


def test_published_and_recommended_values() -> None:
    assert ReviewKDOptions() == ReviewKDOptions(weight=1.0, warmup=20 / 240)
    assert (ReviewKD.published.ce, ReviewKD.published.kd) == (1.0, 0.0)

    def crd(teacher: str, student: str) -> object:
        return ReviewKD.recommended("crd", Pair("p", student, (teacher,), "cifar100"))

    assert crd("resnet32x4", "ShuffleV2") == {"weight": 8.0}
    assert crd("resnet56", "resnet20") == {"weight": 0.6}
    assert crd("vgg13", "vgg8") == {}
    assert ReviewKD.recommended("fair_baseline", Pair("p", "resnet20", ("resnet56",), "cifar100")) == {"weight": 1.0}


def test_refusals() -> None:
    assert ReviewKD.supports(bench().info) is None
    reason = ReviewKD.supports(bench("resnet8_w4", "vgg8").info)
    assert reason == "stages are compared one by one, and resnet8_w4 has 3 behind its stem, vgg8 has 4"
    info = bench().info
    tokens = replace(info, student=replace(info.student, stages=(StageShape((4, 8)),) * 4))
    assert "has tokens" in str(ReviewKD.supports(tokens))
    with pytest.raises(Unsupported, match="two images or more"):
        ReviewKD(ReviewKDOptions(), replace(bench().context, batch_size=1))
