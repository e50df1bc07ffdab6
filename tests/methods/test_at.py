"""AT: against loops, its invariances, dead channels, and pairs without attention."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdbench.methods.at import AT, ATOptions, at_loss, attention
from kdbench.testing.bench import Bench, Place
from kdbench.types import LossWeights, NetworkInfo, Pair, PairInfo, StageShape

Dims = tuple[int, ...]


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def pair(student: list[Dims], teacher: list[Dims]) -> PairInfo:
    networks = [
        NetworkInfo(name, tuple(map(StageShape, stages)), embedding=4, classes=3, parameters=1)
        for name, stages in (("student", student), ("teacher", teacher))
    ]
    return PairInfo("toy", networks[0], (networks[1],), StageShape((3, 8, 8)))


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_against_loops(p: int) -> None:
    student, teacher = maps(2, 3, 2, 2), maps(2, 4, 2, 2, seed=1)

    def unit(x: Tensor, sample: int) -> list[float]:
        channels = x.shape[1]
        raw = [
            sum(x[sample, c, h, w].item() ** p for c in range(channels)) / channels for h in range(2) for w in range(2)
        ]
        length = sum(value**2 for value in raw) ** 0.5
        return [value / length for value in raw]

    total = 0.0
    for sample in range(2):
        total += sum((a - b) ** 2 for a, b in zip(unit(student, sample), unit(teacher, sample), strict=True))
    assert at_loss(student, teacher, p=p).item() == pytest.approx(total / 2 / 4, rel=1e-12)


def test_maps_are_pooled_before_they_are_squared() -> None:
    # Neighbours of opposite sign cancel: the only attention left is at the upper left.
    student = torch.tensor([[[[1.0, 1.0, 5.0, -5.0], [1.0, 1.0, -5.0, 5.0], *[[0.0] * 4] * 2]]])
    torch.testing.assert_close(
        at_loss(student, torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]]), p=2), torch.tensor(0.0), rtol=0, atol=1e-12
    )


def test_scale_sign_and_order_of_channels_do_not_count() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 5, 2, 2, seed=1)
    value = at_loss(student, teacher, p=2)
    torch.testing.assert_close(at_loss(-7 * student, teacher.flip(1), p=2), value)
    assert at_loss(student, 3 * student, p=2).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_gradient(p: int) -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: at_loss(x, teacher, p=p), student)
    at_loss(student, teacher, p=p).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e-4])
def test_dead_and_tiny_maps_have_finite_gradients(scale: float, p: int) -> None:
    student = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    student[0] *= scale
    student[1, 0] *= scale
    student.requires_grad_()
    teacher = torch.zeros(3, 2, 4, 4)
    teacher[0] = 1.0
    loss = at_loss(student, teacher, p=p)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * maps(2, 3, 4, 4, seed=seed).detach().to(dtype) for seed in (0, 1))
    loss = at_loss(student, teacher, p=2)
    assert loss.dtype == attention(student, 2).dtype == torch.float32
    torch.testing.assert_close(loss.double(), at_loss(student.double(), teacher.double(), p=2), rtol=1e-5, atol=0)


def test_terms_weights_and_stages() -> None:
    run = Bench(AT).start()
    batch = run.batch(Place(0, 0))
    losses = run.losses(Place(0, 0), batch)
    assert {name: term.weight for name, term in losses.items()} == {"ce": 0.65, "kd": 0.35, "at": 0.1}
    assert batch.student.indices == batch.teacher.indices == (1, 2, 3)  # all but the stem
    expected = sum(at_loss(s, t, p=2) for s, t in zip(batch.student.stages, batch.teacher.stages, strict=True))
    torch.testing.assert_close(losses["at"].value, torch.as_tensor(expected))


def test_published_and_recommended_values() -> None:
    assert (ATOptions().weight, ATOptions().p) == (1000.0, 2)
    assert AT.published == LossWeights(ce=1.0, kd=0.0)
    known = Pair("p", "resnet20", ("resnet56",), "cifar100")
    assert AT.recommended("crd", known) == {}
    assert AT.recommended("fair_baseline", known) == {"weight": 0.1}
    for wrong in ({"weight": -1}, {"p": 0}, {"p": 1.5}):
        with pytest.raises(ValidationError):
            ATOptions.model_validate(wrong)


def test_what_is_declined() -> None:
    stem = (4, 8, 8)
    assert AT.supports(pair([stem, (4, 4, 4)], [stem, (6, 8, 8)])) is None
    assert "all maps are 1x1" in (AT.supports(pair([stem, (4, 1, 1)], [stem, (6, 4, 4)])) or "")
    assert AT.supports(pair([stem, (4, 4, 4), (4, 1, 1)], [stem, (6, 8, 8), (6, 4, 4)])) is None
    assert "one by one" in (AT.supports(pair([stem, (4, 4, 4)], [stem, (6, 8, 8), (6, 4, 4)])) or "")
    assert AT.supports(pair([(16, 8)] * 2, [stem] * 2)) == "student has tokens (16x8), no feature maps"
