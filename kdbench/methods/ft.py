"""Factor transfer: the student's translated map follows the attention of the teacher's paraphrased one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.maps import no_maps, to_smaller
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Phase, TapRequest
from kdbench.types import Context, LossWeights, Pair, PairInfo, Source, Taps, Term

_SLOPE = 0.1  # of the leaky ReLUs


class FTOptions(Options):
    """Size of the factor, how the paraphraser is trained, and the weight of the loss."""

    # fair_baseline's feature_weight 0.5 has no counterpart: the factors are the only features compared.
    weight: float = Field(200.0, ge=0, description="weight of the factor term")
    k: float = Field(0.5, gt=0, description="channels of the factor as a share of the teacher's, rounded down")
    p2: Literal[1, 2] = Field(1, description="power of the difference of two attention maps; 1: its size")
    paraphraser_share: float = Field(
        30 / 240, gt=0, le=1, description="epochs of the paraphraser as a share of the anchor's, on top of them"
    )
    paraphraser_lr: float = Field(0.01, gt=0, description="learning rate of the paraphraser, constant")


class FT(Method[FTOptions]):
    """A paraphraser (autoencoder) of the teacher's last map first; then CE plus the factor term towards its code."""

    name = "ft"
    source = Source(
        title="Paraphrasing Complex Network: Network Compression via Factor Transfer",
        year=2018,
        url="https://arxiv.org/abs/1802.04977",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference, factors are compared by their attention maps instead of whole, the "
        "reconstruction error is squared, and the translator has BN; the paraphraser's training is a share of the "
        "epochs (30 of the published 240).",
    )
    options_type = FTOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "slices"
    taps = TapRequest(Taps((-1,)), Taps((-1,)))

    def __init__(self, options: FTOptions, context: Context) -> None:
        super().__init__(options, context)
        ours, theirs = context.student.stages[-1].channels, context.teachers[0].stages[-1].channels
        channels = math.floor(options.k * theirs)
        if channels < 1:
            raise Unsupported(f"k is {options.k}, which leaves no channel of the teacher's {theirs}; give a larger k")
        self.paraphraser = Paraphraser(theirs, channels)
        self.translator = make_translator(ours, channels)

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:
        """Return weight 1 under ``fair_baseline``; under ``crd`` VGG students' own rate for the paraphraser, too."""
        if anchor == "crd":
            return {"paraphraser_lr": 0.05} if pair.student.startswith("vgg") else {}
        return {"weight": 1.0} if anchor == "fair_baseline" else {}

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline networks without maps, and maps of one position, whose attention is always 1."""
        if reason := no_maps(pair):
            return reason
        student, teacher = pair.student.stages[-1], pair.teachers[0].stages[-1]
        if min(student.height, teacher.height) < 2:
            return f"attention over positions needs more than one; the last maps are {student} and {teacher}"
        return None

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                "paraphraser",
                epochs=self.context.epochs_for(self.options.paraphraser_share),
                losses=self.paraphraser_losses,
                parameters=self.paraphraser.parameters,
                learning_rate=self.options.paraphraser_lr,
                rate_factor=lambda _: 1.0,
                student="off",
            ),
            Phase(),
        )

    def paraphraser_losses(self, batch: Batch) -> Losses:
        """Return the loss of the paraphraser."""
        teacher = batch.teacher.stages[-1]
        return {"reconstruction": Term(reconstruction_loss(self.paraphraser(teacher), teacher))}

    def losses(self, batch: Batch) -> Losses:
        with torch.no_grad():  # fixed since its own phase
            target = self.paraphraser.encoder(batch.teacher.stages[-1])
        value = ft_loss(self.translator(batch.student.stages[-1]), target, self.options.p2)
        return {"ce": batch.supervised(), "kd": batch.kd(), "ft": Term(value, self.options.weight)}


class Paraphraser(nn.Module):
    """Convolutional autoencoder of the teacher's map; its code is the teacher's factor.

    Args:
        channels: Channels of the teacher's map.
        factor: Channels of the factor.

    Source:
        Kim, Park, Kwak 2018, arXiv:1802.04977, section 3.1; RepDistiller@b84f547, models/util.py, without BN.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        down = [(channels, channels), (channels, factor), (factor, factor)]
        up = [(outputs, inputs) for inputs, outputs in reversed(down)]
        self.encoder = nn.Sequential(
            *(layer for c in down for layer in (nn.Conv2d(*c, 3, padding=1), nn.LeakyReLU(_SLOPE)))
        )
        self.decoder = nn.Sequential(
            *(layer for c in up for layer in (nn.ConvTranspose2d(*c, 3, padding=1), nn.LeakyReLU(_SLOPE)))
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the reconstruction of maps (N, C, H, W)."""
        rebuilt: Tensor = self.decoder(self.encoder(maps))
        return rebuilt


def make_translator(channels: int, factor: int) -> nn.Sequential:
    """Return the module from the student's map (N, channels, H, W) to its factor (N, factor, H, W)."""
    sizes = [(channels, channels), (channels, factor), (factor, factor)]
    return nn.Sequential(
        *(layer for c in sizes for layer in (nn.Conv2d(*c, 3, padding=1), nn.BatchNorm2d(c[1]), nn.LeakyReLU(_SLOPE)))
    )


def reconstruction_loss(rebuilt: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of the rebuilt maps (N, C, H, W); the teacher's are a constant."""
    return F.mse_loss(wide(rebuilt), wide(teacher).detach())


def attention(factor: Tensor) -> Tensor:
    """Return where a factor (N, C, H, W) is strong: its mean square over channels as unit vectors (N, H*W)."""
    return F.normalize(wide(factor).square().mean(1).flatten(1))


def ft_loss(student: Tensor, teacher: Tensor, p2: int = 1) -> Tensor:
    """Return the mean difference of two factors' attention maps; the larger factor is pooled to the smaller first.

    Args:
        student: Student's factor (N, C, H, W).
        teacher: Teacher's factor (N, C', H', W'), a constant.
        p2: 1 for the absolute difference, else its power.

    Source:
        RepDistiller@b84f547, distiller_zoo/FT.py. The paper, arXiv:1802.04977, Eq. (3), compares the normalised
        factors themselves.
    """
    ours, theirs = to_smaller(wide(student), wide(teacher).detach())
    gap = attention(ours) - attention(theirs)
    return gap.abs().mean() if p2 == 1 else gap.pow(p2).mean()


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register FT."""
    return [FT]
