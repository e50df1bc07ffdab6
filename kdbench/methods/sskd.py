"""Self-supervision in distillation: the student also follows the teacher on turned images, and how it matches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import cross_entropy, wide
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Phase, TapRequest, View
from kdbench.types import Context, LossWeights, Pair, PairInfo, Source, Taps, Term

_SHORT = 1e-8  # least norm in a cosine


class SSKDOptions(Options):
    """Weights, temperatures and selection of the two terms on turned images."""

    tf_weight: float = Field(2.7, ge=0, description="weight of KD on the turned images")
    ss_weight: float = Field(10.0, ge=0, description="weight of KD between the matchings of turned and upright images")
    tf_tau: float = Field(4.0, gt=0, description="temperature of KD on the turned images")
    ss_tau: float = Field(0.5, gt=0, description="temperature of KD between the matchings")
    tf_ratio: float = Field(1.0, ge=0, le=1, description="share of turned images kept of those the teacher gets wrong")
    ss_ratio: float = Field(0.75, ge=0, le=1, description="share of matchings kept of those the teacher gets wrong")
    head_share: float = Field(
        60 / 240, gt=0, le=1, description="epochs of the teacher's head as a share of the anchor's, on top of them"
    )


class SSKD(Method[SSKDOptions]):
    """Trains a head on the teacher to match turned images; then KD on them, and between both networks' matchings."""

    name = "sskd"
    source = Source(
        title="Knowledge Distillation Meets Self-Supervision",
        year=2020,
        url="https://arxiv.org/abs/2006.07114",
        code="xuguodong03/SSKD@661b972",
        deviations="As in the reference, turns are the only transformation; equal scores do not push the truth's rank "
        "down, and of equally ranked rows the first ones are kept; vectors shorter than 1e-8 get no gradient; the "
        "teacher's head is trained for a share of the epochs (60 of the published 240) at the anchor's learning rate; "
        "with mixed images, the truth in the selection of turned images is the label of the image with the larger "
        "share.",
    )
    options_type = SSKDOptions
    published = LossWeights(ce=0.1, kd=0.9)
    distributed = "gathered"
    taps = TapRequest(Taps(embedding=True), Taps(embedding=True))
    views = (View(1), View(2), View(3))

    def __init__(self, options: SSKDOptions, context: Context) -> None:
        super().__init__(options, context)
        if context.batch_size < 2:
            raise Unsupported("turned images are matched among the images of a batch, which needs at least two")
        self.student_head = MatchingHead(context.student.embedding)
        self.teacher_head = MatchingHead(context.teachers[0].embedding)

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:  # noqa: ARG003
        """Return the weights of ``fair_baseline``; as no features are compared, its feature_weight is read as tf's."""
        return {"ss_weight": 1.0, "tf_weight": 0.5} if anchor == "fair_baseline" else {}

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline images that change their shape when turned, and networks without an embedding."""
        if pair.image.height != pair.image.width:
            return f"images are turned by 90 degrees, so they must be square; these are {pair.image}"
        networks = (pair.student, *pair.teachers[:1])
        return next((f"{network.name} has no embedding" for network in networks if network.embedding < 1), None)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                "self_supervision",
                epochs=self.context.epochs_for(self.options.head_share),
                losses=self.head_losses,
                parameters=self.teacher_head.parameters,
                rate_factor=head_rate,
                student="off",
            ),
            Phase(),
        )

    def head_losses(self, batch: Batch) -> Losses:
        """Return the loss of the teacher's head."""
        return {"matching": Term(matching_loss(self._teacher_matching(batch)))}

    def losses(self, batch: Batch) -> Losses:
        o, mix = self.options, batch.mix
        labels = batch.labels if mix is None or mix.share >= 0.5 else mix.labels
        with torch.no_grad():  # fixed since its own phase
            target = self._teacher_matching(batch)
        normal = _embedding(batch.student.embedding)
        turned = image_major([_embedding(view.student.embedding) for view in batch.views])
        matching = similarity(self.student_head(normal), self.student_head(turned))
        # The teachers teach the views as the anchor combines them on the images.
        views = [replace(batch, teachers=view.teachers).kd_target() for view in batch.views]
        tf = tf_loss(
            image_major([view.student.logits for view in batch.views]),
            image_major(views),
            labels.repeat_interleave(len(views)),
            tau=o.tf_tau,
            ratio=o.tf_ratio,
        )
        ss = ss_loss(matching, target, tau=o.ss_tau, ratio=o.ss_ratio)
        return {
            "ce": batch.supervised(),
            "kd": batch.kd(),
            "tf": Term(tf, o.tf_weight),
            "ss": Term(ss, o.ss_weight),
        }

    def _teacher_matching(self, batch: Batch) -> Tensor:
        normal = _embedding(batch.teacher.embedding)
        turned = image_major([_embedding(view.teacher.embedding) for view in batch.views])
        return similarity(self.teacher_head(normal), self.teacher_head(turned))


