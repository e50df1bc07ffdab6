"""A teacher's pass and a student's step by themselves: what ideals are made of, with nothing of the trainer in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from workbench import CLASSES, IMAGE, Place, network

Step = Callable[[int], None]


def bare_teacher(where: Place) -> Step:
    """Return a teacher's pass over a batch."""
    images = torch.rand(where.anchor.data.batch_size, *IMAGE.dims)

    def step(_index: int) -> None:
        with torch.no_grad():
            where.teacher(images)

    return step


def bare_student(where: Place) -> Step:
    """Return a training step of a student towards given logits, as short as it can be written."""
    size, config = where.anchor.data.batch_size, where.anchor.optimizer
    student = network(where.registry, where.pair.student).train()
    rate = where.anchor.learning_rate_of(where.pair.student)
    optimizer = torch.optim.SGD(
        student.parameters(), rate, config.momentum, weight_decay=config.weight_decay, fused=True
    )
    images, labels, target = torch.rand(size, *IMAGE.dims), torch.randint(CLASSES, (size,)), torch.randn(size, CLASSES)

    def step(_index: int) -> None:
        logits = student(images).logits
        kd = F.kl_div((logits / 4).log_softmax(1), (target / 4).softmax(1), reduction="batchmean")
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
