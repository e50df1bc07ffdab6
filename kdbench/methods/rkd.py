"""Relational knowledge distillation: distances and angles between the images of a batch, as the teacher sees them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, Source, Taps, Term

_SMALLEST = 1e-12  # squared distance below which two embeddings count as equal


class RKDOptions(Options):
    """Weights of the parts and kind of distance."""

    weight: float = Field(1.0, ge=0, description="weight of both parts together")
    distance_weight: float = Field(25.0, ge=0, description="weight of the distances inside the term")
    angle_weight: float = Field(50.0, ge=0, description="weight of the angles inside the term")
    squared: bool = Field(False, description="compare squared distances instead of distances")


class RKD(Method[RKDOptions]):
    """Cross-entropy plus what the embeddings of a batch differ in from the teacher's, in distances and in angles.

    The angles of N images are N^3 numbers, each network's differences N^2 D for embeddings of width D.
    """

    name = "rkd"
    source = Source(
        title="Relational Knowledge Distillation",
        year=2019,
        url="https://arxiv.org/abs/1904.05068",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference, means include pairs and triples that repeat an image, which are 0; embeddings "
        "closer than 1e-6 count as equal, so they form no angle and get no gradient from it.",
    )
    options_type = RKDOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "gathered"
    taps = TapRequest(Taps(embedding=True), Taps(embedding=True))

    def __init__(self, options: RKDOptions, context: Context) -> None:
        super().__init__(options, context)
        if context.batch_size < 2:
            raise Unsupported("the images of a batch are compared with one another, which needs two or more")

    def losses(self, batch: Batch) -> Losses:
        student, teacher, o = batch.student.embedding, batch.teacher.embedding, self.options
        assert student is not None
        assert teacher is not None
        value = rkd_loss(
            student, teacher, distance_weight=o.distance_weight, angle_weight=o.angle_weight, squared=o.squared
        )
        return {"ce": batch.supervised(), "kd": batch.kd(), "rkd": Term(value, o.weight)}


def rkd_loss(
    student: Tensor, teacher: Tensor, *, distance_weight: float, angle_weight: float, squared: bool = False
) -> Tensor:
    """Return distance_weight * distance part + angle_weight * angle part; arguments as in :func:`rkd_parts`."""
    distance, angle = rkd_parts(student, teacher, squared=squared)
    return distance_weight * distance + angle_weight * angle


def rkd_parts(student: Tensor, teacher: Tensor, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Return the Huber losses (threshold 1) of distances and of angles, averaged over all N^2 pairs and N^3 triples.

    Args:
        student: Embeddings (N, D), N >= 2.
        teacher: Embeddings (N, D'), constants.
        squared: Whether squared distances are compared.

    Source:
        Park et al. 2019, arXiv:1904.05068, sections 3.2.1 and 3.2.2; means over all tuples as in the reference code.
    """
    ours, theirs = difference_products(student), difference_products(teacher.detach())
    distance = F.huber_loss(distances(ours, squared=squared), distances(theirs, squared=squared))
    return distance, F.huber_loss(cosines(ours), cosines(theirs))


def difference_products(embeddings: Tensor) -> Tensor:
    """Return <x_j - x_i, x_k - x_i> at [i, j, k] (N, N, N) for embeddings x (N, D).

    Of differences, since squared lengths minus twice the inner product are rounding noise where images are alike.
    """
    x = wide(embeddings)
    differences = x[None] - x[:, None]
    return differences @ differences.mT


def distances(products: Tensor, *, squared: bool) -> Tensor:
    """Return the distances (N, N), or their squares, over their mean, from :func:`difference_products` (N, N, N).

    Equal embeddings count as 1e-6 apart, without gradient, so that every pair is positive and part of the mean.
    """
    size = len(products)
    square = products.diagonal(dim1=1, dim2=2).clamp_min(_SMALLEST)
    itself = torch.eye(size, dtype=torch.bool, device=products.device)
    distance = (square if squared else square.sqrt()).masked_fill(itself, 0.0)
    return distance / (distance.sum() / (size * (size - 1)))


def cosines(products: Tensor) -> Tensor:
    """Return the cosine of the angle at i between j and k, 0 where i equals one, from :func:`difference_products`."""
    square = products.diagonal(dim1=1, dim2=2)
    inverse = torch.where(square > _SMALLEST, square.clamp_min(_SMALLEST).rsqrt(), 0.0)
    return products * inverse[:, :, None] * inverse[:, None, :]


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register RKD."""
    return [RKD]
