"""ReviewKD: deep student features are fused into shallower ones before each is compared with the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import warmup_factor, wide
from kdbench.maps import pool_to, taps_behind_stem, unpaired
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, Features, LossWeights, NetworkInfo, Pair, PairInfo, Source, StageShape, Taps, Term

LEVELS = (4, 2, 1)  # sides to which the hierarchical context loss pools
WIDEST = 512  # most channels in which maps are fused

# Published weight per (teacher, student), from the official script; 1 where there is none.
_PUBLISHED_WEIGHT = {
    ("wrn_40_2", "wrn_16_2"): 5.0,
    ("wrn_40_2", "wrn_40_1"): 5.0,
    ("wrn_40_2", "ShuffleV1"): 5.0,
    ("resnet32x4", "resnet8x4"): 5.0,
    ("resnet32x4", "ShuffleV1"): 5.0,
    ("resnet32x4", "ShuffleV2"): 8.0,
    ("resnet56", "resnet20"): 0.6,
    ("resnet110", "resnet32"): 1.0,
}


class ReviewKDOptions(Options):
    """Weight and warm-up of the loss."""

    weight: float = Field(1.0, ge=0, description="weight of the hierarchical context loss, summed over stages")
    warmup: float = Field(20 / 240, ge=0, le=1, description="share of the epochs over which the weight grows")


class ReviewKD(Method[ReviewKDOptions]):
    """Fuses the student's maps from deep to shallow and compares them with the teacher's in a pyramid of means.

    Compared are the stages behind the stem and, as a 1x1 map, the embedding: the student's after activation, the
    teacher's before it.
    """

    name = "reviewkd"
    source = Source(
        title="Distilling Knowledge via Knowledge Review",
        year=2021,
        url="https://arxiv.org/abs/2104.09044",
        code="dvlab-research/ReviewKD@cede6ea",
        deviations="The warm-up counts epochs from 1 (as in mdistiller; the official code starts with weight 0) and is "
        "a share of the epochs (20 of the published 240); the teacher is in eval mode, which the official CIFAR script "
        "leaves out.",
    )
    options_type = ReviewKDOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "slices"

    def __init__(self, options: ReviewKDOptions, context: Context) -> None:
        super().__init__(options, context)
        if context.batch_size < 2:
            raise Unsupported("the embedding is normalised over the batch, which needs two images or more")
        self.taps = TapRequest(
            student=taps_behind_stem(context.student, embedding=True),
            teachers=Taps("all", pre_activation=True, embedding=True),
        )
        self.review = Review(compared(context.student), compared(context.teachers[0]))

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:
        """Return the published weight of the pair under ``crd``, and 1 under ``fair_baseline``."""
        if anchor == "crd":
            weight = _PUBLISHED_WEIGHT.get((pair.teachers[0], pair.student)) if pair.teachers else None
            return {} if weight is None else {"weight": weight}
        # An attention_weight of 0.5 that goes with it has no counterpart: there is one loss.
        return {"weight": 1.0} if anchor == "fair_baseline" else {}

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        return unpaired(pair)

    def losses(self, batch: Batch) -> Losses:
        fused = self.review(with_embedding(batch.student, batch.student.stages))
        value = hcl(fused, with_embedding(batch.teacher, batch.teacher.pre_stages[1:]))
        ramp = warmup_factor(batch.epoch, self.options.warmup * self.context.epochs)
        return {"ce": batch.supervised(), "kd": batch.kd(), "hcl": Term(value, self.options.weight * ramp)}


def compared(network: NetworkInfo) -> list[StageShape]:
    """Return the shapes of the stages behind the stem, shallow to deep, and of the embedding as a 1x1 map."""
    return [*network.stages[1:], StageShape((network.embedding, 1, 1))]


def with_embedding(features: Features, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the maps and behind them the embedding as maps (N, D, 1, 1)."""
    assert features.embedding is not None
    return [*maps, features.embedding[:, :, None, None]]


class Review(nn.Module):
    """The fusion modules of all stages.

    Args:
        student: Shapes of the student's maps, shallow to deep.
        teacher: Shapes of the teacher's maps, equally many.

    Source:
        Chen et al. 2021, arXiv:2104.09044, section 3; all stages are fused in as many channels as the student's
        deepest map has, but no more than 512.
    """

    def __init__(self, student: Sequence[StageShape], teacher: Sequence[StageShape]) -> None:
        super().__init__()
        middle, deepest = min(WIDEST, student[-1].channels), len(student) - 1
        pairs = enumerate(zip(student, teacher, strict=True))
        self.abf = nn.ModuleList(Fusion(ours, theirs, middle, fuses=i < deepest) for i, (ours, theirs) in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return a map in the teacher's shape for each of the student's, shallow to deep."""
        fused: list[Tensor] = []
        carried: Tensor | None = None
        for abf, own in zip(reversed(self.abf), reversed(maps), strict=True):
            carried, out = abf(own, carried)
            fused.append(out)
        return fused[::-1]


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a student's map with the one that comes from the deeper stages.

    Args:
        student: Shape of the student's map.
        teacher: Shape of the map it is compared with.
        middle: Channels in which maps are fused and passed on.
        fuses: Whether there is a deeper stage.

    Source:
        Chen et al. 2021, arXiv:2104.09044, section 3.3.
    """

    def __init__(self, student: StageShape, teacher: StageShape, middle: int, *, fuses: bool) -> None:
        super().__init__()
        self.size = (teacher.height, teacher.width)
        self.conv1 = nn.Conv2d(student.channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.att = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        self.conv2 = nn.Conv2d(middle, teacher.channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(teacher.channels)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # as in the reference: no activation follows

    def forward(self, maps: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (what is passed on, what is compared) of maps (N,C,H,W) and what the deeper stage passed on."""
        fused: Tensor = self.bn1(self.conv1(wide(maps)))
        if self.att is not None and carried is not None:
            deeper = resize(carried, (maps.shape[2], maps.shape[3]))
            gates = torch.sigmoid(self.att(torch.cat([fused, deeper], dim=1)))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        # What goes on to the shallower stage has the teacher's size: where that is smaller, detail is lost for good.
        fused = resize(fused, self.size)
        return fused, self.bn2(self.conv2(fused))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (N,C,H,W) at another height and width: row i of m is row floor(i n / m) of n, and so with columns."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest")


def hcl(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the hierarchical context loss: the sum over stages of :func:`hcl_stage`, both shallow to deep."""
    return torch.stack([hcl_stage(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]).sum()


def hcl_stage(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the weighted mean, over levels, of the mean squared difference of two maps, in their squared unit.

    The maps as they are weigh 1, those pooled to 4x4, 2x2 and 1x1 each half of the level before; levels that are not
    smaller than the maps are left out, so the first one used weighs 1/2.

    Args:
        student: Fused maps (N,C,H,W).
        teacher: Maps (N,C,H,W), constants.

    Source:
        Chen et al. 2021, arXiv:2104.09044, section 3.3; dvlab-research/ReviewKD@cede6ea, CIFAR-100/model/reviewkd.py.
    """
    # Pooling is linear, so the difference is pooled instead of both maps.
    difference = wide(student) - wide(teacher).detach()
    loss, weight, total = difference.square().mean(), 1.0, 1.0
    for side in (level for level in LEVELS if level < difference.shape[2]):
        weight /= 2
        loss = loss + weight * pool_to(difference, side).square().mean()
        total += weight
    return loss / total


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register ReviewKD."""
    return [ReviewKD]
