"""Mixup and cutmix of whole batches; every draw of an epoch is made on the host beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.config.schema import Data
from kdbench.method import Mix
from kdbench.seeds import numpy_generator, torch_generator


@dataclass(frozen=True)
class MixPlan:
    """How one batch is mixed.

    Args:
        partners: Permutation of the batch (N,), on the device of the images when it is applied.
        share: Share of the own image, in [0, 1].
        box: (x1, y1, x2, y2) in pixels of the pasted patch; None = mixup.
    """

    partners: Tensor
    share: float
    box: tuple[int, int, int, int] | None


def plan_mixing(
    data: Data, seed: int, epoch: int | str, steps: int, batch_size: int, image: tuple[int, int]
) -> list[MixPlan] | None:
    """Return how each batch of an epoch is mixed, or None without mixing.

    Args:
        data: The anchor's data section; cutmix wins over mixup.
        seed: Seed of the run.
        epoch: 0-based epoch.
        steps: Batches.
        batch_size: Images per batch.
        image: (height, width) in pixels.
    """
    alpha = data.cutmix_alpha or data.mixup_alpha
    if not alpha:
        return None
    draws = numpy_generator(seed, "mix", epoch)
    permutations = torch_generator(seed, "mix", epoch, "partners")
    shares = draws.beta(alpha, alpha, size=steps)
    centres = draws.random((steps, 2))
    plans = []
    for share, centre in zip(shares.tolist(), centres.tolist(), strict=True):
        partners = torch.randperm(batch_size, generator=permutations)
        if data.cutmix_alpha:
            box, share = cutmix_box(share, centre, image)  # noqa: PLW2901 (the share the box really leaves)
            plans.append(MixPlan(partners, share, box))
        else:
            plans.append(MixPlan(partners, share, None))
    return plans


def cutmix_box(share: float, centre: list[float], image: tuple[int, int]) -> tuple[tuple[int, int, int, int], float]:
    """Return (x1, y1, x2, y2) of the patch and the share of the own image that remains.

    Args:
        share: Drawn share of the own image, in [0, 1].
        centre: Centre (x, y) of the patch, in [0, 1).
        image: (height, width) in pixels.

    Source:
        Yun et al. 2019, arXiv:1905.04899, section 3.1: sides in proportion to sqrt(1 - share).
    """
    height, width = image
    side = (1 - share) ** 0.5
    box_width, box_height = int(width * side), int(height * side)
    x, y = int(centre[0] * width), int(centre[1] * height)
    x1, x2 = max(x - box_width // 2, 0), min(x + box_width // 2, width)
    y1, y2 = max(y - box_height // 2, 0), min(y + box_height // 2, height)
    return (x1, y1, x2, y2), 1 - (x2 - x1) * (y2 - y1) / (height * width)


def apply_mix(plan: MixPlan, images: Tensor, labels: Tensor) -> tuple[Tensor, Mix]:
    """Return mixed images (N,C,H,W) and the partners' labels; ``images`` is used up."""
    partners = plan.partners
    if plan.box is None:
        mixed = torch.lerp(images[partners], images, plan.share)
    else:
        x1, y1, x2, y2 = plan.box
        mixed = images
        mixed[:, :, y1:y2, x1:x2] = images[:, :, y1:y2, x1:x2][partners]
    return mixed, Mix(labels[partners], plan.share)
