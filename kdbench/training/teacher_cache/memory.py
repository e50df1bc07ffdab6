"""What one teacher said before of the inputs of a batch, and what it has to be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.training.inputs import BatchStream, Inputs
from kdbench.training.networks import Taught
from kdbench.training.teacher_cache.entries import Entries, Numbers, Values
from kdbench.training.teacher_cache.key import Part
from kdbench.training.teacher_cache.opening import say as warn
from kdbench.training.teacher_cache.shapes import Say, filled_up, rows_of
from kdbench.types import Features

LARGEST_HALF = 65504.0
Found = Mapping[Part, tuple[Values, NDArray[np.bool_]]]


@dataclass
class Memory:
    """The files of one teacher in one phase.

    Args:
        files: By part; empty = the teacher always runs.
        shapes: Sizes of batches in which it says the same; the last is a whole batch.
        half: Whether what it says is rounded to float16, cached or not.
        reads: Whether entries are used; else the teacher runs on every batch, and what is missing is kept.
    """

    files: dict[Part, Entries]
    shapes: tuple[int, ...]
    half: bool
    reads: bool = True

    def of_batch(self, say: Say, inputs: Inputs) -> Taught:
        """Return the teacher's features of a batch; what has to be computed is kept."""
        assert inputs.entries is not None
        numbers = inputs.entries.numpy()
        found = self._look_up(numbers)
        there = np.logical_and.reduce([mask for _, mask in found.values()]) if found else np.zeros(len(numbers), bool)
        if not self.reads or not there.any():
            features = self.kept(say(inputs.images))
            self._write(numbers, np.arange(len(numbers)), features, found)
            return Taught((features,), len(numbers), 0)
        missing = np.flatnonzero(~there)
        recalled = {part: _on(inputs.images.device, values) for part, (values, _) in found.items()}
        run = 0
        if len(missing):
            places = torch.from_numpy(missing).to(inputs.images.device)
            features, run = self.computed(say, rows_of(inputs.images, places))
            for part, values in recalled.items():
                values[places] = _of(features, part)
            self._write(numbers, missing, features, found)
        return Taught((Features(recalled["logits"], recalled.get("embedding")),), run, len(numbers) - len(missing))

    def computed(self, say: Say, images: Tensor) -> tuple[Features, int]:
        """Return the teacher's features of some images, as they are kept, and on how many it ran for them."""
        size = next(size for size in self.shapes if size >= len(images))
        return self.kept(say(filled_up(images, size)).rows(slice(len(images)))), size

    def now(self, say: Say, batches: BatchStream, numbers: Numbers) -> Features:
        """Return what the teacher says now of at most a whole batch of entries, as it is kept."""
        return self.computed(say, batches.images_of(torch.from_numpy(numbers)))[0]

    def kept(self, features: Features) -> Features:
        """Return features as they are after having been kept, whether they are or not."""
        if not self.half:
            return features
        embedding = None if features.embedding is None else _rounded(features.embedding)
        return replace(features, logits=_rounded(features.logits), embedding=embedding)

    def _look_up(self, numbers: Numbers) -> Found:
        found = {part: file.read(numbers) for part, file in self.files.items()}
        for file in self.files.values():
            if file.damaged and not file.reported:
                file.reported = True
                warn(f"{file.path} has damaged entries; they are computed and written again")
        return found

    def _write(self, numbers: Numbers, rows: NDArray[np.int64], features: Features, found: Found) -> None:
        """Keep features, of some rows of a batch, in the files that lack them."""
        for part, (_, there) in found.items():
            lacking = np.flatnonzero(~there[rows])
            if len(lacking) and self.files[part].writable:
                self._keep(self.files[part], numbers[rows[lacking]], values_of(features, part)[lacking])

    def _keep(self, file: Entries, numbers: Numbers, values: Values) -> None:
        try:
            file.write(numbers, values)
        except OSError as error:  # training needs none of it, and what is there can still be read
            file.close()
            warn(f"{file.path} cannot be written ({error.strerror}); what it lacks is computed every time")


def values_of(features: Features, part: Part) -> Values:
    """Return a part of features in main memory."""
    values: Values = _of(features, part).cpu().numpy()
    return values


def _of(features: Features, part: Part) -> Tensor:
    found = features.logits if part == "logits" else features.embedding
    assert found is not None
    return found


def _rounded(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST_HALF, LARGEST_HALF).half().float()


def _on(device: torch.device, values: Values) -> Tensor:
    """Return values on a device; memory of torch's own, so that kernels meet the alignment they always do."""
    host = torch.empty(values.shape, pin_memory=device.type == "cuda")
    host.copy_(torch.from_numpy(values))
    return host.to(device, non_blocking=True)
