"""The loop of the field, as a baseline: what trainers in the manner of RepDistiller do for one run.

Images are PIL images that torchvision transforms crop, flip and normalise one by one in the two workers of a
DataLoader; every run passes every batch through the teacher; loss and accuracies are read by the host in every step;
the optimizer and the memory format are torch's defaults. Networks, losses, batch size, learning rate and precision are
those of the run in kdbench that it is compared with, so that only the loop differs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from workbench import CPU, Place, Row, network

from kdbench.backbones.base import Network
from kdbench.batch import Batch
from kdbench.datasets.base import Split
from kdbench.method import total
from kdbench.schedule import loss_protocol
from kdbench.types import Features

WORKERS = 2  # users of a machine like this one have as many cores
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class PilImages(Dataset[tuple[Tensor, int, int]]):
    """A split as torchvision's CIFAR datasets hold theirs: an array, of which each access makes a PIL image."""

    def __init__(self, split: Split) -> None:
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index], index


class Meter:
    """The running mean of a number."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.sum, self.count = self.sum + value * count, self.count + count

    @property
    def mean(self) -> float:
        return self.sum / self.count


class ConventionalRun:
    """One run: its own loader, student and optimizer, and the teacher.

    Args:
        place: Protocol, pair and images; its teacher is not used, since that one has kdbench's memory format.
        row: Whose losses it trains with.
        teacher: See :func:`plain`.
    """

    def __init__(self, place: Place, row: Row, teacher: Network) -> None:
        self.anchor, self.teacher = place.anchor, teacher
        self.student = plain(place, place.pair.student).train()
        self.method = place.registry.methods[row.method](place.options(row), place.context())
        size, config = self.anchor.data.batch_size, self.anchor.optimizer
        self.loader = DataLoader(PilImages(place.split), size, shuffle=True, num_workers=WORKERS, drop_last=True)
        rate = self.anchor.learning_rate_of(place.pair.student)
        decay = config.weight_decay
        self.optimizer = torch.optim.SGD(self.student.parameters(), rate, config.momentum, weight_decay=decay)
        self.loss, self.top1, self.top5 = Meter(), Meter(), Meter()
        self._batches: Iterator[list[Tensor]] = iter(())

    def step(self, _index: int) -> None:
        """Train on the next batch."""
        images, labels, index = self._next_batch()
        student = self.student(images)
        with torch.no_grad():
            teacher = self.teacher(images)
        losses = self.method.losses(self._batch(images, labels, index, student, teacher))
        loss = total(losses)
        top1, top5 = accuracies(student.logits, labels)
        self.loss.update(loss.item(), len(labels))
        self.top1.update(top1.item(), len(labels))
        self.top5.update(top5.item(), len(labels))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _next_batch(self) -> list[Tensor]:
        # Its workers have filled their queue while others were timed, and fill it again while this one computes: a step
        # takes far longer than a batch, so that each step pays for one batch, as in a long run.
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        return batch

    def _batch(self, images: Tensor, labels: Tensor, index: Tensor, student: Features, teacher: Features) -> Batch:
        protocol = loss_protocol(self.anchor, type(self.method), 0, self.anchor.schedule.epochs)
        return Batch(images, labels, index, student, (teacher,), protocol)


def plain(place: Place, name: str) -> Network:
    """Return a network as it is built: torch's default memory format, for images that are normalised already."""
    built = network(place.registry, name)
    built.set_normalisation((0.0,) * 3, (1.0,) * 3)
    built.place(CPU, channels_last=False)
    return built


def accuracies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return top-1 and top-5 accuracy in percent."""
    hits = logits.topk(5, dim=1).indices == labels[:, None]
    return 100 * hits[:, :1].any(1).float().mean(), 100 * hits.any(1).float().mean()
