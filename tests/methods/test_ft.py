"""FT: attention of factors, a paraphraser that is trained first and then stays, and a translator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.method import total
from kdbench.methods.ft import FT, FTOptions, Paraphraser, attention, ft_loss, make_translator, reconstruction_loss
from kdbench.testing.bench import Bench, Place
from kdbench.types import NetworkInfo, Pair, PairInfo, StageShape

BENCH = Bench(FT)
FIRST, MAIN = Place(0, 0), Place(1, 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_attention(factor: Tensor) -> list[list[float]]:
    rows = []
    for image in factor:
        energy = [
            sum(image[c, h, w].item() ** 2 for c in range(image.shape[0])) / image.shape[0]
            for h in range(image.shape[1])
            for w in range(image.shape[2])
        ]
        length = sum(e**2 for e in energy) ** 0.5
        rows.append([e / length for e in energy])
    return rows


@pytest.mark.parametrize("p2", [1, 2])
@pytest.mark.parametrize("side", [4, 6])
def test_it_is_the_formula_on_the_smaller_size(side: int, p2: int) -> None:
    """Other channel counts do not matter; 6 to 4 has overlapping windows."""
    student, teacher = draw(2, 3, 4, 4), draw(2, 5, side, side, seed=1)
    small = torch.empty(2, 5, 4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            rows, columns = (slice(k * side // 4, -(-(k + 1) * side // 4)) for k in (i, j))
            small[:, :, i, j] = teacher[:, :, rows, columns].mean((2, 3))
    ours, theirs = torch.tensor(slow_attention(student)), torch.tensor(slow_attention(small))
    expected = (ours - theirs).abs().pow(p2).mean().item()
    assert ft_loss(student, teacher, p2).item() == pytest.approx(expected, rel=1e-6)
    assert ft_loss(teacher, student, p2).item() == pytest.approx(expected, rel=1e-6)


def test_attention_has_unit_length_and_no_scale() -> None:
    factor = draw(3, 4, 5, 5)
    assert torch.allclose(attention(factor).norm(dim=1), torch.ones(3).double())
    assert ft_loss(100 * factor, factor).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("p2", [1, 2])
def test_dead_and_huge_factors(dtype: torch.dtype, p2: int) -> None:
    ours, theirs = draw(5, 3, 4, 4).to(dtype), draw(5, 3, 4, 4, seed=1).to(dtype)
    ours[0], ours[1], ours[2], theirs[0], theirs[3] = 0, 500, theirs[2], 500, 0
    ours[4, 1] = 0
    student, teacher = ours.clone().requires_grad_(), theirs.clone().requires_grad_()
    value = ft_loss(student, teacher, p2)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(ft_loss(ours.double(), theirs.double(), p2).item(), rel=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def test_layers_of_the_paraphraser() -> None:
    """Six 3x3 convolutions, each with a leaky ReLU behind, the last one too; no BN."""
    module, maps = Paraphraser(6, 2).double(), draw(2, 6, 4, 4)
    x = maps
    for conv in [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]:
        step = F.conv_transpose2d if isinstance(conv, nn.ConvTranspose2d) else F.conv2d
        x = step(x, conv.weight, conv.bias, padding=1)
        x = torch.where(x > 0, x, 0.1 * x)
    assert torch.allclose(module(maps), x)
    assert [tuple(p.shape[:2]) for n, p in module.named_parameters() if n.endswith("weight")] == [
        *[(6, 6), (2, 6), (2, 2)],  # convolutions: (out, in)
        *[(2, 2), (2, 6), (6, 6)],  # transposed ones: (in, out)
    ]
    assert not list(module.buffers())
    assert reconstruction_loss(x, maps).item() == pytest.approx((x - maps).square().mean().item())


def test_layers_of_the_translator() -> None:
    kinds = [type(layer).__name__ for layer in make_translator(3, 2)]
    assert kinds == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3
    assert make_translator(3, 2)(draw(2, 3, 4, 4).float()).shape == (2, 2, 4, 4)


def test_the_first_phase_trains_the_paraphraser_alone() -> None:
    run = BENCH.start()
    phase, _ = run.phases
    assert (phase.runs_student, phase.learning_rate) == (False, 0.01)
    assert phase.rate_factor is not None
    assert {phase.rate_factor(done / 10) for done in range(10)} == {1.0}
    chosen = run.parameters(FIRST)
    assert {id(p) for p in chosen} == {id(p) for p in run.method.paraphraser.parameters()}
    losses = run.losses(FIRST, run.batch(FIRST))
    assert set(losses) == {"reconstruction"}
    total(losses).backward()
    assert all(p.grad is not None and p.grad.any() for p in chosen)


def test_the_main_phase_leaves_the_paraphraser() -> None:
    run = BENCH.start()
    before = [p.clone() for p in run.method.paraphraser.parameters()]
    losses = run.losses(MAIN, run.batch(MAIN))
    assert set(losses) == {"ce", "kd", "ft"}
    losses["ft"].value.backward()
    assert all(p.grad is None for p in run.method.paraphraser.parameters())
    assert all(p.grad is not None for p in run.method.translator.parameters())
    assert any(p.grad is not None and p.grad.any() for p in run.student.parameters())
    run.step(MAIN)
    assert all(map(torch.equal, before, run.method.paraphraser.parameters()))


@pytest.mark.parametrize(("epochs", "expected"), [(240, 30), (15, 2), (2, 1)])
def test_length_of_the_first_phase(epochs: int, expected: int) -> None:
    assert FT(FTOptions(), replace(BENCH.context, epochs=epochs)).phases()[0].epochs == expected


def test_channels_of_the_factor() -> None:
    channels = BENCH.info.teachers[0].stages[-1].channels
    for k, expected in [(0.5, channels // 2), (1.9 / channels, 1), (1.0, channels)]:
        method = FT(FTOptions(k=k), BENCH.context)
        assert method.paraphraser.encoder[-2].out_channels == method.translator[-3].out_channels == expected
    with pytest.raises(Unsupported, match="larger k"):
        FT(FTOptions(k=0.5 / channels), BENCH.context)


def test_options_and_recommended_values() -> None:
    assert FTOptions().weight == 200
    assert (FT.published.ce, FT.published.kd) == (1, 0)
    assert FT.recommended("fair_baseline", Pair("p", "vgg8", ("vgg13",), "d")) == {"weight": 1.0}
    assert FT.recommended("crd", Pair("p", "vgg8", ("vgg13",), "d")) == {"paraphraser_lr": 0.05}
    assert not FT.recommended("crd", Pair("p", "resnet20", ("resnet56",), "d"))


def test_what_it_declines() -> None:
    def pair(student: tuple[int, ...], teacher: tuple[int, ...]) -> PairInfo:
        def info(name: str, shape: tuple[int, ...]) -> NetworkInfo:
            return NetworkInfo(name, (StageShape(shape), StageShape(shape)), 8, 5, 100)

        return PairInfo("p", info("s", student), (info("t", teacher),), StageShape((3, 16, 16)))

    assert FT.supports(pair((4, 4, 4), (8, 2, 2))) is None
    assert "more than one" in str(FT.supports(pair((4, 4, 4), (8, 1, 1))))
    assert "tokens" in str(FT.supports(pair((4, 4, 4), (5, 8))))
