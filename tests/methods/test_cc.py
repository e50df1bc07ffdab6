"""CC: the loss against loops, its dependence on the order, and which mapping gets which gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.methods.cc import CC, CCOptions, Embeddings, cc_loss
from kdbench.testing.bench import Bench, Place


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_value_and_gradient() -> None:
    student, teacher = vectors(5, 3).requires_grad_(), vectors(5, 3, seed=1).requires_grad_()
    delta = [
        [abs(a - b) for a, b in zip(*rows, strict=True)]
        for rows in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    wanted = sum(delta[b][k] * delta[b + 1][k] for b in range(4) for k in range(3)) / 4
    assert cc_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-12)
    assert torch.autograd.gradcheck(cc_loss, (student, teacher))


def test_only_neighbours_meet() -> None:
    student, teacher = vectors(4, 3), vectors(4, 3, seed=1)
    backwards, swapped = torch.tensor([3, 2, 1, 0]), torch.tensor([0, 2, 1, 3])
    loss = cc_loss(student, teacher)
    torch.testing.assert_close(cc_loss(student[backwards], teacher[backwards]), loss)
    assert not torch.allclose(cc_loss(student[swapped], teacher[swapped]), loss)
    # Where every second image agrees, there is nothing left.
    student[::2] = teacher[::2]
    assert cc_loss(student, teacher) == 0


def test_both_mappings_learn_and_the_teacher_does_not() -> None:
    torch.manual_seed(0)
    embed = Embeddings(5, 7, 4)
    student, teacher = (torch.randn(6, width, requires_grad=True) for width in (5, 7))
    cc_loss(*embed(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in embed.parameters())


def test_embeddings_are_not_normalised() -> None:
    torch.manual_seed(0)
    embed, x = Embeddings(3, 3, 4), torch.randn(2, 3)
    weight, bias = embed.student.weight, embed.student.bias
    torch.testing.assert_close(embed(x, x)[0], x @ weight.T + bias)


def test_method_holds_its_mappings() -> None:
    run = Bench(CC).start()
    student, teacher = run.bench.context.student.embedding, run.bench.context.teachers[0].embedding
    assert {name: tuple(p.shape) for name, p in run.method.named_parameters()} == {
        "embed.student.weight": (128, student),
        "embed.student.bias": (128,),
        "embed.teacher.weight": (128, teacher),
        "embed.teacher.bias": (128,),
    }
    losses = run.method.losses(run.batch(Place(0, 0)))
    assert list(losses) == ["ce", "kd", "cc"]
    assert losses["cc"].weight == 0.02
    narrow = CC(CCOptions(feat_dim=3), run.bench.context)
    assert narrow.embed.student.out_features == narrow.embed.teacher.out_features == 3


def test_a_batch_of_one_is_declined() -> None:
    with pytest.raises(Unsupported, match="two or more"):
        CC(CCOptions(), replace(Bench(CC).context, batch_size=1))
