"""Contrastive representation distillation: tell an image's embedding from those of other classes, across networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Setup, TapRequest
from kdbench.types import Context, LossWeights, Pair, PairInfo, Source, Taps, Term

PUBLISHED_NEGATIVES = 16384
_TINY = 1e-6  # length below which a vector has no direction


class CRDOptions(Options):
    """Size of the contrast and weight of its loss."""

    weight: float = Field(0.8, ge=0, description="weight of the contrastive term")
    feat_dim: int = Field(128, ge=1, description="width of the embeddings that are contrasted")
    nce_k: int | None = Field(
        None,
        ge=1,
        description="negatives per image; null: the published 16384, or, if fewer, as many as every image has images "
        "of other classes",
    )
    nce_t: float = Field(0.07, gt=0, description="temperature of the contrast")
    momentum: float = Field(0.5, ge=0, lt=1, description="share of the old entry when a memory bank is updated")
    mode: Literal["exact", "relax"] = Field(
        "exact", description="positive of an image: its own entry (exact), or that of any image of its class (relax)"
    )


class CRD(Method[CRDOptions]):
    """Cross-entropy plus the contrast of each network's embeddings with the memory bank of the other's."""

    name = "crd"
    source = Source(
        title="Contrastive Representation Distillation",
        year=2020,
        url="https://arxiv.org/abs/1910.10699",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference, scores are divided by a constant Z from the first step, which the paper does "
        "not have; where a batch is split, Z is that of its first part; each image's negatives are a uniform draw, but "
        "the images of a batch take them from one random permutation, from starts of their own; a vector shorter than "
        "1e-6 becomes 0 instead of 0/0; a mixed image counts as its own image, not as its partner.",
    )
    options_type = CRDOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "gathered"
    taps = TapRequest(Taps(embedding=True), Taps(embedding=True))

    labels: Tensor
    by_class: Tensor
    class_start: Tensor
    class_size: Tensor

    def __init__(self, options: CRDOptions, context: Context) -> None:
        super().__init__(options, context)
        size, classes = context.train_size, context.student.classes
        if options.nce_k is not None and options.nce_k > size:
            raise Unsupported(
                f"nce_k is {options.nce_k}, but there are only {size} training images to draw negatives from; give "
                "fewer, or leave it out"
            )
        self.contrast = Contrast(
            context.student.embedding,
            context.teachers[0].embedding,
            options.feat_dim,
            size,
            tau=options.nce_t,
            momentum=options.momentum,
        )
        # Functions of the training labels: prepare() fills them again when a run resumes.
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.register_buffer("by_class", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.register_buffer("class_start", torch.zeros(classes, dtype=torch.int64), persistent=False)
        self.register_buffer("class_size", torch.zeros(classes, dtype=torch.int64), persistent=False)
        self.largest_class = 0
        self.negatives = 0
        self._pending: list[Pending] = []

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:  # noqa: ARG003
        """Return the wider embeddings of ``fair_baseline``; its other values are the published ones."""
        return {"feat_dim": 512} if anchor == "fair_baseline" else {}

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline datasets of one class, where no image can be a negative."""
        return "with one class there are no negatives" if pair.student.classes < 2 else None

    def prepare(self, setup: Setup) -> None:
        """Keep the labels, and settle how many negatives there are."""
        classes, labels = len(self.class_size), setup.labels
        # bincount does not work on shapes alone.
        sizes = labels.new_zeros(classes).index_add_(0, labels, torch.ones_like(labels))
        self.labels.copy_(labels)
        self.by_class.copy_(labels.argsort(stable=True))
        self.class_size.copy_(sizes)
        self.class_start.copy_(sizes.cumsum(0) - sizes)
        # Without numbers (a dry run), classes count as equally large.
        self.largest_class = -(-len(labels) // classes) if labels.is_meta else int(sizes.max())
        pool = len(labels) - self.largest_class
        if pool < 1:
            raise Unsupported("all training images are of one class, so there are no negatives")
        self.negatives = self.options.nce_k or min(PUBLISHED_NEGATIVES, pool)

    def losses(self, batch: Batch) -> Losses:
        student, teacher = batch.student.embedding, batch.teacher.embedding
        assert student is not None
        assert teacher is not None
        c: Contrasted = self.contrast(student, teacher, self.draw(batch.index))
        self._pending.append(Pending(batch.index, c.student.detach(), c.teacher.detach(), c.log_z))
        return {"ce": batch.supervised(), "kd": batch.kd(), "crd": Term(c.loss, self.options.weight)}

    def draw(self, index: Tensor) -> Tensor:
        """Return the instances (N, 1 + K) that images ``index`` (N,) are compared with, the positive first."""
        own = self.labels[index]
        positive = index
        if self.options.mode == "relax":
            positive = draw_of_class(own, self.by_class, self.class_start, self.class_size)
        negative = draw_negatives(self.labels, own, self.negatives, self.largest_class)
        return torch.cat([positive[:, None], negative], 1)

    def after_step(self, batch: Batch) -> None:
        """Bring the banks up to date with the embeddings of the step.

        Not in ``losses``, whose backward pass needs the banks as they were; and with the embeddings from there, since
        the weights behind them have changed by now.
        """
        # A step may consist of several batches, and losses may have been asked for without a step behind them.
        places = [place for place, seen in enumerate(self._pending) if seen.index is batch.index]
        if not places:
            raise ValueError("after_step() needs a batch that losses() has seen")
        seen = self._pending[places[-1]]
        self.contrast.update(seen.index, seen.student, seen.teacher, seen.log_z)
        del self._pending[: places[-1] + 1]


@dataclass(frozen=True)
class Contrasted:
    """What a batch of N images looks like against the memory banks; d is the width of the embeddings.

    Args:
        student: The student's embeddings (N, d), of length 1.
        teacher: The teacher's embeddings (N, d), of length 1.
        student_log_p: Log scores (N, 1 + K) of the student's embeddings in the teacher's bank, the positive first.
        teacher_log_p: Log scores (N, 1 + K) of the teacher's embeddings in the student's bank.
        log_z: Log of the constants that both scores were divided by, (2,).
        student_loss: Loss of the student's scores, in nats.
        teacher_loss: Loss of the teacher's scores, in nats; trains the teacher's embedding only.
    """

    student: Tensor
    teacher: Tensor
    student_log_p: Tensor
    teacher_log_p: Tensor
    log_z: Tensor
    student_loss: Tensor
    teacher_loss: Tensor

    @property
    def loss(self) -> Tensor:
        """The sum of both losses."""
        return self.student_loss + self.teacher_loss


@dataclass(frozen=True)
class Pending:
    """What a batch leaves behind for the update of the banks, without its graph; fields as in :class:`Contrasted`."""

    index: Tensor
    student: Tensor
    teacher: Tensor
    log_z: Tensor


class Contrast(nn.Module):
    """Embeddings of both networks, and what each was for every training image when it was last seen.

    Args:
        student: Width of the student's penultimate vector.
        teacher: Width of the teacher's penultimate vector.
        width: Width d of the embeddings.
        size: Number n of training images.
        tau: Temperature.
        momentum: Share of the old entry in an update of a bank.
        eps: What is added to the denominators of the loss.

    Source:
        Tian et al. 2020, arXiv:1910.10699, section 3; banks and Z as in RepDistiller@b84f547, crd/memory.py.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor

    def __init__(
        self, student: int, teacher: int, width: int, size: int, *, tau: float, momentum: float, eps: float = 1e-7
    ) -> None:
        super().__init__()
        self.tau, self.momentum, self.eps = tau, momentum, eps
        self.student_embed, self.teacher_embed = nn.Linear(student, width), nn.Linear(teacher, width)
        bound = math.sqrt(3 / width)  # entries of variance 1 / d, so that rows have a length of about 1
        self.register_buffer("student_bank", torch.empty(size, width).uniform_(-bound, bound))
        self.register_buffer("teacher_bank", torch.empty(size, width).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), math.nan))  # not estimated yet

    def forward(self, student: Tensor, teacher: Tensor, choice: Tensor) -> Contrasted:
        """Compare a batch with both banks, which stay as they are.

        Args:
            student: The student's penultimate vectors (N, D).
            teacher: The teacher's penultimate vectors (N, D'), constants.
            choice: Instances (N, 1 + K) to compare image i with: its positive, then its negatives.
        """
        size = len(self.student_bank)
        u = unit(self.student_embed(wide(student)))
        v = unit(self.teacher_embed(wide(teacher).detach()))
        log_u = log_scores(u, self.teacher_bank, choice, self.tau)
        log_v = log_scores(v, self.student_bank, choice, self.tau)
        # Estimated in every step, since to know whether it is needed the host would have to wait for the device.
        fresh = torch.stack([estimate_log_z(log_u, size), estimate_log_z(log_v, size)])
        log_z = torch.where(self.log_z.isnan(), fresh, self.log_z)
        log_u, log_v = log_u - log_z[0], log_v - log_z[1]
        loss_u, loss_v = nce_loss(log_u, size, eps=self.eps), nce_loss(log_v, size, eps=self.eps)
        return Contrasted(u, v, log_u, log_v, log_z, loss_u, loss_v)

    @torch.no_grad()
    def update(self, index: Tensor, student: Tensor, teacher: Tensor, log_z: Tensor) -> None:
        """Mix embeddings (N, d) into the banks' rows ``index`` (N,), and keep ``log_z`` (2,) if it is the first."""
        update_bank(self.student_bank, index, student, self.momentum)
        update_bank(self.teacher_bank, index, teacher, self.momentum)
        self.log_z.copy_(torch.where(self.log_z.isnan(), log_z, self.log_z))


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (N, d) divided by their length; 0 without gradient where there is no direction."""
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > _TINY, vectors / length.clamp_min(_TINY), 0.0)


def log_scores(anchors: Tensor, bank: Tensor, choice: Tensor, tau: float) -> Tensor:
    """Return the logs of unnormalised scores (N, 1 + K): <bank entry, anchor> / tau.

    Args:
        anchors: Embeddings (N, d).
        bank: Memory bank (n, d) of the other network, a constant.
        choice: Rows of the bank (N, 1 + K).
        tau: Temperature, > 0.
    """
    # All n products: a gather of K rows of the bank for every image would be K * d numbers instead of n.
    return ((anchors / tau) @ bank.detach().T).gather(1, choice)


def estimate_log_z(logs: Tensor, size: int) -> Tensor:
    """Return the log of Z = n * mean score, a constant, from log scores (N, 1 + K) among n = ``size`` instances."""
    return logs.detach().flatten().logsumexp(0) + math.log(size / logs.numel())


def nce_loss(log_p: Tensor, size: int, *, eps: float) -> Tensor:
    """Return the noise-contrastive loss in nats: summed over positive and negatives, averaged over the batch.

    Args:
        log_p: Log scores (N, 1 + K), the positive first, reduced by log Z.
        size: Number n of instances; the noise is uniform, with density 1 / n.
        eps: What the reference adds to the denominators.

    Source:
        Tian et al. 2020, arXiv:1910.10699, Eq. (18), with P = score / Z for its score; log space throughout.
    """
    negatives = log_p.shape[1] - 1
    noise = negatives / size
    odds = log_p - math.log(noise + eps)
    # The threshold is where softplus equals its argument in float64.
    positive, negative = F.softplus(-odds[:, 0], threshold=40), F.softplus(odds[:, 1:], threshold=40)
    return (positive + negative.sum(1)).mean() + negatives * math.log1p(eps / noise)


def update_bank(bank: Tensor, index: Tensor, vectors: Tensor, momentum: float) -> None:
    """Replace rows ``index`` (N,), all different, by momentum * row + (1 - momentum) * vector, at length 1."""
    with torch.no_grad():
        mixed = momentum * bank[index] + (1 - momentum) * vectors.detach().to(bank.dtype)
        bank.index_copy_(0, index, unit(mixed))


def draw_negatives(labels: Tensor, own: Tensor, count: int, largest: int) -> Tensor:
    """Return K = ``count`` random instances (N, K) of other classes for each image.

    For each image they are a uniform draw without replacement (with replacement where there are fewer than K such
    instances); all images walk through the same random permutation, each from a random start.

    Args:
        labels: Classes of all n instances (n,).
        own: Classes of the images (N,); every one must leave an instance of another class.
        count: K, at least 1.
        largest: Number of instances of the most frequent class.
    """
    size, device = len(labels), labels.device
    # So many hold K of other classes, whatever the class, if there are K.
    window = min(size, count + largest)
    order = torch.randperm(size, device=device)
    start = torch.randint(size, (len(own), 1), device=device)
    walk = torch.cat([order, order[:window]])[start + torch.arange(window, device=device)]
    other = labels[walk] != own[:, None]
    rank = other.cumsum(1)  # of an instance among those of other classes, from 1
    # What is not wanted goes to one more column. A boolean mask would wait for the device.
    column = torch.where(other & (rank <= count), rank - 1, count)
    chosen = walk.new_zeros(len(own), count + 1).scatter_(1, column, walk)[:, :count]
    if count <= size - largest:
        return chosen
    found = rank[:, -1:]
    again = draw_below(found.expand(-1, count))
    return chosen.gather(1, torch.where(found < count, again, torch.arange(count, device=device)))


def draw_of_class(own: Tensor, by_class: Tensor, start: Tensor, size: Tensor) -> Tensor:
    """Return a random instance (N,) of each image's class, possibly the image itself.

    Args:
        own: Classes of the images (N,).
        by_class: All instances, sorted by class (n,).
        start: Where each class starts in ``by_class`` (C,).
        size: Number of instances of each class (C,).
    """
    return by_class[start[own] + draw_below(size[own])]


def draw_below(bounds: Tensor) -> Tensor:
    """Return a random whole number in [0, bound) for each of ``bounds``, which are at least 1."""
    drawn = (torch.rand(bounds.shape, device=bounds.device) * bounds).long()
    return torch.minimum(drawn, bounds - 1)  # the product may be rounded up to the bound


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register CRD."""
    return [CRD]
