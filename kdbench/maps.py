"""What methods on feature maps share: which stages they pair, how sizes are brought together, learned connectors.

Stage 0 is a network's stem. "Behind the stem" are stages 1 and deeper, the maps f1..f_last of the literature's code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.types import NetworkInfo, PairInfo, StageShape, Taps


def behind_stem(network: NetworkInfo) -> tuple[int, ...]:
    """Return the indices of all stages but the stem."""
    return tuple(range(1, len(network.stages)))


def taps_behind_stem(network: NetworkInfo, *, pre_activation: bool = False, embedding: bool = False) -> Taps:
    """Return taps of all stages but the stem."""
    return Taps(behind_stem(network), pre_activation=pre_activation, embedding=embedding)


def no_maps(pair: PairInfo) -> str | None:
    """Return why a pair's networks have no feature maps to compare (tokens, or nothing behind the stem), or None."""
    for network in (pair.student, *pair.teachers[:1]):
        if len(network.stages) < 2:
            return f"{network.name} has no stage behind its stem"
        if flat := next((stage for stage in network.stages if not stage.is_map), None):
            return f"{network.name} has tokens ({flat}), no feature maps"
    return None


def unpaired(pair: PairInfo) -> str | None:
    """Return why the stages behind the stem cannot be compared one by one, or None.

    The literature's code pairs them in order, so both networks must have equally many.
    """
    if reason := no_maps(pair):
        return reason
    student, teacher = pair.student, pair.teachers[0]
    ours, theirs = len(student.stages) - 1, len(teacher.stages) - 1
    if ours != theirs:
        return (
            f"stages are compared one by one, and {student.name} has {ours} behind its stem, {teacher.name} has "
            f"{theirs}"
        )
    return None


def paired_shapes(pair: PairInfo) -> list[tuple[StageShape, StageShape]]:
    """Return (student, teacher) shapes of the stages behind the stem."""
    return list(zip(pair.student.stages[1:], pair.teachers[0].stages[1:], strict=True))


def pointlike(pair: PairInfo) -> str | None:
    """Return why paired maps have no positions to compare, all being 1x1 at the smaller size, or None."""
    sizes = [(min(s.height, t.height), min(s.width, t.width)) for s, t in paired_shapes(pair)]
    if any(size != (1, 1) for size in sizes):
        return None
    return "positions of maps are compared, and at the smaller size of each stage all maps are 1x1"


def pool_to(maps: Tensor, side: int) -> Tensor:
    """Return maps (N,C,H,W) averaged over ``side`` x ``side`` cells, which overlap where H is no multiple of it."""
    return _pooled(maps, side, side)


def to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps (N,C,H,W), averaged to the smaller of their heights and widths."""
    height, width = (min(student.shape[axis], teacher.shape[axis]) for axis in (2, 3))
    return _pooled(student, height, width), _pooled(teacher, height, width)


def _pooled(maps: Tensor, height: int, width: int) -> Tensor:
    """Return what adaptive average pooling does, whose own backward pass on CUDA is not deterministic."""
    rows, columns = maps.shape[2:]
    if (rows, columns) == (height, width):
        return maps
    if rows % height == 0 and columns % width == 0:
        return F.avg_pool2d(maps, (rows // height, columns // width))
    return _cells(rows, height, maps) @ maps @ _cells(columns, width, maps).T


def _cells(length: int, count: int, like: Tensor) -> Tensor:
    """Return the matrix (count, length) that averages positions over cells: floor(i L / n) .. ceil((i+1) L / n) - 1."""
    cell = torch.arange(count, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    inside = (position >= cell * length // count) & (position < ((cell + 1) * length + count - 1) // count)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


class Connector(nn.Module):
    """Convolution with bias and BN from a student map to the shape of a teacher map, with or without a ReLU behind.

    Args:
        student: Shape of the student's map.
        teacher: Shape of the teacher's map.
        relu: Whether the output passes a ReLU.

    Raises:
        ValueError: If the teacher's map is larger, but not twice as high and wide (see :func:`unconnectable`).

    Source:
        RepDistiller@b84f547, models/util.py (ConvReg): 3x3 stride 2 where the student's map is twice as high, a
        transposed 4x4 stride 2 where it is half as high, else a valid convolution that leaves the teacher's size.
        The reference looks at heights only; here widths count, too, which is the same for square maps.
    """

    def __init__(self, student: StageShape, teacher: StageShape, *, relu: bool) -> None:
        super().__init__()
        if reason := unconnectable(student, teacher):
            raise ValueError(reason)
        inputs, outputs = student.channels, teacher.channels
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if _twice(student, teacher):
            self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        elif _twice(teacher, student):
            self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        else:
            kernel = (1 + student.height - teacher.height, 1 + student.width - teacher.width)
            self.conv = nn.Conv2d(inputs, outputs, kernel)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, C, H, W) in the teacher's shape."""
        out: Tensor = self.bn(self.conv(maps))
        return F.relu(out) if self.relu else out


def unconnectable(student: StageShape, teacher: StageShape) -> str | None:
    """Return why :class:`Connector` cannot map one shape to the other, or None."""
    covers = student.height >= teacher.height and student.width >= teacher.width
    if covers or _twice(teacher, student):
        return None
    return (
        f"the student's map {student} is smaller than the teacher's {teacher}, and not half its height and width: "
        "there is no connector for that"
    )


def _twice(one: StageShape, other: StageShape) -> bool:
    """Return whether a map is exactly twice as high and wide as another."""
    return (one.height, one.width) == (2 * other.height, 2 * other.width)
