"""PKT: affinities and divergence against loops; zero, short and opposite vectors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.methods.pkt import PKT, PKTOptions, affinities, pkt_loss
from kdbench.testing.bench import Bench, Place


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_affinities(x: Tensor) -> list[list[float]]:
    rows = []
    for a in x:
        row = [(float(a @ b) / ((float(a.norm()) + 1e-7) * (float(b.norm()) + 1e-7)) + 1) / 2 for b in x]
        rows.append([k / sum(row) for k in row])
    return rows


def test_value_and_gradient() -> None:
    student, teacher = vectors(5, 3).requires_grad_(), vectors(5, 6, seed=1).requires_grad_()
    loss = pkt_loss(student, teacher)
    ours, theirs = slow_affinities(student.detach()), slow_affinities(teacher.detach())
    pairs = [(p, q) for a, b in zip(theirs, ours, strict=True) for p, q in zip(a, b, strict=True)]
    assert loss.item() == pytest.approx(sum(p * math.log((p + 1e-7) / (q + 1e-7)) for p, q in pairs) / 25, rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: pkt_loss(s, teacher.detach()), (student,))
    loss.backward()
    assert teacher.grad is None


def test_rows_are_distributions_that_include_the_image_itself() -> None:
    p = affinities(vectors(6, 4))
    torch.testing.assert_close(p.sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(p.argmax(1), torch.arange(6))


def test_only_directions_count() -> None:
    x, teacher = vectors(6, 4), vectors(6, 5, seed=1)
    lengths = torch.tensor([1, 2, 3, 4, 5, 6], dtype=torch.float64)[:, None]
    torch.testing.assert_close(pkt_loss(lengths * x, teacher), pkt_loss(x, teacher), rtol=1e-5, atol=0)
    assert pkt_loss(x, lengths * x).item() == pytest.approx(0, abs=1e-12)


def test_zero_vectors() -> None:
    x, teacher = vectors(5, 4).float(), vectors(5, 6, seed=1).float()
    x[2] = 0
    x.requires_grad_()
    loss = pkt_loss(x, teacher)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert torch.equal(x.grad[2], torch.zeros(4))
    assert 0 < x.grad.abs().max() < 1
    torch.testing.assert_close(affinities(x.detach())[2], torch.full((5,), 0.2))  # like to all
    assert pkt_loss(teacher, x).isfinite()
    nothing = torch.zeros(5, 4, requires_grad=True)
    pkt_loss(nothing, teacher).backward()
    assert nothing.grad is not None
    assert torch.equal(nothing.grad, torch.zeros(5, 4))


def test_opposite_vectors() -> None:
    # A cosine that rounding takes below -1 must not become the logarithm of a negative number.
    for seed in range(20):
        one = vectors(1, 2048, seed=seed).float() * 100
        x = torch.cat([one, -one, one, -3 * one]).requires_grad_()
        assert affinities(x).min() >= 0
        loss = pkt_loss(x, vectors(4, 8).float())
        loss.backward()
        assert loss.isfinite()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_method_uses_embeddings() -> None:
    run = Bench(PKT).start()
    batch = run.batch(Place(0, 0))
    assert batch.student.embedding is not None
    assert batch.teacher.embedding is not None
    losses = run.method.losses(batch)
    assert list(losses) == ["ce", "kd", "pkt"]
    assert losses["pkt"].weight == 30000
    torch.testing.assert_close(losses["pkt"].value, pkt_loss(batch.student.embedding, batch.teacher.embedding))


def test_a_batch_of_one_is_declined() -> None:
    with pytest.raises(Unsupported, match="two or more"):
        PKT(PKTOptions(), replace(Bench(PKT).context, batch_size=1))
