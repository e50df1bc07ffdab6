"""RKD: distances and angles against loops, what they do not depend on, and images that are alike."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.methods.rkd import RKD, RKDOptions, cosines, difference_products, distances, rkd_loss, rkd_parts
from kdbench.testing.bench import Bench, Place


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def slow_distances(x: Tensor, *, squared: bool) -> list[float]:
    size = len(x)
    found = [math.dist(x[i].tolist(), x[j].tolist()) ** (2 if squared else 1) for i in range(size) for j in range(size)]
    mean = sum(found) / sum(d > 0 for d in found)
    return [d / mean for d in found]


def slow_angles(x: Tensor) -> list[float]:
    found, size = [], len(x)
    for i in range(size):
        for j in range(size):
            for k in range(size):
                a, b = x[j] - x[i], x[k] - x[i]
                found.append(float(a @ b / (a.norm() * b.norm())) if i not in (j, k) else 0.0)
    return found


@pytest.mark.parametrize("squared", [False, True])
def test_values_and_gradients(squared: bool) -> None:
    student, teacher = vectors(5, 3).requires_grad_(), (4 * vectors(5, 6, seed=1) ** 3).requires_grad_()
    ours, theirs = student.detach(), teacher.detach()
    distance, angle = rkd_parts(student, teacher, squared=squared)
    pairs = list(zip(slow_distances(ours, squared=squared), slow_distances(theirs, squared=squared), strict=True))
    assert any(abs(a - b) > 1 for a, b in pairs)  # both branches of Huber
    assert distance.item() == pytest.approx(sum(huber(a - b) for a, b in pairs) / 25, rel=1e-10)
    triples = zip(slow_angles(ours), slow_angles(theirs), strict=True)
    assert angle.item() == pytest.approx(sum(huber(a - b) for a, b in triples) / 125, rel=1e-10)
    assert torch.autograd.gradcheck(lambda s: rkd_parts(s, theirs, squared=squared), (student,))
    (distance + angle).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("squared", [False, True])
def test_scale_place_and_rotation_do_not_matter(squared: bool) -> None:
    x, teacher = vectors(6, 4).requires_grad_(), vectors(6, 5, seed=1)
    turn = torch.linalg.qr(vectors(4, 4, seed=2)).Q
    for part, moved in zip(
        rkd_parts(x, teacher, squared=squared), rkd_parts(3 * x @ turn + 10, teacher, squared=squared), strict=True
    ):
        torch.testing.assert_close(part, moved)
        # Growing changes nothing, so no gradient points that way: it passes through the mean distance, too.
        (gradient,) = torch.autograd.grad(part, x, retain_graph=True)
        assert (gradient * x).sum().item() == pytest.approx(0, abs=1e-12)
        assert gradient.abs().max() > 1e-4


def test_equal_images_have_neither_distance_nor_angle_nor_gradient() -> None:
    x = vectors(5, 3).float()
    x[3] = x[1]
    x.requires_grad_()
    products = difference_products(x)
    assert torch.equal(cosines(products)[1, 3], torch.zeros(5))
    assert 0 < distances(products, squared=False)[1, 3].item() < 1e-5  # positive, so part of the mean
    for part in rkd_parts(x, vectors(5, 4, seed=1).float()):
        (gradient,) = torch.autograd.grad(part, x, retain_graph=True)
        assert gradient.isfinite().all()
        assert 0 < gradient.abs().max() < 1
    # If the teacher cannot tell them apart either, they move together.
    teacher = vectors(5, 4, seed=1).float()
    teacher[3] = teacher[1]
    rkd_loss(x, teacher, distance_weight=25, angle_weight=50).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[1], x.grad[3])


@pytest.mark.parametrize("squared", [False, True])
def test_a_batch_without_any_distance(squared: bool) -> None:
    x = torch.full((4, 3), 2.5, requires_grad=True)
    loss = rkd_loss(x, vectors(4, 3).float(), distance_weight=25, angle_weight=50, squared=squared)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(4, 3))
    assert rkd_loss(vectors(4, 3).float(), x, distance_weight=25, angle_weight=50, squared=squared).isfinite()


def test_images_much_alike_keep_their_distances_in_float32() -> None:
    x = 1000 + 0.5 * vectors(4, 3).round(decimals=2)
    x = x.float().double()  # exact in both types
    for fine, coarse in zip(
        rkd_parts(x, vectors(4, 3, seed=1)), rkd_parts(x.float(), vectors(4, 3, seed=1)), strict=True
    ):
        torch.testing.assert_close(fine, coarse, rtol=1e-5, atol=0, check_dtype=False)


def test_method_uses_embeddings_and_its_options() -> None:
    run = Bench(RKD).start()
    batch = run.batch(Place(0, 0))
    student, teacher = batch.student.embedding, batch.teacher.embedding
    assert student is not None
    assert teacher is not None
    losses = run.method.losses(batch)
    assert list(losses) == ["ce", "kd", "rkd"]
    assert losses["rkd"].weight == 1
    torch.testing.assert_close(
        losses["rkd"].value, rkd_loss(student, teacher, distance_weight=25, angle_weight=50, squared=False)
    )
    options = RKDOptions(weight=2, distance_weight=3, angle_weight=0, squared=True)
    own = RKD(options, run.bench.context).losses(batch)["rkd"]
    assert own.weight == 2
    torch.testing.assert_close(own.value, 3 * rkd_parts(student, teacher, squared=True)[0])


def test_a_batch_of_one_is_declined() -> None:
    with pytest.raises(Unsupported, match="two or more"):
        RKD(RKDOptions(), replace(Bench(RKD).context, batch_size=1))
