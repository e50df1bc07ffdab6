"""NST: both forms of the MMD against loops over channels, their size, and channels that are dead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.methods.nst import NST, NSTOptions, nst_loss
from kdbench.testing.bench import Bench, Place
from kdbench.types import LossWeights, NetworkInfo, Pair, PairInfo, StageShape

Dims = tuple[int, ...]
# Student and teacher maps: few channels on many positions, many on few, pooling of either, one channel.
SHAPES = [
    ((2, 3, 4, 4), (2, 2, 4, 4)),
    ((2, 9, 2, 2), (2, 7, 2, 2)),
    ((2, 3, 6, 6), (2, 8, 3, 3)),
    ((2, 8, 2, 2), (2, 3, 5, 5)),
    ((2, 1, 3, 3), (2, 1, 3, 3)),
    ((2, 5, 1, 1), (2, 3, 1, 1)),
]


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def pair(student: list[Dims], teacher: list[Dims]) -> PairInfo:
    networks = [
        NetworkInfo(name, tuple(map(StageShape, stages)), embedding=4, classes=3, parameters=1)
        for name, stages in (("student", student), ("teacher", teacher))
    ]
    return PairInfo("toy", networks[0], (networks[1],), StageShape((3, 8, 8)))


def by_loops(student: Tensor, teacher: Tensor) -> float:
    side = min(student.shape[2], teacher.shape[2])
    s, t = (F.normalize(F.adaptive_avg_pool2d(x.detach(), side).flatten(2), dim=2) for x in (student, teacher))

    def mean_kernel(one: Tensor, other: Tensor) -> float:
        values = [float(a @ b) ** 2 for xs, ys in zip(one, other, strict=True) for a in xs for b in ys]
        return sum(values) / len(values)

    return mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)


@pytest.mark.parametrize(("ours", "theirs"), SHAPES, ids=str)
def test_against_loops(ours: Dims, theirs: Dims) -> None:
    student, teacher = maps(*ours), maps(*theirs, seed=1)
    loss = nst_loss(student, teacher)
    assert loss.item() == pytest.approx(by_loops(student, teacher), abs=1e-14)
    assert torch.autograd.gradcheck(lambda x: nst_loss(x, teacher), student)
    loss.backward()
    assert teacher.grad is None


def test_one_channel_by_hand() -> None:
    # Unit vectors (1, 0) and (0.6, 0.8): 1 + 1 - 2 * 0.36.
    student = torch.tensor([[[[5.0, 0.0]], [[5.0, 0.0]], [[-1.0, 0.0]]]])
    teacher = torch.tensor([[[[3.0, 4.0]]]])
    assert nst_loss(student, teacher).item() == pytest.approx(2 - 0.72, abs=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), SHAPES[:2], ids=str)
def test_scale_sign_and_order_of_channels_do_not_count(ours: Dims, theirs: Dims) -> None:
    student, teacher = maps(*ours), maps(*theirs, seed=1)
    torch.testing.assert_close(nst_loss(-2 * student.flip(1), 5 * teacher.flip(1)), nst_loss(student, teacher))
    assert nst_loss(student, -student).item() == pytest.approx(0, abs=1e-14)
    # Every channel twice is the same distribution.
    assert nst_loss(student.repeat(1, 2, 1, 1), student).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(("ours", "theirs"), SHAPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6])
def test_dead_and_tiny_channels_have_finite_gradients(ours: Dims, theirs: Dims, scale: float) -> None:
    student, teacher = maps(*ours).detach().float(), maps(*theirs, seed=1).detach().float()
    student[:, 0] *= scale
    student[1] *= scale
    teacher[:, 0] *= scale
    student.requires_grad_()
    loss = nst_loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if scale == 0:
        assert not student.grad[1].any()


class Largest(TorchDispatchMode):
    """Remember the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, out.numel() if isinstance(out, Tensor) else 0)
        return out


@pytest.mark.parametrize(("ours", "theirs", "side"), [(64, 128, 32), (256, 512, 4), (64, 64, 8)])
def test_nothing_is_made_that_is_much_larger_than_the_maps(ours: int, theirs: int, side: int) -> None:
    student = torch.empty(2, ours, side, side, device="meta", requires_grad=True)
    teacher = torch.empty(2, theirs, side, side, device="meta")
    with Largest() as largest:
        nst_loss(student, teacher).backward()
    assert largest.elements <= max(student.numel(), teacher.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * maps(2, 6, 2, 2, seed=seed).detach().to(dtype) for seed in (0, 1))
    loss = nst_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), nst_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-7)


def test_terms_weights_and_stages() -> None:
    run = Bench(NST).start()
    batch = run.batch(Place(0, 0))
    losses = run.losses(Place(0, 0), batch)
    assert {name: term.weight for name, term in losses.items()} == {"ce": 0.65, "kd": 0.35, "nst": 50.0}
    assert batch.student.indices == batch.teacher.indices == (1, 2, 3)  # all but the stem
    expected = sum(nst_loss(s, t) for s, t in zip(batch.student.stages, batch.teacher.stages, strict=True))
    torch.testing.assert_close(losses["nst"].value, torch.as_tensor(expected))


def test_published_and_recommended_values() -> None:
    assert NST.published == LossWeights(ce=1.0, kd=0.0)
    known = Pair("p", "resnet20", ("resnet56",), "cifar100")
    assert not NST.recommended("crd", known)
    assert not NST.recommended("fair_baseline", known)
    with pytest.raises(ValidationError):
        NSTOptions(weight=-1)


def test_what_is_declined() -> None:
    stem = (4, 8, 8)
    assert NST.supports(pair([stem, (4, 4, 4)], [stem, (6, 8, 8)])) is None
    assert "all maps are 1x1" in (NST.supports(pair([stem, (4, 1, 1)], [stem, (6, 4, 4)])) or "")
    assert "one by one" in (NST.supports(pair([stem, (4, 4, 4)], [stem, (6, 8, 8), (6, 4, 4)])) or "")
    assert NST.supports(pair([(16, 8)] * 2, [stem] * 2)) == "student has tokens (16x8), no feature maps"
