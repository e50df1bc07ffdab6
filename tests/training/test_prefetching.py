"""Images that do not fit the device are fetched ahead: the same bits, no thread left behind, no error lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.config.schema import Data
from kdbench.datasets.base import Split
from kdbench.method import View
from kdbench.training.inputs import BatchStream
from kdbench.training.pixels import AHEAD, Prefetched
from kdbench.training.trainer import Interrupted

CPU = torch.device("cpu")
COUNT, BATCH = 60, 6


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every device too small for any images."""
    monkeypatch.setattr(Split, "fits", lambda _split, _device: False)


def stream() -> BatchStream:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=draws)
    split = Split(images, torch.arange(COUNT) % 5).select(torch.randperm(COUNT, generator=draws))
    return BatchStream(split, Data(batch_size=BATCH, cutmix_alpha=1.0), 1, CPU, mirror=True)


def fetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_batches_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, again, backwards, in another epoch, and with views between."""
    places = [(0, 0), (0, 1), (0, 2), (0, 2), (0, 9), (0, 3), (1, 0), (1, 7), ("head:0", 4), (1, 8)]
    plain = stream()
    monkeypatch.setattr(Split, "fits", lambda _split, _device: False)
    fetched = stream()
    for epoch, step in places:
        one, other = plain.batch(epoch, step), fetched.batch(epoch, step)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)
        assert torch.equal(plain.view(View(1), epoch, step), fetched.view(View(1), epoch, step))
    assert len(fetchers()) == 1
    fetched.close()
    assert fetchers() == []
    assert torch.equal(fetched.batch(0, 5).images, plain.batch(0, 5).images)
    fetched.close()


def test_the_next_batches_are_gathered_while_nobody_asks(too_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, ready = list[Tensor](), threading.Event()
    gather = Prefetched._gather

    def noting(self: Prefetched, index: Tensor) -> Tensor:
        block = gather(self, index)
        gathered.append(index)
        if len(gathered) == 1 + AHEAD:
            ready.set()
        return block

    monkeypatch.setattr(Prefetched, "_gather", noting)
    batches = stream()
    first = batches.batch(0, 0)
    assert ready.wait(60)
    assert torch.equal(gathered[0], first.index)
    second = batches.batch(0, 1)
    assert torch.equal(gathered[1], second.index)
    batches.close()
    assert len(gathered) <= 2 + AHEAD, "never further ahead"


def test_a_run_has_the_same_bits_and_leaves_no_thread(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("toy_bank", anchor=lab.anchor(data__cutmix_alpha=1.0))
    expected = lab.digest_after(spec, "resident")
    monkeypatch.setattr(Split, "fits", lambda _split, _device: False)
    with pytest.raises(Interrupted):
        lab.train([spec], "fetched", should_stop=lab.stop_after(6))
    assert fetchers() == []
    assert lab.digest_after(spec, "fetched") == expected
    assert fetchers() == []


def test_an_error_in_the_thread_reaches_the_trainer(lab: Any, too_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gather, calls = Prefetched._gather, list[int]()

    def failing(self: Prefetched, index: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("train.npy: the disk went away")
        return gather(self, index)

    monkeypatch.setattr(Prefetched, "_gather", failing)
    with pytest.raises(OSError, match=r"train\.npy: the disk went away"):
        lab.train([lab.spec("student")], "broken")
    assert fetchers() == []


@pytest.mark.parametrize(("free", "fits"), [(10**9, True), (COUNT * 192 * 2, False)])
def test_images_take_a_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch, free: int, fits: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 10**12))
    split = Split(torch.zeros(2 * COUNT, 3, 8, 8, dtype=torch.uint8), torch.zeros(COUNT, dtype=torch.long))
    assert split.fits(torch.device("cuda")) is fits
    assert split.fits(CPU)
