"""Neuron selectivity transfer: the student's channels are to respond at positions distributed as the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.maps import pointlike, taps_behind_stem, to_smaller, unpaired
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, PairInfo, Source, Term


class NSTOptions(Options):
    """Weight of the term."""

    weight: float = Field(50.0, ge=0, description="weight of the squared maximum mean discrepancy (MMD)")


class NST(Method[NSTOptions]):
    """Cross-entropy plus the squared MMD between the channels of both networks at all stages behind the stem."""

    name = "nst"
    source = Source(
        title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        year=2017,
        url="https://arxiv.org/abs/1707.01219",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference, the squared MMD is not halved and summed over all stages; computed from mean "
        "outer products instead of channel by channel where that is cheaper, which is the same number.",
    )
    options_type = NSTOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "slices"

    def __init__(self, options: NSTOptions, context: Context) -> None:
        super().__init__(options, context)
        self.taps = TapRequest(taps_behind_stem(context.student), taps_behind_stem(context.teachers[0]))

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline stages that cannot be paired, and maps of one position, whose channels are all alike."""
        return unpaired(pair) or pointlike(pair)

    def losses(self, batch: Batch) -> Losses:
        pairs = zip(batch.student.stages, batch.teacher.stages, strict=True)
        value = torch.stack([nst_loss(ours, theirs) for ours, theirs in pairs]).sum()
        return {"ce": batch.supervised(), "kd": batch.kd(), "nst": Term(value, self.options.weight)}


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared MMD of one stage, averaged over the batch; in [0, 2].

    A sample's channels, each a unit vector over the positions, are two sets compared under k(a, b) = <a, b>^2, whose
    features are outer products: the MMD is the distance of the mean outer products. They are formed, or the kernels
    of all channels, whichever takes fewer operations. Channels that are 0 everywhere stay 0 and get no gradient.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H', W'), a constant; the larger of the two is averaged to the size of the smaller.

    Source:
        Huang & Wang 2017, arXiv:1707.01219, section 4, polynomial kernel of degree 2 without offset; not halved, as
        in the reference code.
    """
    ours, theirs = (F.normalize(maps.flatten(2), dim=2) for maps in to_smaller(wide(student), wide(teacher).detach()))
    mine, others, positions = ours.shape[1], theirs.shape[1], ours.shape[2]
    if mine**2 + mine * others + others**2 <= positions * (mine + others):
        return _mean_kernel(theirs, theirs) + _mean_kernel(ours, ours) - 2 * _mean_kernel(ours, theirs)
    return (ours.mT @ ours / mine - theirs.mT @ theirs / others).square().sum((1, 2)).mean()


def _mean_kernel(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean of <a, b>^2 over samples and over all pairs of channels; (N, C, P) and (N, C', P)."""
    return (one @ other.mT).square().mean()


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register NST."""
    return [NST]
