"""In how small a batch a teacher says the same as in a whole one, found out by trying.

Kernels are chosen by the shape of a batch, and some add in another order: on a CPU in float32 most networks say the
same bits of an image in any batch, but large ResNets and ConvNeXts do not in batches of one or three. So images that
are not in the cache are computed in a batch of a size that was tried on this machine, filled up with repetitions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.types import Features

Say = Callable[[Tensor], Features]
SHARES, SMALLEST = 8, 4  # batches of one to seven eighths are tried, if they have so many images


def rows_of(images: Tensor, places: Tensor) -> Tensor:
    """Return some of the images (N, C, H, W), plane by plane in memory like those of a batch: networks look at that."""
    return images.index_select(0, places)


def filled_up(images: Tensor, size: int) -> Tensor:
    """Return a batch of ``size`` that begins with the images and repeats them."""
    if len(images) == size:
        return images
    return rows_of(images, torch.arange(size, device=images.device) % len(images))


def safe_shapes(say: Say, images: Tensor) -> tuple[int, ...]:
    """Return the batch sizes in which images get the bits that they get in a whole batch, smallest first.

    Args:
        say: The teacher, at once for all images of its argument.
        images: A whole batch.

    Returns:
        Sizes, the whole batch last; empty if even there an image's place in the batch matters.
    """
    whole, count = say(images), len(images)
    sizes = sorted({-(-count * share // SHARES) for share in range(1, SHARES)})
    # The last images first: each is then at another place than in the whole batch.
    backwards = torch.arange(count - 1, -1, -1, device=images.device)
    tried = [
        size
        for size in (*(size for size in sizes if size >= SMALLEST), count)
        if same(say(rows_of(images, backwards[:size])), whole, backwards[:size])
    ]
    return tuple(tried) if tried[-1:] == [count] else ()


def same(some: Features, whole: Features, places: Tensor) -> bool:
    """Return whether some images' outputs are, to the bit, those at ``places`` of others."""
    pairs = [(some.logits, whole.logits), (some.embedding, whole.embedding)]
    return all(torch.equal(a, b[places]) for a, b in pairs if a is not None and b is not None)
