"""FitNet: the hint by hand, its regressor in the state, and where no regressor fits."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kdbench.errors import Unsupported
from kdbench.methods.fitnet import FitNet, FitNetOptions, hint_loss
from kdbench.testing.bench import Bench, Place
from kdbench.types import Context, LossWeights, NetworkInfo, Pair, PairInfo, StageShape, Taps

Dims = tuple[int, ...]
WIDE = [(4, 8, 8), (4, 8, 8), (6, 4, 4)]


def pair(student: list[Dims], *teachers: list[Dims]) -> PairInfo:
    def network(name: str, stages: list[Dims]) -> NetworkInfo:
        return NetworkInfo(name, tuple(map(StageShape, stages)), embedding=4, classes=3, parameters=1)

    made = tuple(network(f"teacher{i}", stages) for i, stages in enumerate(teachers, 1))
    return PairInfo("toy", network("student", student), made, StageShape((3, 8, 8)))


def build(info: PairInfo, *, batch_size: int = 4, **options: object) -> FitNet:
    context = Context(info, train_size=8, epochs=1, steps_per_epoch=2, batch_size=batch_size, seed=0)
    return FitNet(FitNetOptions.model_validate(options), context)


def test_the_hint_is_a_mean_over_all_elements() -> None:
    student = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 4.0]]]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[[[3.0, 2.0]]], [[[1.0, 1.0]]]], dtype=torch.float64, requires_grad=True)
    loss = hint_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx((4 + 0 + 1 + 9) / 4, abs=1e-15)
    expected = torch.tensor([[[[-1.0, 0.0]]], [[[-0.5, 1.5]]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision_is_float32_or_wider(dtype: torch.dtype) -> None:
    # Squared, these overflow float16, and their mean would be off by a percent in bfloat16.
    loss = hint_loss(torch.full((64, 1, 9, 9), 512.0, dtype=dtype), torch.zeros(64, 1, 9, 9, dtype=dtype))
    assert loss.dtype == torch.float32
    assert loss.item() == 512**2


def test_dead_features_have_a_finite_gradient() -> None:
    method = build(pair(WIDE, WIDE), stage=1)
    student = torch.zeros(4, 4, 8, 8, requires_grad=True)
    loss = hint_loss(method.regressor(student), torch.zeros(4, 4, 8, 8))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_terms_and_weights() -> None:
    run = Bench(FitNet).start()
    batch = run.batch(Place(0, 0))
    losses = run.losses(Place(0, 0), batch)
    assert {name: term.weight for name, term in losses.items()} == {"ce": 0.65, "kd": 0.35, "hint": 100.0}
    assert isinstance(run.method, FitNet)
    expected = (run.method.regressor(batch.student.stages[0]) - batch.teacher.stages[0]).square().mean()
    torch.testing.assert_close(losses["hint"].value, expected)
    assert batch.student.stages[0].shape[1:] == run.bench.info.student.stages[2].dims


def test_the_regressor_is_trained_and_in_the_state() -> None:
    run = Bench(FitNet).start()
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    run.step(Place(0, 0))
    after = run.method.state_dict()
    assert set(after) >= {f"regressor.{name}" for name in ("conv.weight", "conv.bias", "bn.weight", "bn.running_mean")}
    # The bias in front of BN has no gradient.
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed >= {f"regressor.{name}" for name in ("conv.weight", "bn.weight", "bn.bias", "bn.running_var")}


def test_published_and_recommended_values() -> None:
    assert (FitNetOptions().weight, FitNetOptions().stage) == (100.0, 2)
    assert FitNet.published == LossWeights(ce=1.0, kd=0.0)
    known = Pair("p", "resnet20", ("resnet56",), "cifar100")
    assert not FitNet.recommended("crd", known)
    assert not FitNet.recommended("fair_baseline", known)
    for wrong in ({"weight": -1}, {"stage": -1}, {"weight": float("inf")}):
        with pytest.raises(ValidationError):
            FitNetOptions.model_validate(wrong)


def test_the_stage_is_an_option() -> None:
    method = build(pair(WIDE, [(8, 16, 16), (9, 8, 8), (10, 2, 2)]), stage=0)
    assert method.taps.student == method.taps.teachers == Taps((0,))
    assert method.regressor(torch.zeros(2, 4, 8, 8)).shape == (2, 8, 16, 16)


def test_what_is_declined() -> None:
    tokens = [(16, 32), (16, 32), (16, 32)]
    assert FitNet.supports(pair(WIDE, tokens)) == "teacher1 has tokens (16x32), no feature maps"
    assert FitNet.supports(pair(WIDE, WIDE)) is None
    # One stage that fits is enough: it can be chosen.
    tall = [(4, 8, 8), (4, 32, 32), (6, 32, 32)]
    assert FitNet.supports(pair(WIDE, tall)) is None
    with pytest.raises(Unsupported, match=r"at stage 2 the student's map 6x4x4 is smaller .* choose another stage"):
        build(pair(WIDE, tall))
    huge = [(4, 32, 32)] * 3
    assert "no connector" in (FitNet.supports(pair(WIDE, huge)) or "")
    with pytest.raises(Unsupported, match=r"stage is 3, but student has stages 0\.\.2"):
        build(pair(WIDE, WIDE), stage=3)
    with pytest.raises(Unsupported, match=r"stage is 2, but teacher1 has stages 0\.\.1"):
        build(pair(WIDE, WIDE[:2], WIDE))
    # Of the others nothing but logits is used.
    assert build(pair(WIDE, WIDE, WIDE[:2])).taps.of_teacher(1) == Taps()
    with pytest.raises(Unsupported, match="batch of one"):
        build(pair([(4, 4, 4), (4, 1, 1)], [(4, 4, 4), (4, 1, 1)]), stage=1, batch_size=1)
