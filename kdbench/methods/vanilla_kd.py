"""Vanilla knowledge distillation: match the teacher's softened predictions."""

from __future__ import annotations

from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod, Batch, Losses, Method, Options
from kdbench.types import LossWeights, Source


class VanillaKD(Method[Options]):
    """Cross-entropy plus KL divergence to the teacher at temperature tau; both weights are the anchor's."""

    name = "vanilla_kd"
    source = Source(
        title="Distilling the Knowledge in a Neural Network",
        year=2015,
        url="https://arxiv.org/abs/1503.02531",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="KL instead of cross-entropy with soft targets: equal gradients.",
    )
    published = LossWeights(ce=0.1, kd=0.9)
    distributed = "slices"
    baseline = True

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised(), "kd": batch.kd()}


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register vanilla KD."""
    return [VanillaKD]
