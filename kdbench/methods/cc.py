"""Correlation congruence, as the field runs it: how student and teacher differ on neighbouring images of a batch."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, Source, Taps, Term


class CCOptions(Options):
    """Weight of the term and width of the embeddings."""

    weight: float = Field(0.02, ge=0, description="weight of the term")
    feat_dim: int = Field(128, ge=1, description="width to which both networks' vectors are mapped")


class CC(Method[CCOptions]):
    """Cross-entropy plus the products of neighbouring images' differences between student and teacher.

    The value depends on the order of the images in the batch, of which only neighbours meet. Both mappings are
    trained, so the term can also fall because they collapse.
    """

    name = "cc"
    source = Source(
        title="Correlation Congruence for Knowledge Distillation",
        year=2019,
        url="https://arxiv.org/abs/1904.01802",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="Not the loss of the paper, which matches the correlations of all images of a batch under a "
        "Gaussian kernel, but that of the reference, whose results are the ones reported: it multiplies the absolute "
        "differences of neighbouring images, so it depends on the order of the batch.",
    )
    options_type = CCOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "gathered"
    taps = TapRequest(Taps(embedding=True), Taps(embedding=True))

    def __init__(self, options: CCOptions, context: Context) -> None:
        super().__init__(options, context)
        if context.batch_size < 2:
            raise Unsupported("neighbouring images of a batch are compared, which needs two or more")
        self.embed = Embeddings(context.student.embedding, context.teachers[0].embedding, options.feat_dim)

    def losses(self, batch: Batch) -> Losses:
        student, teacher = batch.student.embedding, batch.teacher.embedding
        assert student is not None
        assert teacher is not None
        value = cc_loss(*self.embed(student, teacher))
        return {"ce": batch.supervised(), "kd": batch.kd(), "cc": Term(value, self.options.weight)}


class Embeddings(nn.Module):
    """A linear map with bias for each network's vectors, not normalised.

    Args:
        student: Width of the student's penultimate vector.
        teacher: Width of the teacher's penultimate vector.
        width: Width d of what both are mapped to.
    """

    def __init__(self, student: int, teacher: int, width: int) -> None:
        super().__init__()
        self.student = nn.Linear(student, width)
        self.teacher = nn.Linear(teacher, width)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both embeddings (N, d) of vectors (N, D) and (N, D'); the latter are constants."""
        return self.student(wide(student)), self.teacher(wide(teacher).detach())


def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return sum_k delta_bk delta_(b+1)k for delta = |student - teacher|, averaged over the N - 1 pairs of neighbours.

    Args:
        student: Embeddings (N, d), N >= 2, in the order of the batch.
        teacher: Embeddings (N, d); both take gradients, as both mappings are learned.

    Source:
        RepDistiller@b84f547, distiller_zoo/CC.py; Peng et al. 2019, arXiv:1904.01802, section 3, have another loss.
    """
    delta = (wide(student) - wide(teacher)).abs()
    return (delta[:-1] * delta[1:]).sum(1).mean()


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register CC."""
    return [CC]
