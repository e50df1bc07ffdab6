"""Attention transfer: at every stage the student is to be active at the same positions as the teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.maps import pointlike, taps_behind_stem, to_smaller, unpaired
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, Pair, PairInfo, Source, Term

_TINY = 1e-12  # energy below which a map has no direction


class ATOptions(Options):
    """Weight and form of the attention maps."""

    weight: float = Field(1000.0, ge=0, description="weight of the attention term")
    p: int = Field(2, ge=1, description="power of a feature in the attention map; odd powers keep its sign")


class AT(Method[ATOptions]):
    """Cross-entropy plus the squared distance of the attention maps at all stages behind the stem."""

    name = "at"
    source = Source(
        title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        year=2017,
        url="https://arxiv.org/abs/1612.03928",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference and the authors' code, the squared distance averaged over positions instead of "
        "the distance itself.",
    )
    options_type = ATOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "slices"

    def __init__(self, options: ATOptions, context: Context) -> None:
        super().__init__(options, context)
        self.taps = TapRequest(taps_behind_stem(context.student), taps_behind_stem(context.teachers[0]))

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:  # noqa: ARG003
        """Return weight 0.1 under ``fair_baseline``."""
        return {"weight": 0.1} if anchor == "fair_baseline" else {}

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline stages that cannot be paired, and maps of one position, whose attention is always 1."""
        return unpaired(pair) or pointlike(pair)

    def losses(self, batch: Batch) -> Losses:
        pairs = zip(batch.student.stages, batch.teacher.stages, strict=True)
        value = torch.stack([at_loss(ours, theirs, p=self.options.p) for ours, theirs in pairs]).sum()
        return {"ce": batch.supervised(), "kd": batch.kd(), "at": Term(value, self.options.weight)}


def attention(maps: Tensor, p: int) -> Tensor:
    """Return the attention maps (N, H*W) of maps (N, C, H, W), of unit length; 0 without gradient where all are dead.

    Source:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.1; mean instead of sum over channels, which the
        normalisation removes, and as in the reference no absolute value, which matters for odd powers only.
    """
    energy = wide(maps).pow(p).mean(1).flatten(1)
    alive = energy.abs().amax(1, keepdim=True) > _TINY
    # Dividing a dead map by the guard of the norm would multiply its gradient by 1e12 (with p = 1 it has one).
    return torch.where(alive, F.normalize(torch.where(alive, energy, 1.0), dim=1), 0.0)


def at_loss(student: Tensor, teacher: Tensor, *, p: int) -> Tensor:
    """Return the squared distance of one stage's attention maps, averaged over images and positions; in [0, 4/(H*W)].

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H', W'), a constant; the larger of the two is averaged to the size of the smaller.
        p: Power of the features.

    Source:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928, Eq. (2), squared and averaged as in the reference code.
    """
    ours, theirs = to_smaller(wide(student), wide(teacher).detach())
    return F.mse_loss(attention(ours, p), attention(theirs, p))


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register AT."""
    return [AT]
