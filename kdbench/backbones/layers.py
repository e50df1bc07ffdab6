"""The small parts all convolutional families are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """Return a convolution padded so that only the stride changes height and width."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the 1x1 convolution + BN of a shortcut that changes shape, else the identity (which has no state)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Residual branch of two 3x3 convolutions; a subclass adds the shortcut under the name its checkpoints use."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)

    def residual(self, x: Tensor) -> Tensor:
        """Return the branch (N,C,H,W) without shortcut and last activation."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return out


def stage(
    block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, depth: int, stride: int
) -> nn.Sequential:
    """Return ``depth`` blocks, each built with (input channels, output channels, stride); only the first strides."""
    rest = (block(outputs, outputs, 1) for _ in range(depth - 1))
    return nn.Sequential(block(inputs, outputs, stride), *rest)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """Run blocks that return their value before ReLU; return the last one's (before, after) ReLU."""
    before = x
    for block in blocks:
        before = block(x)
        x = F.relu(before)
    return before, x


def global_pool(x: Tensor) -> Tensor:
    """Return the mean (N,C) over the positions of (N,C,H,W), whatever H and W are."""
    return x.mean(dim=(2, 3))


def initialise(network: nn.Module) -> None:
    """Give convolutions He's fan-out normal weights and zero bias, and BN scale 1 and shift 0; heads stay as built.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, section 2.2.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
