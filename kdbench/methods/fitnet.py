"""FitNet hints: the student's map at one stage, taken through a learned regressor, is to equal the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.maps import Connector, no_maps, unconnectable
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, PairInfo, Source, Taps, Term


class FitNetOptions(Options):
    """Where the hint is taken and how much it counts; under fair_baseline the published values hold, too."""

    weight: float = Field(100.0, ge=0, description="weight of the hint term")
    stage: int = Field(2, ge=0, description="stage of both networks whose maps are compared; 0 is the stem")


class FitNet(Method[FitNetOptions]):
    """Cross-entropy plus the mean squared error of the regressed student map at the hint stage."""

    name = "fitnet"
    source = Source(
        title="FitNets: Hints for Thin Deep Nets",
        year=2015,
        url="https://arxiv.org/abs/1412.6550",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference: hint and task are trained together instead of one after the other, the "
        "regressor has BN, and the squared error is a mean.",
    )
    options_type = FitNetOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "slices"

    def __init__(self, options: FitNetOptions, context: Context) -> None:
        super().__init__(options, context)
        stage, student, teacher = options.stage, context.student, context.teachers[0]
        for network in (student, teacher):
            if stage >= len(network.stages):
                raise Unsupported(f"stage is {stage}, but {network.name} has stages 0..{len(network.stages) - 1}")
        ours, theirs = student.stages[stage], teacher.stages[stage]
        if reason := unconnectable(ours, theirs):
            raise Unsupported(f"at stage {stage} {reason}; choose another stage")
        if context.batch_size == theirs.height * theirs.width == 1:
            raise Unsupported("the regressor's BN needs more than one value per channel: a batch of one is too small")
        self.taps = TapRequest(Taps((stage,)), Taps((stage,)))
        self.regressor = Connector(ours, theirs, relu=True)

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline networks without maps, and pairs without a stage where a regressor fits."""
        if reason := no_maps(pair):
            return reason
        shared = zip(pair.student.stages, pair.teachers[0].stages, strict=False)
        reasons = [unconnectable(ours, theirs) for ours, theirs in shared]
        return reasons[-1] if all(reasons) else None

    def losses(self, batch: Batch) -> Losses:
        value = hint_loss(self.regressor(batch.student.stages[0]), batch.teacher.stages[0])
        return {"ce": batch.supervised(), "kd": batch.kd(), "hint": Term(value, self.options.weight)}


def hint_loss(regressed: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error, averaged over all elements, in squared units of the teacher's features.

    Args:
        regressed: The student's map as the regressor returns it, (N, C, H, W).
        teacher: (N, C, H, W), a constant.

    Source:
        Romero et al. 2015, arXiv:1412.6550, Eq. (3), where it is half the sum of squares.
    """
    return F.mse_loss(wide(regressed), wide(teacher).detach())


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register FitNet."""
    return [FitNet]
