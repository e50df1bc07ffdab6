"""DIST as a third-party kdbench plugin: match how the teacher's predictions correlate, not their exact values."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import kdbench


class DISTOptions(kdbench.Options):
    """Weights of the two relations; the published total of 2 on both is the method's KD weight."""

    beta: float = Field(1.0, ge=0, description="weight of the inter-class relation (rows: one image, all classes)")
    gamma: float = Field(1.0, ge=0, description="weight of the intra-class relation (columns: one class, the batch)")


class DIST(kdbench.Method[DISTOptions]):
    """Cross-entropy plus one minus the Pearson correlation of student and teacher, over classes and over images."""

    name = "dist"
    source = kdbench.Source(
        title="Knowledge Distillation from A Stronger Teacher",
        year=2022,
        url="https://arxiv.org/abs/2205.10536",
        code="hunto/LocalMamba@45dbff7",  # DIST_KD's classification code by the same author, with temperature
        deviations="Constant rows and columns count as uncorrelated, without gradient (the reference adds 1e-8); "
        "tau is the anchor's (published: 4 on CIFAR-100, 1 on ImageNet).",
    )
    options_type = DISTOptions
    published = kdbench.LossWeights(ce=1.0, kd=2.0)
    distributed = "gathered"

    def losses(self, batch: kdbench.Batch) -> dict[str, kdbench.Term]:
        inter, intra = dist_parts(batch.student.logits, batch.kd_target(), batch.tau)
        beta, gamma = batch.kd_weight * self.options.beta, batch.kd_weight * self.options.gamma
        return {"ce": batch.supervised(), "inter": kdbench.Term(inter, beta), "intra": kdbench.Term(intra, gamma)}


def dist_parts(student: Tensor, teacher: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return the inter- and the intra-class loss for logits (N, C), each times tau^2, in [0, 2 tau^2]."""
    p, q = (student / tau).softmax(1), (teacher.detach() / tau).softmax(1)
    return tau**2 * (1 - correlation(p, q).mean()), tau**2 * (1 - correlation(p.T, q.T).mean())


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the Pearson correlation of each row (N, M) -> (N,); 0 where a row is constant up to rounding."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    varies = (a.abs().amax(1) > 1e-6) & (b.abs().amax(1) > 1e-6)
    return torch.where(varies, (a * b).sum(1) / torch.where(varies, a.norm(dim=1) * b.norm(dim=1), 1.0), 0.0)


@kdbench.hookimpl
def kdbench_methods() -> list[type[kdbench.AnyMethod]]:
    """Register DIST."""
    return [DIST]
