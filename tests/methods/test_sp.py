"""SP: similarities of a batch against loops, sizes that differ, images without activation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.methods.sp import SP, SPOptions, similarities, sp_loss
from kdbench.testing.bench import Bench, Place
from kdbench.types import StageShape


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(student: Tensor, teacher: Tensor) -> float:
    size, grams = len(student), []
    for features in (student, teacher):
        gram = [[float((a * b).sum()) for b in features] for a in features]
        grams.append([[g / sum(h * h for h in row) ** 0.5 for g in row] for row in gram])
    return sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(size) for j in range(size)) / size**2


def test_value_and_gradient() -> None:
    student, teacher = maps(5, 3, 4, 4).requires_grad_(), maps(5, 7, 2, 2, seed=1).requires_grad_()
    loss = sp_loss(student, teacher)
    assert loss.item() == pytest.approx(slow(student.detach(), teacher.detach()), rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: sp_loss(s, teacher.detach()), (student,))
    loss.backward()
    assert teacher.grad is None


def test_rows_are_normalised_not_the_matrix() -> None:
    lengths = similarities(maps(6, 2, 3, 3)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_only_relations_count() -> None:
    features, order = maps(6, 2, 3, 3), torch.tensor([3, 0, 5, 1, 4, 2])
    assert sp_loss(features, 7 * features).item() == pytest.approx(0, abs=1e-24)
    other = maps(6, 4, 1, 1, seed=1)
    torch.testing.assert_close(sp_loss(features[order], other[order]), sp_loss(features, other))
    assert not torch.allclose(sp_loss(features[order], other), sp_loss(features, other))


def test_an_image_without_activation() -> None:
    student, teacher = maps(4, 2, 3, 3).float(), maps(4, 2, 3, 3, seed=1).float()
    student[1] = 0
    student.requires_grad_()
    loss = sp_loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    # It still hears of the others' similarities to it, at their scale.
    assert 0 < student.grad[1].abs().max() < 1
    assert torch.equal(similarities(student.detach())[1], torch.zeros(4))


def test_method_compares_the_deepest_stages() -> None:
    run = Bench(SP).start()
    batch = run.batch(Place(0, 0))
    losses = run.method.losses(batch)
    assert list(losses) == ["ce", "kd", "sp"]
    assert losses["sp"].weight == 3000
    assert [one.shape[1:] for one in batch.student.stages] == [run.bench.info.student.stages[-1].dims]
    torch.testing.assert_close(losses["sp"].value, sp_loss(batch.student.stages[0], batch.teacher.stages[0]))


def test_what_it_declines() -> None:
    bench = Bench(SP)
    with pytest.raises(Unsupported, match="two or more"):
        SP(SPOptions(), replace(bench.context, batch_size=1))
    assert SP.supports(bench.info) is None
    tokens = replace(bench.info.student, stages=(StageShape((16, 8)),))
    assert SP.supports(replace(bench.info, student=tokens)) is None
    bare = replace(bench.info.student, name="bare", stages=())
    assert SP.supports(replace(bench.info, student=bare)) == "bare has no stages"
    torch.testing.assert_close(sp_loss(maps(3, 16, 8), maps(3, 2, 4, 4)), sp_loss(maps(3, 128), maps(3, 32)))