class MatchingHead(nn.Module):
    """Two linear layers of the embedding's width, with a ReLU between; discarded after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the representation (N, D) of embeddings (N, D)."""
        out: Tensor = self.fc2(F.relu(self.fc1(embedding)))
        return out


def head_rate(done: float) -> float:
    """Return the factor on the head's learning rate: 0.1 after half of its phase, 0.01 after three quarters."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def _embedding(tapped: Tensor | None) -> Tensor:
    assert tapped is not None
    return tapped


def image_major(views: Sequence[Tensor]) -> Tensor:
    """Return V tensors (N, D) as one (N*V, D) with the views of an image in adjacent rows: row V*i + v."""
    return torch.stack(list(views), 1).flatten(0, 1)


def similarity(normal: Tensor, turned: Tensor) -> Tensor:
    """Return the cosine similarity (R, N) of each turned image to each upright one; norms are at least 1e-8.

    Args:
        normal: Representations (N, D) of the images.
        turned: Representations (R, D) of their views, in image-major order.
    """
    return _unit(turned) @ _unit(normal).T


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors (N, D) at length 1; those shorter than 1e-8 have no direction to learn, so no gradient."""
    vectors = wide(vectors)
    constant = vectors.detach()
    return F.normalize(torch.where(constant.norm(dim=1, keepdim=True) < _SHORT, constant, vectors), eps=_SHORT)


def own_image(matching: Tensor) -> Tensor:
    """Return the column of each row's own image, (R,), for similarities (R, N) in image-major order."""
    rows, images = matching.shape
    return torch.arange(images, device=matching.device).repeat_interleave(rows // images)


def matching_loss(matching: Tensor) -> Tensor:
    """Return the cross-entropy of each turned image's own image in nats, mean over the rows; there is no temperature.

    Args:
        matching: Similarities (R, N), in image-major order.

    Source:
        Xu et al. 2020, arXiv:2006.07114, section 3.2, with turns alone and the temperature of SSKD@661b972, 1.
    """
    return cross_entropy(matching, own_image(matching))


def truth_rank(scores: Tensor, truth: Tensor) -> Tensor:
    """Return how many entries of each row of scores (R, C) are larger than that of column ``truth`` (R,); 0 = right."""
    return (scores > scores.gather(1, truth[:, None])).sum(1)


def selection(ranks: Tensor, ratio: float) -> Tensor:
    """Return which rows teach, bool (R,): all right ones, and of the W wrong ones the floor(W * ratio) best ranked.

    Shapes do not depend on the ranks, so the host need not wait for them.

    Args:
        ranks: Rank of the truth (R,), 0 = right; of equal ranks at the cut the first rows are kept.
        ratio: Share of the wrong rows that is kept, in [0, 1].
    """
    wrong = (ranks > 0).sum()
    # In double precision like a Python number, or 0.7 * 10 might end below 7.
    kept = len(ranks) - wrong + (wrong.double() * ratio).floor().long()
    place = ranks.argsort(stable=True).argsort()
    return place < kept


def selected_kl(student: Tensor, teacher: Tensor, chosen: Tensor, tau: float) -> Tensor:
    """Return tau^2 * KL(softmax(teacher/tau) || softmax(student/tau)) in nats, mean over the chosen rows; 0 if none.

    Args:
        student: Scores (R, C).
        teacher: Scores (R, C), a constant.
        chosen: bool (R,).
        tau: Temperature, > 0.
    """
    log_student = F.log_softmax(wide(student) / tau, dim=1)
    log_teacher = F.log_softmax(wide(teacher).detach() / tau, dim=1)
    rows = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    weights = chosen.to(rows.dtype)
    return tau**2 * (rows * weights).sum() / weights.sum().clamp_min(1)


def tf_loss(student: Tensor, teacher: Tensor, labels: Tensor, *, tau: float, ratio: float) -> Tensor:
    """Return KD on turned images in nats, without the rows that the teacher gets most wrong.

    Args:
        student: Logits (R, C) of the turned images.
        teacher: Logits (R, C), a constant.
        labels: Class of each row's image (R,), by which the teacher's rows are ranked.
        tau: Temperature, > 0.
        ratio: Share of the wrong rows that is kept, in [0, 1].

    Source:
        Xu et al. 2020, arXiv:2006.07114, section 3.3; SSKD@661b972, student.py.
    """
    return selected_kl(student, teacher, selection(truth_rank(teacher.detach(), labels), ratio), tau)


def ss_loss(student: Tensor, teacher: Tensor, *, tau: float, ratio: float) -> Tensor:
    """Return KD between two networks' matchings in nats, without the rows that the teacher gets most wrong.

    Args:
        student: Similarities (R, N) of turned to upright images, in image-major order.
        teacher: The same of the teacher, a constant.
        tau: Temperature, > 0.
        ratio: Share of the wrong rows that is kept, in [0, 1].

    Source:
        Xu et al. 2020, arXiv:2006.07114, section 3.3; SSKD@661b972, student.py.
    """
    return selected_kl(student, teacher, selection(truth_rank(teacher.detach(), own_image(teacher)), ratio), tau)


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register SSKD."""
    return [SSKD]
