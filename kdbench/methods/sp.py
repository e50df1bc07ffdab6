"""Similarity-preserving distillation: images that excite the teacher alike are to excite the student alike."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, PairInfo, Source, Taps, Term

_SHORTEST = 1e-12  # smallest length that a row is divided by
LAST = Taps((-1,))


class SPOptions(Options):
    """Weight of the term."""

    weight: float = Field(
        3000.0,
        ge=0,
        description="weight of the similarity term, a mean over all pairs of images in a forward pass: its size falls "
        "with their number",
    )


class SP(Method[SPOptions]):
    """Cross-entropy plus the squared distance of both networks' similarities of the images of a batch.

    Compared are the deepest stages. Their sizes, and whether they are maps or tokens, do not matter.
    """

    name = "sp"
    source = Source(
        title="Similarity-Preserving Knowledge Distillation",
        year=2019,
        url="https://arxiv.org/abs/1907.09682",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="The similarities of an image whose features are all 0 stay 0 and get no gradient through their "
        "normalisation, which in the reference multiplies it by 1e12.",
    )
    options_type = SPOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "gathered"
    taps = TapRequest(student=LAST, teachers=LAST)

    def __init__(self, options: SPOptions, context: Context) -> None:
        super().__init__(options, context)
        if context.batch_size < 2:
            raise Unsupported("the images of a batch are compared with one another, which needs two or more")

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        bare = next((network for network in (pair.student, *pair.teachers[:1]) if not network.stages), None)
        return None if bare is None else f"{bare.name} has no stages"

    def losses(self, batch: Batch) -> Losses:
        value = sp_loss(batch.student.stages[-1], batch.teacher.stages[-1])
        return {"ce": batch.supervised(), "kd": batch.kd(), "sp": Term(value, self.options.weight)}


def similarities(features: Tensor) -> Tensor:
    """Return each image's similarities (N, N) to all images: inner products of features (N, ...), rows of length 1.

    Source:
        Tung & Mori 2019, arXiv:1907.09682, Eq. (1) and (2).
    """
    flat = wide(features).flatten(1)
    products = flat @ flat.T
    length: Tensor = torch.linalg.vector_norm(products, dim=1, keepdim=True)
    # A row of zeros has no direction to change; divided by almost nothing, its gradient would drown all others.
    return torch.where(length > _SHORTEST, products, products.detach()) / length.clamp_min(_SHORTEST)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference of the similarities, averaged over all N^2 pairs; in [0, 4/N].

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...) of any other size, constants.

    Source:
        Tung & Mori 2019, arXiv:1907.09682, Eq. (4).
    """
    return (similarities(student) - similarities(teacher.detach())).square().mean()


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register SP."""
    return [SP]
