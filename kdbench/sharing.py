"""Which images of every batch each of several devices has, and which runs cannot be divided among devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.config.schema import Anchor
from kdbench.method import AnyMethod


@dataclass(frozen=True)
class Share:
    """A device's part of every batch.

    A step may do its batch in parts, each with a backward pass. Then a device has its share of each part, so that the
    images that go through the networks at the same time, on all devices together, are those of a single device.

    Args:
        rank: The device's place, in [0, size).
        size: Number of devices, >= 1.
        parts: Parts of a batch, >= 1.
    """

    rank: int = 0
    size: int = 1
    parts: int = 1

    def rows(self, count: int) -> Tensor:
        """Return the device's places in a batch of ``count`` images, int64 (count / size,); both divide it."""
        return torch.arange(count).view(self.parts, self.size, -1)[:, self.rank].flatten()


def batch_of_pass(method: type[AnyMethod], anchor: Anchor, batch: int, devices: int) -> int:
    """Return how many images a method's losses see at a time.

    Args:
        method: The method.
        anchor: The protocol as it holds for the method.
        batch: Images of a step, over all devices.
        devices: Devices that train the run together.
    """
    among = devices if method.distributed == "slices" else 1
    return max(1, batch // (anchor.step.accumulate * among))


def indivisible(method: type[AnyMethod], anchor: Anchor, batch: int, devices: int) -> str | None:
    """Return why several devices cannot train a run of the method together, or None if they can; as above."""
    if devices == 1:
        return None
    if method.distributed is None:
        return (
            f"does not say how it trains on {devices} devices; its losses may depend on which images are together. "
            "Leave --devices-per-run out, or let its author declare Method.distributed"
        )
    for key, used in (("compile", anchor.step.compile), ("checkpointing", anchor.step.checkpointing)):
        if used:
            return f"step.{key} is true, which holds for one device alone; leave --devices-per-run out"
    if batch % (devices * anchor.step.accumulate):
        parts = f" in {anchor.step.accumulate} parts (step.accumulate)" if anchor.step.accumulate > 1 else ""
        return (
            f"a batch of {batch} images{parts} cannot be divided equally among {devices} devices; choose another "
            "--devices-per-run"
        )
    return None
