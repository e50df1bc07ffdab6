"""VID: the likelihood against loops, variances that start where they should, are learned, and are kept."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.methods.vid import VID, Predictor, VIDOptions, vid_loss
from kdbench.testing.bench import Bench, Place
from kdbench.types import Context, LossWeights, NetworkInfo, Pair, PairInfo, StageShape

Dims = tuple[int, ...]
EPS = 1e-5


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def pair(student: list[Dims], teacher: list[Dims]) -> PairInfo:
    networks = [
        NetworkInfo(name, tuple(map(StageShape, stages)), embedding=4, classes=3, parameters=1)
        for name, stages in (("student", student), ("teacher", teacher))
    ]
    return PairInfo("toy", networks[0], (networks[1],), StageShape((3, 8, 8)))


def predictor(student: int, teacher: int, variance: float = 5.0) -> Predictor:
    torch.manual_seed(0)
    return Predictor(student, teacher, init_pred_var=variance, eps=EPS)


def variance_of(log_scale: Tensor) -> Tensor:
    """Return the variance by the only road that is public: a loss without error is half the mean log variance."""
    still = torch.zeros(1, 1, 1, 1, dtype=log_scale.dtype)
    return torch.stack([(2 * vid_loss(still, still, s.reshape(1), eps=EPS)).exp() for s in log_scale])


def test_against_loops() -> None:
    mean, teacher, scale = maps(2, 3, 2, 2), maps(2, 3, 2, 2, seed=1), maps(3, seed=2)
    values = []
    for c in range(3):
        variance = log(1 + exp(scale[c].item())) + EPS
        errors = [
            (a - b) ** 2 for a, b in zip(mean[:, c].flatten().tolist(), teacher[:, c].flatten().tolist(), strict=True)
        ]
        values += [(error / variance + log(variance)) / 2 for error in errors]
    loss = vid_loss(mean, teacher, scale, eps=EPS)
    assert loss.item() == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert torch.autograd.gradcheck(lambda m, s: vid_loss(m, teacher, s, eps=EPS), (mean, scale))
    loss.backward()
    assert teacher.grad is None


def test_the_loss_can_be_negative() -> None:
    same = maps(2, 3, 2, 2)
    assert vid_loss(same, same, torch.full((3,), -5.0), eps=EPS).item() < -2


@pytest.mark.parametrize("wanted", [2e-5, 0.1, 5.0, 1e4])
def test_the_first_variance(wanted: float) -> None:
    scale = predictor(2, 3, wanted).double().log_scale
    assert scale.shape == (3,)
    torch.testing.assert_close(variance_of(scale), torch.full((3,), wanted).double(), rtol=1e-4, atol=0)
    if wanted == 5.0:
        assert scale[0].item() == pytest.approx(log(exp(wanted - EPS) - 1), rel=1e-6)


@pytest.mark.parametrize("scale", [-1000.0, -50.0, 0.0, 19.0, 21.0, 39.0, 41.0, 1000.0])
def test_extreme_scales(scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        value = torch.tensor([scale], dtype=dtype, requires_grad=True)
        found = variance_of(value)
        found.sum().backward()
        assert value.grad is not None
        assert value.grad.isfinite().all()
    expected = EPS + (scale if scale > 700 else log(1 + exp(scale)) if scale > -30 else exp(scale))
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 1, 1), (5, 1, 1))])
def test_the_predictor_works_at_the_smaller_size(ours: Dims, theirs: Dims) -> None:
    module = predictor(3, 5).double()
    student, teacher = maps(2, *ours), maps(2, *theirs, seed=1)
    side = min(ours[1], theirs[1])
    s, t = (torch.nn.functional.adaptive_avg_pool2d(x, side) for x in (student, teacher))
    for weight in (module.conv1.weight, module.conv2.weight):
        s = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], s).relu()
    s = torch.einsum("oi,nihw->nohw", module.conv3.weight[:, :, 0, 0], s)
    expected = ((s - t) ** 2 / 5 + log(5)).mean() / 2
    loss = module(student, teacher)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    assert teacher.grad is None


def test_dead_maps_have_finite_gradients() -> None:
    module, student = predictor(3, 5, 2e-5), torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = module(student, torch.zeros(2, 5, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (student, *module.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * maps(2, 3, 2, 2, seed=seed).detach().to(dtype) for seed in (0, 1))
    loss = vid_loss(student, teacher, torch.zeros(3, dtype=dtype), eps=EPS)
    assert loss.dtype == predictor(3, 3)(student, teacher).dtype == torch.float32
    expected = vid_loss(student.double(), teacher.double(), torch.zeros(3).double(), eps=EPS)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_the_variances_are_learned_and_in_the_state() -> None:
    run = Bench(VID).start()
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    run.step(Place(0, 0))
    after = run.method.state_dict()
    names = ("log_scale", "conv1.weight", "conv2.weight", "conv3.weight")
    assert set(after) == {f"predictors.{i}.{name}" for i in range(3) for name in names}
    assert all(not torch.equal(after[name], before[name]) for name in after)


def test_terms_weights_and_stages() -> None:
    run = Bench(VID).start()
    batch = run.batch(Place(0, 0))
    losses = run.losses(Place(0, 0), batch)
    assert {name: term.weight for name, term in losses.items()} == {"ce": 0.65, "kd": 0.35, "vid": 1.0}
    assert batch.student.indices == batch.teacher.indices == (1, 2, 3)  # all but the stem
    assert isinstance(run.method, VID)
    stages = zip(run.method.predictors, batch.student.stages, batch.teacher.stages, strict=True)
    torch.testing.assert_close(losses["vid"].value, torch.stack([one(s, t) for one, s, t in stages]).sum())


def test_published_and_recommended_values() -> None:
    assert VIDOptions() == VIDOptions(weight=1.0, init_pred_var=5.0, eps=1e-5)
    assert VID.published == LossWeights(ce=1.0, kd=0.0)
    known = Pair("p", "resnet20", ("resnet56",), "cifar100")
    assert not VID.recommended("crd", known)
    assert not VID.recommended("fair_baseline", known)
    for wrong in ({"weight": -1}, {"init_pred_var": 0}, {"eps": 0}):
        with pytest.raises(ValidationError):
            VIDOptions.model_validate(wrong)


def test_what_is_declined() -> None:
    stem = (4, 8, 8)
    fits = pair([stem, (4, 1, 1)], [stem, (6, 4, 4)])
    assert VID.supports(fits) is None
    assert "one by one" in (VID.supports(pair([stem, (4, 4, 4)], [stem, (6, 8, 8), (6, 4, 4)])) or "")
    assert VID.supports(pair([(16, 8)] * 2, [stem] * 2)) == "student has tokens (16x8), no feature maps"
    context = Context(fits, train_size=8, epochs=1, steps_per_epoch=2, batch_size=4, seed=0)
    with pytest.raises(Unsupported, match=r"init_pred_var is 0\.1, but no variance can be 0\.1 \(eps\) or less"):
        VID(VIDOptions(init_pred_var=0.1, eps=0.1), context)
