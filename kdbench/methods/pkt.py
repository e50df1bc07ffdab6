"""Probabilistic knowledge transfer: for each image, a distribution over the batch by similarity, as the teacher's."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, Source, Taps, Term

_EPS = 1e-7  # added to lengths and to probabilities in the logarithm


class PKTOptions(Options):
    """Weight of the term."""

    weight: float = Field(
        30000.0,
        ge=0,
        description="weight of the divergence, a mean over all pairs of images in a forward pass: its size falls with "
        "their number",
    )


class PKT(Method[PKTOptions]):
    """Cross-entropy plus the divergence between both networks' similarities of embeddings, as distributions."""

    name = "pkt"
    source = Source(
        title="Learning Deep Representations with Probabilistic Knowledge Transfer",
        year=2018,
        url="https://arxiv.org/abs/1803.10837",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference, the mean over all pairs instead of the paper's sum, hence the large weight, "
        "and an image's similarity to itself is included; an embedding of zeros gets no gradient (in the reference it "
        "is not a number), and similarities are at least 0 where rounding makes them negative.",
    )
    options_type = PKTOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "gathered"
    taps = TapRequest(Taps(embedding=True), Taps(embedding=True))

    def __init__(self, options: PKTOptions, context: Context) -> None:
        super().__init__(options, context)
        if context.batch_size < 2:
            raise Unsupported("the images of a batch are compared with one another, which needs two or more")

    def losses(self, batch: Batch) -> Losses:
        student, teacher = batch.student.embedding, batch.teacher.embedding
        assert student is not None
        assert teacher is not None
        value = pkt_loss(student, teacher)
        return {"ce": batch.supervised(), "kd": batch.kd(), "pkt": Term(value, self.options.weight)}


def affinities(embeddings: Tensor) -> Tensor:
    """Return the probabilities (N, N) of embeddings (N, D): each row (cosine + 1) / 2 to all images, over its sum.

    Source:
        Passalis & Tefas 2018, arXiv:1803.10837, section 3, cosine kernel.
    """
    x = wide(embeddings)
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # A zero vector has no direction to change; divided by eps, its gradient would drown all others.
    unit = torch.where(length > 0, x, x.detach()) / (length + _EPS)
    kernel = ((unit @ unit.T + 1) / 2).clamp_min(0)  # a cosine may be -1 minus a rounding error
    return kernel / kernel.sum(1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of the affinities in nats, averaged over all N^2 pairs of images.

    Args:
        student: Embeddings (N, D).
        teacher: Embeddings (N, D'), constants.

    Source:
        Passalis & Tefas 2018, arXiv:1803.10837, section 3, with the mean of the reference code instead of the sum.
    """
    ours, theirs = affinities(student), affinities(teacher.detach())
    return (theirs * ((theirs + _EPS) / (ours + _EPS)).log()).mean()


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register PKT."""
    return [PKT]
