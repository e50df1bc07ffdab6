"""Where the cache gives the same results as live teachers, and if not, why: known before anything is trained."""

from __future__ import annotations

from kdbench.config.schema import Anchor
from kdbench.types import Taps


def why_not(anchor: Anchor, device: str, precision: str = "") -> str | None:
    """Return why a protocol has no use for the cache, or None.

    Args:
        anchor: The protocol as it holds for the run.
        device: Type of the device.
        precision: Of the teachers in a phase; empty = the anchor's.
    """
    precision = precision or anchor.step.teacher_precision or anchor.step.precision
    if _mixes(anchor):
        return "the anchor mixes images, so no input comes twice"
    if anchor.step.compile:
        return "step.compile makes a network for each size of a batch, and what is left to ask has many"
    if anchor.step.teacher_cache == "exact" and (precision, device) != ("fp32", "cpu"):
        where = "the CPU" if device == "cpu" else "a GPU"
        return f"step.teacher_cache exact is for fp32 on the CPU (here {precision} on {where}); half is for all"
    return None


def why_live(taps: Taps) -> str | None:
    """Return why a teacher with these taps runs live, or None: feature maps are larger than what they are made from."""
    return "it needs feature maps" if taps.stages else None


def rounds(anchor: Anchor) -> bool:
    """Return whether what teachers say of unmixed batches is rounded, with or without a cache."""
    return anchor.step.teacher_cache == "half" and not _mixes(anchor)


def _mixes(anchor: Anchor) -> bool:
    return anchor.data.mixup_alpha > 0 or anchor.data.cutmix_alpha > 0
