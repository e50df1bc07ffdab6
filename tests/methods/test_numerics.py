"""Losses and gradients stay finite where numbers get extreme: huge logits, dead channels, zero rows, equal images.

Every pair of states of student and teacher is tried, as float32 and as bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.cc import Embeddings, cc_loss
from kdbench.methods.dkd import dkd_loss, dkd_parts
from kdbench.methods.pkt import affinities, pkt_loss
from kdbench.methods.rkd import rkd_loss, rkd_parts
from kdbench.methods.sp import similarities, sp_loss

Loss = Callable[[Tensor, Tensor], Tensor]
N, CLASSES = 6, 10
LABELS = torch.tensor([0, 9, 3, 3, 1, 0])


def draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MIX = draws(N, N, seed=9)


def labels_beside(logits: Tensor) -> Tensor:
    return LABELS.to(logits.device)


def both_dkd_parts(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.stack(dkd_parts(student, teacher, labels_beside(student), 4.0)).sum()


def dkd(student: Tensor, teacher: Tensor) -> Tensor:
    return dkd_loss(student, teacher, labels_beside(student), alpha=1.0, beta=8.0, tau=1.0)


def both_rkd_parts(student: Tensor, teacher: Tensor, *, squared: bool) -> Tensor:
    return torch.stack(rkd_parts(student, teacher, squared=squared)).sum()


def mixed(relation: Callable[[Tensor], Tensor]) -> Loss:
    """Return a loss that gives every entry of a batch's relation (N, N) another weight."""
    return lambda student, _: (relation(student) * MIX.to(student.device)).sum()


def cc_embedded(student: Tensor, teacher: Tensor) -> Tensor:
    torch.manual_seed(0)
    embed = Embeddings(student.shape[1], teacher.shape[1], 8).to(student.device)
    return cc_loss(*embed(student, teacher))


LOGITS: dict[str, Loss] = {
    "cross_entropy": lambda student, _: cross_entropy(student, labels_beside(student)),
    "cross_entropy smoothed": lambda student, _: cross_entropy(student, labels_beside(student), label_smoothing=0.1),
    "kd_loss": partial(kd_loss, tau=4.0),
    "kd_loss tau 1": partial(kd_loss, tau=1.0),
    "dkd_parts": both_dkd_parts,
    "dkd_loss tau 1": dkd,
}
MAPS: dict[str, Loss] = {"sp_loss": sp_loss, "similarities": mixed(similarities)}
VECTORS: dict[str, Loss] = {
    "rkd_parts": partial(both_rkd_parts, squared=False),
    "rkd_parts squared": partial(both_rkd_parts, squared=True),
    "rkd_loss": partial(rkd_loss, distance_weight=25.0, angle_weight=50.0),
    "pkt_loss": pkt_loss,
    "affinities": mixed(affinities),
    "cc_loss": lambda student, teacher: cc_loss(student, teacher[:, : student.shape[1]]),
    "cc_loss of embeddings": cc_embedded,
}
ALL = LOGITS | MAPS | VECTORS


def untouched(x: Tensor) -> Tensor:
    return x


def dead_channel(x: Tensor) -> Tensor:
    return x.index_fill(1, torch.tensor([1]), 0.0)


def zero_row(x: Tensor) -> Tensor:
    return x.index_fill(0, torch.tensor([2]), 0.0)


def one_row_left(x: Tensor) -> Tensor:
    return x.index_fill(0, torch.arange(1, N), 0.0)


def all_zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def duplicates(x: Tensor) -> Tensor:
    return x[[0, 1, 0, 1, 4, 0]]


def all_equal(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def opposite(x: Tensor) -> Tensor:
    return torch.cat([x[:3], -x[:3]])


def scaled(x: Tensor, factor: float) -> Tensor:
    return factor * x


def spread(x: Tensor) -> Tensor:
    """Logits of 500 or -500."""
    return 500 * x.sign()


def one_hot(x: Tensor, sign: int) -> Tensor:
    """Logits that leave one class 1000 above or below the others."""
    return sign * torch.where(x == x.amax(1, keepdim=True), 500.0, -500.0)


STATES: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (untouched, dead_channel, zero_row, one_row_left, all_zero, duplicates, all_equal, opposite)
} | {"tiny": partial(scaled, factor=1e-5), "large": partial(scaled, factor=1e4)}
HUGE: dict[str, Callable[[Tensor], Tensor]] = {
    **STATES,
    "spread": spread,
    "one_hot": partial(one_hot, sign=1),
    "one_cold": partial(one_hot, sign=-1),
}


def check(loss: Loss, student: Tensor, teacher: Tensor, dtype: torch.dtype) -> None:
    ours, theirs = student.to(dtype).requires_grad_(), teacher.to(dtype)
    value = loss(ours, theirs)
    assert value.shape == ()
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, ours)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    # Finite, but so large that one image drowns the others, is no better.
    assert gradient.abs().max() < 1e8


both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@both_types
@pytest.mark.parametrize("name", LOGITS)
def test_logits(name: str, dtype: torch.dtype) -> None:
    student, teacher = draws(N, CLASSES, seed=0), draws(N, CLASSES, seed=1)
    for ours in HUGE.values():
        for theirs in HUGE.values():
            check(LOGITS[name], ours(student), theirs(teacher), dtype)


@both_types
@pytest.mark.parametrize("name", MAPS)
def test_maps(name: str, dtype: torch.dtype) -> None:
    student, teacher = draws(N, 3, 4, 4, seed=0), draws(N, 5, 2, 2, seed=1)
    for ours in STATES.values():
        for theirs in STATES.values():
            check(MAPS[name], ours(student), theirs(teacher), dtype)


@both_types
@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str, dtype: torch.dtype) -> None:
    student, teacher = draws(N, 4, seed=0), draws(N, 7, seed=1)
    for ours in STATES.values():
        for theirs in STATES.values():
            check(VECTORS[name], ours(student), theirs(teacher), dtype)


def shapes(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of what a loss takes of student and teacher."""
    return ((N, CLASSES), (N, CLASSES)) if name in LOGITS else ((N, 4), (N, 7))


@pytest.mark.parametrize("name", ALL)
def test_losses_are_float32_or_wider(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        student, teacher = (draws(*shape, seed=0).to(dtype) for shape in shapes(name))
        assert ALL[name](student, teacher).dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
def test_dry_runs_need_no_numbers(name: str) -> None:
    student, teacher = (torch.empty(shape, device="meta") for shape in shapes(name))
    assert ALL[name](student, teacher).shape == ()
