"""IB_MBM, the bridge: the student's feature asks, the teachers' tokens answer, through a Gaussian bottleneck (1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses import wide

FeatureNorm = Literal["l2", "layernorm", "none"]


@dataclass(frozen=True)
class Bottleneck:
    """What the bridge makes of a batch, each (N, width).

    Args:
        z: The code: a sample, or the mean itself.
        mu: Its mean.
        logvar: Logarithm of its variance, clipped.
    """

    z: Tensor
    mu: Tensor
    logvar: Tensor


class Bridge(nn.Module):
    """Cross-attention of one query over the teachers' tokens, and the mean and log variance of a Gaussian code.

    Args:
        q_dim: Width of the student's feature.
        kv_dim: Width of a token.
        width: Width of the code.
        heads: Attention heads; they divide ``width``.
        logvar_clip: Largest size of the log variance, > 0.
        min_std: Smallest standard deviation of the code, >= 0.

    Raises:
        ValueError: If the heads do not divide the width.

    Source:
        Specification of the ASIB benchmark, 1.2.
    """

    def __init__(
        self, q_dim: int, kv_dim: int, width: int, heads: int = 1, logvar_clip: float = 10.0, min_std: float = 1e-4
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(
                f"ib_mbm_n_head - {heads} heads do not divide the width {width} of the bridge - allowed are the "
                f"divisors of {width} - change ib_mbm_n_head or ib_mbm_out_dim"
            )
        self.kv_dim, self.logvar_clip, self.min_std = kv_dim, logvar_clip, min_std
        self.q_proj, self.kv_proj = nn.Linear(q_dim, width), nn.Linear(kv_dim, width)
        self.q_norm, self.kv_norm, self.out_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mu, self.logvar = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Tensor, tokens: Tensor, *, noise: Tensor | None = None) -> Bottleneck:
        """Return the bottleneck of a batch.

        Args:
            query: The student's feature (N, q_dim).
            tokens: (N, K, kv_dim); (N, kv_dim) is one token, and so is (N, K, e) with K * e = kv_dim, flattened.
            noise: Standard normal draws (N, width) of a sample; None = the code is the mean, in any mode of the module.

        Raises:
            ValueError: If the tokens have another shape.
        """
        asked = self.q_norm(self.q_proj(query)).unsqueeze(1)
        known = self.kv_norm(self.kv_proj(self._as_tokens(tokens)))
        # With its weights asked for, attention takes the plain path: the fused ones' gradients differ from run to run.
        answer, _ = self.attn(asked, known, known, need_weights=True)
        hidden = self.out_norm(answer + asked).squeeze(1)
        mu, logvar = wide(self.mu(hidden)), wide(self.logvar(hidden)).clamp(-self.logvar_clip, self.logvar_clip)
        return Bottleneck(mu if noise is None else mu + self.std(logvar) * noise, mu, logvar)

    def std(self, logvar: Tensor) -> Tensor:
        """Return the standard deviation of the code for its log variance (N, width)."""
        return (logvar / 2).exp().clamp(min=self.min_std)

    def _as_tokens(self, tokens: Tensor) -> Tensor:
        if tokens.dim() == 2:
            tokens = tokens.unsqueeze(1)
        if tokens.dim() == 3 and tokens.shape[2] != self.kv_dim and tokens[0].numel() == self.kv_dim:
            tokens = tokens.flatten(1).unsqueeze(1)
        if tokens.dim() != 3 or tokens.shape[2] != self.kv_dim:
            raise ValueError(
                f"tokens of the bridge - their shape is {tuple(tokens.shape)}, but a token has {self.kv_dim} values - "
                f"allowed are (N, K, {self.kv_dim}), (N, {self.kv_dim}) and (N, K, e) with K * e = {self.kv_dim} - "
                "give the teachers' tokens one width"
            )
        return tokens


def normalise(features: Tensor, how: FeatureNorm) -> Tensor:
    """Return features (..., D) as ``ib_mbm_feature_norm`` has them: unit vectors, standardised, or as they are.

    Raises:
        ValueError: If ``how`` is anything else.
    """
    if how == "none":
        return features
    if how == "l2":
        return F.normalize(wide(features), dim=-1)
    if how == "layernorm":
        return F.layer_norm(wide(features), features.shape[-1:])
    raise ValueError(f"ib_mbm_feature_norm - '{how}' is unknown - allowed are l2, layernorm, none - write one of them")


def ask(bridge: nn.Module, query: Tensor, tokens: Tensor, how: FeatureNorm, *, noise: Tensor | None) -> Bottleneck:
    """Return the bridge's bottleneck of normalised features: the one way in for both steps and for evaluation.

    Args:
        bridge: A :class:`Bridge`.
        query: The student's feature (N, q_dim).
        tokens: The teachers' tokens, (N, K, kv_dim).
        how: ``ib_mbm_feature_norm``.
        noise: Standard normal draws (N, width) of a sample; None = the mean.
    """
    found: Bottleneck = bridge(normalise(query, how), normalise(tokens, how), noise=noise)
    return found


def ib_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mu, exp(logvar)) || N(0, 1)) in nats, summed over the code and averaged over the batch.

    Args:
        mu: Means (N, D).
        logvar: Log variances (N, D).

    Source:
        Specification of the ASIB benchmark, 2.2, L_IB without its weight; Kingma & Welling 2014, arXiv:1312.6114, B.
    """
    mean, spread = wide(mu), wide(logvar)
    return (-0.5 * (1 + spread - mean.square() - spread.exp()).sum(1)).mean()


def certainty(logvar: Tensor) -> Tensor:
    """Return how certain the bottleneck is of each sample (N,): the mean precision of its code, exp(-logvar) (N, D)."""
    return torch.exp(-wide(logvar)).mean(1)
