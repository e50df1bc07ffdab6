"""SimKD: the student's features are projected onto the teacher's, whose own classifier then predicts."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.maps import no_maps, pool_to, to_smaller
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Setup, TapRequest
from kdbench.types import Context, LossWeights, PairInfo, Source, Taps, Term

LAST = Taps((-1,))


class SimKDOptions(Options):
    """Weight of the loss and width of the projector."""

    weight: float = Field(1.0, ge=0, description="weight of the squared distance of the projected maps")
    factor: int = Field(2, ge=1, le=8, description="the projector's inner width is the teacher's width over this")


class SimKD(Method[SimKDOptions]):
    """Trains student and projector to give the map that the teacher pools; deploys both with the teacher's classifier.

    The target is what the teacher's pooling sees: the deepest stage's output, behind the final BN-ReLU or 1x1
    convolution where the network has one. So the target is after a ReLU in every family, as the projector's output.
    """

    name = "simkd"
    source = Source(
        title="Knowledge Distillation with the Reused Teacher Classifier",
        year=2022,
        url="https://arxiv.org/abs/2203.14001",
        code="DefangChen/SimKD@2b389c3",
        deviations="The target is the map the teacher pools; the reference takes the last stage's output, which its "
        "classifier does not fit where layers lie in between (WRN, MobileNetV2, ShuffleNetV2). Under an anchor that "
        "fixes CE and KD weights (published: 0) these train the student, and with it a classifier of its own that is "
        "not deployed. Mean instead of the paper's sum of squares.",
    )
    options_type = SimKDOptions
    published = LossWeights(ce=0.0, kd=0.0)
    distributed = "slices"
    taps = TapRequest(student=LAST, teachers=LAST)

    def __init__(self, options: SimKDOptions, context: Context) -> None:
        super().__init__(options, context)
        student, teacher = context.student.stages[-1], context.teachers[0].stages[-1]
        # The embedding is the mean of the map that is pooled, so it has as many channels.
        width = context.teachers[0].embedding
        if width < options.factor:
            raise Unsupported(f"the teacher's {width} channels cannot be divided by factor {options.factor}")
        if context.batch_size < 2 and min(student.height, teacher.height) == 1:
            raise Unsupported("1x1 maps are normalised over the batch, which needs two images or more")
        self.side = teacher.height if student.height > teacher.height else None
        self.projector = Projector(student.channels, width, options.factor)
        self.final, self.classifier = Frozen(), Frozen()  # the teacher's, see prepare

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        if reason := no_maps(pair):
            return reason
        student, teacher = pair.student.stages[-1], pair.teachers[0].stages[-1]
        square = student.height == student.width and teacher.height == teacher.width
        if student.dims[1:] != teacher.dims[1:] and not square:
            return (
                f"maps of other sizes are pooled to squares, but those of the last stages are {student} and {teacher}"
            )
        return None

    def prepare(self, setup: Setup) -> None:
        """Take over the layers behind the first teacher's deepest stage."""
        try:
            final, head = setup.teachers[0].tail()
        except NotImplementedError as error:
            raise Unsupported(f"the teacher's classifier cannot be taken over: {error}") from error
        self.final, self.classifier = Frozen(*final), Frozen(head)

    def losses(self, batch: Batch) -> Losses:
        with torch.no_grad():
            target = self.final(batch.teacher.stages[-1])
        student, teacher = to_smaller(batch.student.stages[-1], target)
        value = simkd_loss(self.projector(student), teacher)
        return {"ce": batch.supervised(), "kd": batch.kd(), "simkd": Term(value, self.options.weight)}

    def deploy(self, student: nn.Module) -> nn.Module:
        return Reusing(student, self.projector, self.classifier, self.side)


class Projector(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, each with BN and ReLU, from a student's channels to a teacher's.

    Args:
        inputs: Channels of the student's map.
        outputs: Channels of the teacher's map.
        factor: Inside there are ``outputs // factor`` channels, at least one.

    Source:
        Chen et al. 2022, arXiv:2203.14001, section 3.2.
    """

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        middle = outputs // factor
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, outputs, H, W) of maps (N, inputs, H, W)."""
        x = F.relu(self.bn1(self.conv1(wide(maps))))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)))


class Frozen(nn.Sequential):
    """Parts of the teacher, one behind the other: without gradients, and in eval mode whatever mode is asked for."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 (torch's signature)
        return super().train(mode=False)


class Reusing(nn.Module):
    """Student, projector and the teacher's classifier as one network from images (N,C,H,W) to logits.

    Args:
        student: Network whose deepest map is used; its own classifier has no part in the result.
        projector: Maps it to the teacher's channels.
        classifier: The teacher's.
        side: Height and width to pool the student's map to; None = as it is.
    """

    def __init__(self, student: nn.Module, projector: nn.Module, classifier: nn.Module, side: int | None) -> None:
        super().__init__()
        self.student, self.projector, self.classifier, self.side = student, projector, classifier, side

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.student(images, LAST).stages[-1]
        return predict(self.projector(maps if self.side is None else pool_to(maps, self.side)), self.classifier)


def predict(projected: Tensor, classifier: nn.Module) -> Tensor:
    """Return a classifier's logits for the mean over the positions of maps (N,C,H,W)."""
    logits: Tensor = classifier(projected.mean(dim=(2, 3)))
    return logits


def simkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference of two maps, averaged over all entries.

    Args:
        projected: The student's maps (N,C,H,W) behind the projector.
        teacher: Maps (N,C,H,W), constants.

    Source:
        Chen et al. 2022, arXiv:2203.14001, Eq. (3), with the mean of the reference code instead of the sum.
    """
    return F.mse_loss(wide(projected), wide(teacher).detach())


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register SimKD."""
    return [SimKD]
