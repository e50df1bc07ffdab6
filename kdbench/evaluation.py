"""The only reader of test data: accuracy, likelihood and calibration of a deployed module."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.archives import read_arrays
from kdbench.datasets.base import Source, Split
from kdbench.errors import StoreError
from kdbench.modes import evaluating
from kdbench.types import Features

ECE_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """What a module says about every image of a split.

    Args:
        predicted: Class of the largest logit, int64 (N,).
        labels: int64 (N,).
        confidence: Softmax probability of the predicted class, float64 (N,).
        top5: Images whose label is among the five largest logits.
        nll: Mean negative log-likelihood in nats.
    """

    predicted: Tensor
    labels: Tensor
    confidence: Tensor
    top5: int
    nll: float

    @property
    def correct(self) -> Tensor:
        """Correctness of each image, bool (N,)."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Top-1 in percent, from integer counts."""
        return 100 * int(self.correct.sum()) / len(self.labels)

    @property
    def top5_accuracy(self) -> float:
        """Top-5 in percent (top-C with fewer than five classes)."""
        return 100 * self.top5 / len(self.labels)

    @property
    def ece(self) -> float:
        """Expected calibration error with 15 equal-width bins (Guo et al. 2017, arXiv:1706.04599), in [0, 1].

        NaN if a confidence is: those of a diverged network belong to no bin.
        """
        if not bool(self.confidence.isfinite().all()):
            return math.nan
        bins = (self.confidence * ECE_BINS).ceil().clamp(1, ECE_BINS).long() - 1
        gap = torch.zeros(ECE_BINS, dtype=torch.float64)
        gap.index_add_(0, bins, self.correct.double() - self.confidence)
        return float(gap.abs().sum() / len(self.labels))

    def agreement(self, predicted: Tensor) -> float:
        """Return the percentage of images on which another network predicted the same class (N,)."""
        return 100 * int((self.predicted == predicted).sum()) / len(self.labels)

    def to_npz(self) -> bytes:
        """Return ``correct`` (packed bits), ``predicted`` and ``count`` as an NPZ file."""
        buffer = io.BytesIO()
        smallest = np.min_scalar_type(int(self.predicted.max()))
        np.savez_compressed(
            buffer,
            correct=np.packbits(self.correct.numpy()),
            predicted=self.predicted.numpy().astype(smallest),
            count=np.int64(len(self.labels)),
        )
        return buffer.getvalue()


def logits_of(output: Features | Tensor) -> Tensor:
    """Return the logits (N, C) of what a network or deployed module returned."""
    return output.logits if isinstance(output, Features) else output


@torch.no_grad()
def evaluate(module: nn.Module, split: Split, device: torch.device, batch_size: int) -> Predictions:
    """Return the predictions of a module on a split, in eval mode and float32; modes are restored afterwards.

    Args:
        module: Maps images (N, C, H, W) in [0, 1] to Features or logits.
        split: uint8 images and labels, anywhere.
        device: Where the module is.
        batch_size: Images per forward pass.
    """
    with evaluating(module):
        logits = torch.cat(
            [
                logits_of(module(images.to(device, non_blocking=True).float().div_(255))).float().cpu()
                for images in split.chunks(batch_size)
            ]
        )
    labels = split.labels.cpu()
    log_probability = F.log_softmax(logits.double(), dim=1)
    confidence, predicted = log_probability.exp().max(dim=1)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return Predictions(
        predicted=predicted,
        labels=labels,
        confidence=confidence,
        top5=int((best == labels[:, None]).sum()),
        nll=float(F.nll_loss(log_probability, labels)),
    )


class TestSet:
    """The test split of a dataset, read once and kept; nothing else in kdbench calls ``Source.test``."""

    __test__ = False  # not a test class

    def __init__(self, source: Source, device: torch.device, batch_size: int) -> None:
        split = source.test()
        self.split = split.on(device) if split.fits(device) else split
        self.device, self.batch_size = device, batch_size

    def __len__(self) -> int:
        return len(self.split)

    def predict(self, module: nn.Module, first: int | None = None) -> Predictions:
        """Return a module's predictions on the test images, or on the first so many of them."""
        split = self.split if first is None else Split(self.split.images[:first], self.split.labels[:first])
        return evaluate(module, split, self.device, self.batch_size)


def read_predicted(path: Path) -> Tensor:
    """Return the predicted classes (N,) stored by :meth:`Predictions.to_npz`.

    Raises:
        StoreError: If the file is missing, damaged or foreign.
    """
    try:
        predicted = read_arrays(path, ("predicted",))["predicted"]
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not the predictions of a network ({error}); make or import it again") from error
    if predicted.ndim != 1 or predicted.dtype.kind not in "iu":
        raise StoreError(
            f"{path}: its predicted is {predicted.dtype} {predicted.shape}, not one class for each image; make or "
            "import the network again"
        )
    return torch.from_numpy(predicted.astype(np.int64))
