"""Every device's share of the batches: together they are the batches of a single one, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.config.schema import Data
from kdbench.datasets.base import Split
from kdbench.method import View
from kdbench.sharing import Share
from kdbench.training.inputs import BatchStream, Inputs
from kdbench.training.pixels import Prefetched

CPU = torch.device("cpu")
COUNT, BATCH = 50, 12
MIXES = {"plain": {}, "mixup": {"mixup_alpha": 0.4}, "cutmix": {"cutmix_alpha": 1.0}}


def stream_of(share: Share, *, ahead: bool = False, **data: Any) -> BatchStream:
    images = torch.randint(256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    split = Split(images, torch.arange(COUNT) % 7)
    stream = BatchStream(split, Data(batch_size=BATCH, **data), 5, CPU, mirror=True, share=share)
    if ahead:
        stream._pixels = Prefetched(split, CPU)
    return stream


def test_a_share_has_its_part_of_each_part_of_the_batch() -> None:
    assert Share().rows(4).tolist() == [0, 1, 2, 3]
    assert Share(1, 2).rows(8).tolist() == [4, 5, 6, 7]
    assert Share(0, 2, parts=2).rows(8).tolist() == [0, 1, 4, 5]
    assert Share(2, 3, parts=2).rows(12).tolist() == [4, 5, 10, 11]


def merged(parts: list[Inputs], shares: list[Share]) -> Inputs:
    """Return the batch that the parts of all devices make."""
    place = torch.cat([share.rows(BATCH) for share in shares]).argsort()
    mix = parts[0].mix and torch.cat([part.mix.labels for part in parts if part.mix])[place]
    images, labels, index = (
        torch.cat([getattr(part, name) for part in parts])[place] for name in ("images", "labels", "index")
    )
    assert len({part.mix.share for part in parts if part.mix}) <= 1
    return Inputs(images, labels, index, mix)  # type: ignore[arg-type]


@pytest.mark.parametrize("mixing", MIXES)
@pytest.mark.parametrize(("size", "parts"), [(2, 1), (3, 2), (4, 3), (12, 1)])
@pytest.mark.parametrize("ahead", [False, True])
def test_all_shares_together_are_the_batch(mixing: str, size: int, parts: int, *, ahead: bool) -> None:
    whole, view = stream_of(Share(), **MIXES[mixing]), View(1)
    shares = [Share(rank, size, parts) for rank in range(size)]
    streams = [stream_of(share, ahead=ahead, **MIXES[mixing]) for share in shares]
    for epoch in (0, 1, "init:0"):
        mixed = epoch != "init:0"
        for step in range(whole.steps):
            expected = whole.batch(epoch, step, mixed=mixed)
            found = [stream.batch(epoch, step, mixed=mixed) for stream in streams]
            assert all(len(part.images) == BATCH // size for part in found)
            one = merged(found, shares)
            for name in ("images", "labels", "index"):
                assert torch.equal(getattr(one, name), getattr(expected, name)), (epoch, step, name)
            assert (one.mix is None) == (expected.mix is None)
            if expected.mix is not None:
                assert torch.equal(one.mix, expected.mix.labels)  # type: ignore[arg-type]
            turned = torch.cat([stream.view(view, epoch, step, mixed=mixed) for stream in streams])
            place = torch.cat([share.rows(BATCH) for share in shares]).argsort()
            assert torch.equal(turned[place], whole.view(view, epoch, step, mixed=mixed))
    for stream in streams:
        stream.close()


def test_without_mixing_a_device_makes_its_own_images_alone() -> None:
    stream = stream_of(Share(1, 3))
    asked = []
    pixels = stream._pixels

    class Watched:
        def start_epoch(self, batches: list[torch.Tensor]) -> None:
            assert {len(batch) for batch in batches} == {BATCH // 3}
            pixels.start_epoch(batches)

        def of(self, step: int, index: torch.Tensor) -> Any:
            asked.append(len(index))
            return pixels.of(step, index)

    stream._pixels = Watched()  # type: ignore[assignment]
    stream.batch(0, 0)
    assert asked == [BATCH // 3]
