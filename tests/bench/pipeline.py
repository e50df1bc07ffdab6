"""Images per second of the batch stream, next to torchvision's transforms in a DataLoader with two worker processes.

Both deliver the same: random crops of padded images, mirrored at random, float32, normalised (networks of kdbench do
that themselves, so it is done here). They take turns in one process; the median of the paired ratios counts.
Run with ``make bench``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from report_lines import Sheet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from workbench import CPU, random_split

from kdbench.config.schema import Data
from kdbench.datasets.base import Split
from kdbench.training.inputs import BatchStream

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGES, BATCH, WORKERS = 12_800, 128, 2
ROUNDS, BATCHES = 5, 20
TARGET = 10.0


class PerSample(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR classes hand them out: an array, made a PIL image and transformed one by one."""

    def __init__(self, split: Split) -> None:
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose([
            transforms.ToPILImage(),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def conventional(split: Split) -> Callable[[], float]:
    """Return what gives the images per second of an epoch's first batches, without the start of the workers."""
    loader = DataLoader(PerSample(split), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)

    def rate() -> float:
        batches = iter(loader)
        next(batches)
        started = time.perf_counter()
        for _ in range(BATCHES):
            next(batches)
        seconds = time.perf_counter() - started
        del batches  # ends the workers, so that they take nothing from the other
        return BATCHES * BATCH / seconds

    return rate


def streamed(split: Split) -> Callable[[], float]:
    """Return the same for the batch stream, the draws of the epoch included."""
    data = Data(batch_size=BATCH)
    stream = BatchStream(split, data, 0, CPU, mirror=True)
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (MEAN, STD))
    epochs = iter(range(10**6))

    def rate() -> float:
        epoch = next(epochs)
        started = time.perf_counter()
        for step in range(BATCHES):
            (stream.batch(epoch, step).images - mean) / std
        return BATCHES * BATCH / (time.perf_counter() - started)

    return rate


def main() -> None:
    """Print both rates and their ratio; exit with 1 if it misses the target."""
    split = random_split(IMAGES)
    ours, theirs = streamed(split), conventional(split)
    ours(), theirs()
    about = (
        f"The batch stream against torchvision's transforms in a DataLoader with {WORKERS} workers, batches of {BATCH}."
    )
    with Sheet("pipeline", "Input pipeline", about) as sheet:
        rounds = [(ours(), theirs()) for _ in range(ROUNDS)]
        stream, loader = zip(*rounds, strict=True)
        sheet.add("batch stream", stream, unit="images/s")
        sheet.add("DataLoader", loader, unit="images/s")
        sheet.add("batch stream against DataLoader", [one / other for one, other in rounds], at_least=TARGET)


if __name__ == "__main__":
    main()
