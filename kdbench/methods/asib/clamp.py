"""Limits of a loss: KD against CE, and the whole of it (3.5, 3.6).

The trainer minimises the sum of weight times value. A limit therefore scales weights, by constants of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.losses import wide
from kdbench.methods.asib.options import ASIBOptions
from kdbench.types import Term

_LEAST = 1e-6
_SOFT_EPSILON = 1e-8
CUT = "clamp"  # the constant term of a hard limit


def kd_scale(ce: Tensor, kd: Tensor, options: ASIBOptions, epoch: int) -> Tensor:
    """Return the constant factor in (0, 1] on KD that keeps it within ``kd_max_ratio`` times CE after the warm-up.

    Args:
        ce: Cross-entropy, a scalar.
        kd: KD, a scalar.
        options: ``kd_max_ratio``, ``kd_warmup_epochs``.
        epoch: 0-based epoch of the B-Step.
    """
    if options.kd_max_ratio is None or epoch + 1 <= options.kd_warmup_epochs:
        return torch.ones_like(wide(kd.detach()))
    allowed = options.kd_max_ratio * wide(ce.detach()).clamp(min=_LEAST)
    return (allowed / wide(kd.detach()).clamp(min=_LEAST)).clamp(max=1.0)


@dataclass(frozen=True)
class Limited:
    """Terms within the limit.

    Args:
        terms: The terms, whose sum is within the limit.
        before: Their weighted sum without it, a constant.
    """

    terms: dict[str, Term]
    before: Tensor


def limited(terms: Mapping[str, Term], options: ASIBOptions, epochs: int) -> Limited:
    """Return terms whose weighted sum is at most ``loss_clamp_max``, once the warm-up is over.

    Soft: every weight is scaled by the same constant. Hard: above the limit every weight is 0, so no gradient is left,
    and a constant term gives the sum its value. A sum that is not finite stays so: the trainer has to see it.

    Args:
        terms: The terms.
        options: ``use_loss_clamp``, ``loss_clamp_mode``, ``loss_clamp_max``, ``loss_clamp_warmup_epochs``.
        epochs: Epochs of the step's kind that are done, over all stages.

    Source:
        Specification of the ASIB benchmark, 3.6.
    """
    parts = [term.weight * wide(term.value.detach()) for term in terms.values()]
    before = torch.stack(parts).sum()
    if not options.use_loss_clamp or epochs < options.loss_clamp_warmup_epochs:
        return Limited(dict(terms), before)
    most = options.loss_clamp_max
    if options.loss_clamp_mode == "soft":
        factor = (most / (before + _SOFT_EPSILON)).clamp(max=1.0)
        return Limited({name: Term(term.value, term.weight * factor) for name, term in terms.items()}, before)
    # The negation keeps NaN inside: NaN > most is false.
    inside = (~((before > most) | (before < 0))).to(before.dtype)
    kept = {name: Term(term.value, term.weight * inside) for name, term in terms.items()}
    ends = torch.zeros_like(before).masked_fill(before > most, most)
    return Limited({**kept, CUT: Term(ends)}, before)
