"""The batch stream: which images, which crops, flips and mixes, all functions of (seed, epoch) alone.

The dataset lives on the device as uint8, or, where that is the CPU or too small, on the host, in memory or mapped from
its file. A batch is one gather, and padding is index arithmetic, so that no second copy of the images is made. Nothing
here depends on the method, so all methods of a seed see the same pixels, and a resumed run needs no sampler state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdbench.config.schema import Data
from kdbench.datasets.base import Split
from kdbench.errors import ConfigError
from kdbench.method import Mix, View
from kdbench.seeds import torch_generator
from kdbench.sharing import Share
from kdbench.training.crops import Crops
from kdbench.training.mixing import apply_mix, plan_mixing
from kdbench.training.pixels import Found, Pixels, Prefetched, Resident


@dataclass(frozen=True)
class Inputs:
    """One batch before any network.

    Args:
        images: (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        index: Sample indices, int64 (N,).
        mix: How images were mixed.
        entries: Which crop of which image each one is, int64 (N,) in main memory: ``index * crops.count + number``;
            None where images were mixed, or are no crops of the training split.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    mix: Mix | None
    entries: Tensor | None = None

    def rows(self, places: Tensor) -> Inputs:
        """Return some of the images, at ``places`` (M,); it is not said which crops they are."""
        mix = None if self.mix is None else replace(self.mix, labels=self.mix.labels[places])
        return Inputs(self.images[places], self.labels[places], self.index[places], mix)


class BatchStream:
    """Augmented batches of a training split.

    Args:
        split: Training images, after the validation split was cut.
        data: The anchor's data section.
        seed: Seed of the run.
        device: Where batches are made.
        mirror: Whether the dataset allows horizontal flips.
        share: Which of each batch's images are made here: those of one device among several, or all. Which images a
            batch has, and how they look, does not depend on it.
    """

    def __init__(
        self, split: Split, data: Data, seed: int, device: torch.device, *, mirror: bool, share: Share = Share()
    ) -> None:
        self.data, self.seed, self.device = data, seed, device
        self.size = len(split)
        self.batch_size = min(data.batch_size, self.size)
        # A partial last batch is left out: it would have other BatchNorm statistics, and every epoch reshuffles.
        self.steps = max(1, self.size // self.batch_size)
        self._own = None if share.size == 1 else share.rows(self.batch_size)
        self._own_here = None if self._own is None else self._own.to(device)
        self.height, self.width = split.image.height, split.image.width
        self.crops = Crops.of(data, self.height, mirror=mirror)
        self.padding = self.crops.padding
        self.reflects = data.padding_mode == "reflect"
        if self.reflects and self.padding >= min(self.height, self.width):
            raise ConfigError(
                f"data.crop_padding {data.crop_padding}: pads images of {self.height}x{self.width} by {self.padding} "
                "pixels, and reflection needs fewer than an image has; lower it, or set data.padding_mode: zeros"
            )
        self._pixels: Pixels = Resident(split.on(device)) if split.fits(device) else Prefetched(split, device)
        self.labels = split.labels.to(device)
        self._rows = torch.arange(self.height, device=device)
        self._columns = torch.arange(self.width, device=device)
        self._epoch: int | str = -1
        self._view_offsets: dict[View, Tensor] = {}

    def start_epoch(self, epoch: int | str) -> None:
        """Draw everything random of an epoch at once."""
        shape = (self.size,)
        order = torch.randperm(self.size, generator=torch_generator(self.seed, "order", epoch))
        draws = torch_generator(self.seed, "augment", epoch)
        offsets = self._draw_offsets(draws)
        mirrored = torch.randint(2, shape, generator=draws).bool() & self.crops.flips
        # In main memory: whoever looks an input up there must not wait for the device.
        self._entries = order * self.crops.count + self.crops.numbers(offsets, mirrored)[order]
        # Copied once an epoch: a copy in every step could make the host wait for the device.
        self._order, self._offsets, self._mirrored = (part.to(self.device) for part in (order, offsets, mirrored))
        plans = plan_mixing(self.data, self.seed, epoch, self.steps, self.batch_size, (self.height, self.width))
        self._mixes = [replace(plan, partners=plan.partners.to(self.device)) for plan in plans] if plans else None
        self._pixels.start_epoch([self._made(order[self._part(step)]) for step in range(self.steps)])
        self._view_offsets = {}
        self._epoch = epoch

    def _draw_offsets(self, draws: torch.Generator) -> Tensor:
        return torch.randint(self.crops.side, (2, self.size), generator=draws)

    def batch(self, epoch: int | str, step: int, *, mixed: bool = True) -> Inputs:
        """Return the batch of a step of an epoch (0-based; other phases name theirs), mixed if the anchor says so."""
        if epoch != self._epoch:
            self.start_epoch(epoch)
        at = self._rows_of(step)
        source = self._pixels.of(step, at)
        images = self._cropped(source, self._offsets[:, at], self._mirrored[at])
        labels = self.labels[at]
        if self._mixes is None or not mixed:
            made = Inputs(images, labels, at, None, self._made(self._entries[self._part(step)]))
        else:
            images, mix = apply_mix(self._mixes[step], images, labels)
            made = Inputs(images, labels, at, mix)
        return made if self._kept is None else made.rows(self._kept)

    def images_of(self, entries: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of ``Inputs.entries`` (N,), to the bit as a batch has them."""
        entries = entries.to(self.device)
        found = self._pixels.any_of(entries // self.crops.count)
        return self._cropped(found, *self.crops.parts(entries % self.crops.count))

    def view(self, view: View, epoch: int | str, step: int, *, mixed: bool = True) -> Tensor:
        """Return one view (N, C, H, W) of a step's images: mirrored as they are, turned, cropped anew, mixed alike."""
        if epoch != self._epoch:
            self.start_epoch(epoch)
        if view not in self._view_offsets:
            draws = torch_generator(self.seed, "augment", epoch, f"turned{view.quarter_turns}")
            self._view_offsets[view] = self._draw_offsets(draws).to(self.device)
        at = self._rows_of(step)
        whole = (torch.arange(n + 2 * self.padding, device=self.device)[None] for n in (self.height, self.width))
        padded = self._padded(self._pixels.of(step, at), *whole)
        padded = view.turned(torch.where(self._mirrored[at, None, None, None], padded.flip(3), padded))
        images = crop(padded, *self._window(self._view_offsets[view][:, at])).float().div_(255)
        if self._mixes is not None and mixed:
            images, _ = apply_mix(self._mixes[step], images, self.labels[at])
        return images if self._kept is None else images[self._kept]

    def close(self) -> None:
        """End what fetches images in the background; it begins again with the next batch."""
        self._pixels.close()

    def _part(self, step: int) -> slice:
        return slice(step * self.batch_size, (step + 1) * self.batch_size)

    @property
    def _kept(self) -> Tensor | None:
        """Places (M,) of what is kept of a batch; None = all that is made. Mixing needs partners from everywhere."""
        return None if self._mixes is None else self._own_here

    def _made(self, of_batch: Tensor) -> Tensor:
        """Return those entries of a batch's (N,) whose images are made here."""
        own = self._own if of_batch.device.type == "cpu" else self._own_here
        return of_batch if own is None or self._mixes is not None else of_batch[own]

    def _rows_of(self, step: int) -> Tensor:
        return self._made(self._order[self._part(step)]).clone()

    def _cropped(self, source: Found, offsets: Tensor, mirrored: Tensor) -> Tensor:
        """Return images in [0, 1] that were found, at offsets (2, N), those that are mirrored (N,) flipped."""
        return self._padded(source, *self._window(offsets, mirrored)).float().div_(255)

    def _window(self, offsets: Tensor, mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the coordinates, down (N, H) and across (N, W), of crops of padded images at offsets (2, N)."""
        columns = self._columns.expand(offsets.shape[1], -1)
        if mirrored is not None:
            columns = torch.where(mirrored[:, None], self._columns.flip(0), columns)
        return offsets[0][:, None] + self._rows, offsets[1][:, None] + columns

    def _padded(self, source: Found, down: Tensor, across: Tensor) -> Tensor:
        """Return uint8 pixels (N, C, h, w) of images at coordinates, down (N or 1, h) and across (N or 1, w).

        Coordinates count from the corner of the padding, which exists only here: a reflected coordinate is that of the
        pixel it mirrors, and one in a border of zeros is that of the nearest pixel, which is then blanked.
        """
        (rows, above), (columns, beside) = self._unpadded(down, self.height), self._unpadded(across, self.width)
        store, places = source
        pixels = crop(store[places], rows, columns)
        if self.padding and not self.reflects:
            pixels *= (above[:, :, None] & beside[:, None, :])[:, None]
        return pixels

    def _unpadded(self, coordinates: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return where padded coordinates come from on an axis of an image, and whether they lie on it."""
        own = coordinates - self.padding
        if self.reflects:
            return (length - 1) - ((length - 1) - own.abs()).abs(), own >= 0
        inside = own.clamp(0, length - 1)
        return inside, inside == own


def crop(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels (N, C, h, w) of images (N, C, H, W) at rows (N or 1, h) and columns (N or 1, w) of each.

    One gather over each image's plane, several times faster than indexing pixel by pixel. Planes stay whole: networks
    normalise them before they go to channels-last, which is several times faster than the other way round.
    """
    count, channels, _, width = images.shape
    places = rows[:, :, None] * width + columns[:, None, :]
    found = images.flatten(2).gather(2, places.flatten(1)[:, None].expand(count, channels, -1))
    return found.view(count, channels, *places.shape[1:])
