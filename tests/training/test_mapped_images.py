"""Batches come from images that stay where they are: the same bits as from padded copies, without any copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdbench.config.schema import Data
from kdbench.datasets.base import Split
from kdbench.datasets.splits import channel_statistics, cut_validation, per_class_subset
from kdbench.errors import ConfigError
from kdbench.evaluation import evaluate
from kdbench.method import View
from kdbench.seeds import torch_generator
from kdbench.training.inputs import BatchStream

CPU = torch.device("cpu")
COUNT, BATCH, CLASSES = 24, 8, 4


def images_of(shape: tuple[int, ...], count: int = COUNT) -> Tensor:
    draws = torch.Generator().manual_seed(shape[-1])
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=draws)


class Padded:
    """The plain way: all images padded up front, one slice an image."""

    def __init__(self, images: Tensor, data: Data, seed: int, padding: int) -> None:
        mode = "constant" if data.padding_mode == "zeros" else "reflect"
        self.images = F.pad(images.double(), (padding,) * 4, mode=mode).to(torch.uint8)
        self.size, self.padding, self.seed, self.shape = len(images), padding, seed, images.shape[2:]
        self.flips = data.mirror

    def draws(self, epoch: int, *names: str) -> tuple[Tensor, torch.Generator]:
        generator = torch_generator(self.seed, "augment", epoch, *names)
        return torch.randint(2 * self.padding + 1, (2, self.size), generator=generator), generator

    def batch(self, epoch: int, step: int, view: View | None) -> Tensor:
        order = torch.randperm(self.size, generator=torch_generator(self.seed, "order", epoch))
        offsets, generator = self.draws(epoch)
        mirrored = torch.randint(2, (self.size,), generator=generator).bool() & self.flips
        if view is not None:
            offsets, _ = self.draws(epoch, f"turned{view.quarter_turns}")
        crops = []
        for index in order[step * BATCH : (step + 1) * BATCH].tolist():
            image, (y, x) = self.images[index], offsets[:, index].tolist()
            height, width = self.shape
            if view is not None:
                image = image.flip(2) if mirrored[index] else image
                image = torch.rot90(image, view.quarter_turns, (1, 2))
            crop = image[:, y : y + height, x : x + width]
            crops.append(crop.flip(2) if view is None and mirrored[index] else crop)
        return torch.stack(crops).float() / 255


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    ("shape", "crop_padding", "padding"),
    [((3, 32, 32), 4, 4), ((1, 8, 8), 4, 1), ((3, 8, 8), 28, 7), ((3, 8, 8), 0, 0), ((3, 8, 12), 8, 2)],
)
def test_batches_are_those_of_padded_copies(shape: tuple[int, ...], crop_padding: int, padding: int, mode: Any) -> None:
    images, labels = images_of(shape), torch.arange(COUNT) % CLASSES
    data = Data(batch_size=BATCH, crop_padding=crop_padding, padding_mode=mode)
    # A selection in another order must give what its own copy gives.
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    for split, own in ((Split(images, labels), images), (Split(images, labels).select(order), images[order])):
        stream, plain = BatchStream(split, data, 3, CPU, mirror=True), Padded(own, data, 3, padding)
        assert stream.padding == padding
        for epoch, step in ((0, 0), (0, 2), (5, 1)):
            inputs = stream.batch(epoch, step)
            assert torch.equal(inputs.images, plain.batch(epoch, step, None))
            assert torch.equal(inputs.labels, split.labels[inputs.index])
            assert inputs.images.is_contiguous()
            for view in [View(turns) for turns in range(4) if shape[1] == shape[2]]:
                assert torch.equal(stream.view(view, epoch, step), plain.batch(epoch, step, view))


def test_reflection_needs_more_pixels_than_padding() -> None:
    split = Split(images_of((3, 8, 8)), torch.arange(COUNT) % CLASSES)
    data = Data(batch_size=BATCH, crop_padding=32, padding_mode="reflect")
    with pytest.raises(ConfigError, match=r"crop_padding 32: pads images of 8x8 by 8 pixels.* set data.padding_mode"):
        BatchStream(split, data, 0, CPU, mirror=True)


def test_a_selection_of_a_selection() -> None:
    split = Split(torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1), torch.arange(10))
    odd = split.select(torch.tensor([1, 3, 5, 7, 9]))
    part = odd.select(torch.tensor([4, 0, 2]))
    assert (len(part), part.labels.tolist()) == (3, [9, 1, 5])
    assert part.images.flatten().tolist() == part.labels.tolist()
    assert part.gather(torch.tensor([2, 0, 2])).flatten().tolist() == [5, 9, 5]
    assert [chunk.flatten().tolist() for chunk in part.chunks(2)] == [[9, 1], [5]]
    assert [chunk.flatten().tolist() for chunk in split.chunks(6)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert part.store.data_ptr() == split.store.data_ptr()
    assert channel_statistics(part) == channel_statistics(Split(part.images, part.labels))


class Allocations(TorchDispatchMode):
    """Notes the size of the largest memory, other than a known one, that any operation returns."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.largest = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() != self.known:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return found


def test_nothing_on_the_way_to_training_copies_a_mapped_store(tmp_path: Path) -> None:
    count = 20_000  # 60 MB of a file with holes
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(count, 3, 32, 32))
    mapped[::7] = np.arange(32, dtype=np.uint8)
    mapped.flush()
    store = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    names = ("a", "b", "c")
    with Allocations(store) as seen:
        split = per_class_subset(Split(store, torch.arange(count) % 3), 4_000, names)
        train, validation = cut_validation(split, 0.25, names)
        assert validation is not None
        stream = BatchStream(train, Data(batch_size=64, padding_mode="reflect"), 0, CPU, mirror=True)
        for step in range(5):
            stream.batch(0, step)
            stream.view(View(1), 0, step)
        evaluate(nn.Sequential(nn.AvgPool2d(32), nn.Flatten()), validation, CPU, batch_size=64)
    assert train.store.data_ptr() == validation.store.data_ptr() == store.data_ptr()
    assert (len(train), len(validation)) == (9_000, 3_000)
    assert 64 * 3 * 32 * 32 * 4 <= seen.largest < 4_000_000, "a batch takes 0.8 MB, the training images 28 MB"
