"""A method with dropout and a helper; tests give it the phases and hooks they ask about."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from kdbench.method import Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, Source, Taps, Term


class Probe(Method[Options]):
    """Its student learns through dropout, its helper (weights alone) from the teacher or from nothing."""

    name, source = "toy_probe", Source("A toy", 2020, "https://example.org")
    taps = TapRequest(Taps(embedding=True), Taps(embedding=True))
    seen: ClassVar[list[object]] = []  # each test's class has its own

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.drop = nn.Dropout(0.3)
        self.helper = nn.Linear(context.teachers[0].embedding, context.student.classes)
        self.spare = nn.Linear(2, 2)

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised(self.drop(batch.student.logits)), "kd": batch.kd()}

    def of_helper(self, batch: Batch) -> Losses:
        """Return the loss of a phase that trains the helper on the teacher."""
        return {"fit": Term(F.cross_entropy(self.drop(self.helper(batch.teacher.embedding)), batch.labels))}

    def shrink(self, batch: Batch) -> Losses:  # noqa: ARG002
        """Return a loss whose gradient is the helper itself, so that a course of its weights can be computed."""
        return {"size": Term(self.helper.weight.square().sum() / 2 + self.helper.bias.square().sum() / 2)}
