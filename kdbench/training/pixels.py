"""Where the pixels of a batch come from: images that live on the device, or on the host with the next batches fetched.

Both give the same bits. Images that do not fit the device stay where they are, in memory or mapped from their file, and
one thread copies those of the next batches together while the device computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from kdbench.datasets.base import Split

Found = tuple[Tensor, Tensor]  # images (M, C, H, W) on the device, and the rows (N,) of it that are meant
AHEAD = 3  # batches: enough that one slow read of a file is not waited for


class Pixels(Protocol):
    """Images of the batches of an epoch, uint8."""

    def start_epoch(self, batches: Sequence[Tensor]) -> None:
        """Begin an epoch; ``batches`` holds the indices of each batch's images, on the host."""
        ...

    def of(self, step: int, index: Tensor) -> Found:
        """Return the images of a step.

        Args:
            step: 0-based, in any order, but in sequence it is fast.
            index: Indices of its images (N,), on the device.
        """
        ...

    def any_of(self, index: Tensor) -> Found:
        """Return the images at ``index`` (N,), on the device, whatever step they are in."""
        ...

    def close(self) -> None:
        """End what works in the background."""
        ...


class Resident:
    """Images on the device: a batch is read where it lies.

    Args:
        split: On the device.
    """

    def __init__(self, split: Split) -> None:
        self._split = split

    def start_epoch(self, batches: Sequence[Tensor]) -> None:
        """Do nothing: all images are there."""

    def of(self, step: int, index: Tensor) -> Found:  # noqa: ARG002 (where they lie is enough)
        return self.any_of(index)

    def any_of(self, index: Tensor) -> Found:
        return self._split.store, self._split.places(index)

    def close(self) -> None:
        """Do nothing: nothing works in the background."""


class Prefetched:
    """Images on the host, gathered ahead by a thread and copied to the device without waiting.

    Args:
        split: On the host.
        device: Where batches are wanted.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split, self._device = split, device
        self._batches: Sequence[Tensor] = ()
        self._asked: dict[int, Future[Tensor]] = {}
        self._here: tuple[int, Tensor] | None = None
        self._worker: ThreadPoolExecutor | None = None

    def start_epoch(self, batches: Sequence[Tensor]) -> None:
        self._forget(range(0))
        self._batches, self._here = batches, None

    def of(self, step: int, index: Tensor) -> Found:
        """Return the images of a step alone, in order; see :class:`Pixels`.

        Raises:
            Exception: What went wrong in the thread, as it is.
        """
        if self._here is None or self._here[0] != step:
            window = range(step, min(step + 1 + AHEAD, len(self._batches)))
            self._forget(window)
            for wanted in window:
                if wanted not in self._asked:
                    self._asked[wanted] = self._thread().submit(self._gather, self._batches[wanted])
            self._here = step, self._asked.pop(step).result().to(self._device, non_blocking=True)
        return self._here[1], torch.arange(len(index), device=self._device)

    def any_of(self, index: Tensor) -> Found:
        """Return images now, from the thread that asks: nothing was fetched ahead."""
        return self._gather(index.cpu()).to(self._device), torch.arange(len(index), device=self._device)

    def close(self) -> None:
        self._forget(range(0))
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
            self._worker = None

    def _forget(self, window: range) -> None:
        """Let go of batches that nobody will ask for: lanes that catch up step back."""
        for step in [step for step in self._asked if step not in window]:
            self._asked.pop(step).cancel()

    def _thread(self) -> ThreadPoolExecutor:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        return self._worker

    def _gather(self, index: Tensor) -> Tensor:
        """Return the images at ``index`` in one block, from which a GPU can copy by itself."""
        store, pinned = self._split.store, self._device.type == "cuda"
        # Torch keeps pinned blocks and gives one out again only when the copy from it is over.
        block = torch.empty((len(index), *store.shape[1:]), dtype=store.dtype, pin_memory=pinned)
        return torch.index_select(store, 0, self._split.places(index), out=block)
