"""The synergy logits, taught (3.3) and evaluated (2.3): bridge and head in eval mode, without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.losses import wide
from kdbench.methods.asib.bridge import Bottleneck, ask
from kdbench.methods.asib.options import ASIBOptions
from kdbench.modes import evaluating


@dataclass(frozen=True)
class Synergy:
    """What bridge and head say of a batch, constants.

    Args:
        bottleneck: The bridge's.
        logits: Scaled synergy logits (N, C).
    """

    bottleneck: Bottleneck
    logits: Tensor


def synergy_of(
    bridge: nn.Module, head: nn.Module, query: Tensor, tokens: Tensor, options: ASIBOptions, noise: Tensor | None
) -> Synergy:
    """Return the synergy of a batch.

    Args:
        bridge: A :class:`~kdbench.methods.asib.bridge.Bridge`.
        head: A :class:`~kdbench.methods.asib.head.SynergyHead`.
        query: The student's feature (N, q_dim).
        tokens: The teachers' tokens (N, K, kv_dim).
        options: ``use_mu_for_kd``, ``ib_mbm_feature_norm``, ``synergy_logit_scale``.
        noise: Standard normal draws (N, width); needed where ``use_mu_for_kd`` is off, else unused.

    Raises:
        ValueError: If a sample is wanted, but there is no noise.
    """
    if not options.use_mu_for_kd and noise is None:
        raise ValueError(
            "use_mu_for_kd - it is false, but there is no noise to sample the bottleneck with - allowed is noise of "
            "shape (N, width) - pass it, or set use_mu_for_kd: true"
        )
    draws = None if options.use_mu_for_kd else noise
    with torch.no_grad(), evaluating(bridge, head):
        bottleneck = ask(bridge, query, tokens, options.ib_mbm_feature_norm, noise=draws)
        return Synergy(bottleneck, options.synergy_logit_scale * wide(head(bottleneck.z)))


def ensemble_logits(bridge: nn.Module, head: nn.Module, query: Tensor, tokens: Tensor, options: ASIBOptions) -> Tensor:
    """Return the synergy logits (N, C) that are evaluated: of the bottleneck's mean, whatever the B-Step takes.

    Args:
        bridge: A :class:`~kdbench.methods.asib.bridge.Bridge`.
        head: A :class:`~kdbench.methods.asib.head.SynergyHead`.
        query: The student's feature (N, q_dim).
        tokens: The teachers' tokens (N, K, kv_dim).
        options: ``ib_mbm_feature_norm``.

    Source:
        Specification of the ASIB benchmark, 2.3, SynergyEnsemble.
    """
    with torch.no_grad(), evaluating(bridge, head):
        return wide(head(ask(bridge, query, tokens, options.ib_mbm_feature_norm, noise=None).mu))
