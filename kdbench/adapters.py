"""Adapters: small learned modules between networks of different widths."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelAdapter(nn.Module):
    """A residual of two 1x1 convolutions with GroupNorm: x + GN(conv(ReLU(GN(conv(x))))).

    Args:
        channels: Channels n of the maps (N, n, H, W); groups are min(32, n).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = min(32, channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(self.conv1(x)).relu()
        out: Tensor = x + self.norm2(self.conv2(inner))
        return out
