"""Small trainable modules that any method may use: projections of embeddings and channel adapters of maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.types import Context

# Students, by parts of their names, whose embedding is wide for their size: their adapters end at SMALL_WIDTH.
SMALL_STUDENTS = ("mobilenet_v2", "efficientnet_b0", "shufflenet_v2")
SMALL_WIDTH = 256
MOST_GROUPS = 32


def _missing(width: int | None) -> bool:
    return width is None or width <= 0


class DistillAdapter(nn.Module):
    """Two linear layers with biases and a ReLU between: embeddings (N, D) to tokens (N, o).

    Args:
        width: Width D of the embedding, >= 1.
        out: Width o of the tokens; missing (None, 0 or less) = a quarter of D.
        hidden: Width of the hidden layer; missing = half of D, and at least o.

    Raises:
        ValueError: If the embedding is too narrow for a quarter of it.
    """

    def __init__(self, width: int, out: int | None = None, hidden: int | None = None) -> None:
        super().__init__()
        self.out, self.hidden = adapter_widths(width, out, hidden)
        self.first, self.second = nn.Linear(width, self.hidden), nn.Linear(self.hidden, self.out)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the tokens (N, o) of embeddings (N, D)."""
        tokens: Tensor = self.second(F.relu(self.first(embedding)))
        return tokens


def adapter_widths(width: int, out: int | None = None, hidden: int | None = None) -> tuple[int, int]:
    """Return (o, hidden) of a :class:`DistillAdapter`.

    Raises:
        ValueError: If the embedding is too narrow for a quarter of it.
    """
    tokens = width // 4 if out is None or out <= 0 else out
    if tokens < 1:
        raise ValueError(f"an embedding of width {width} has no quarter; give the adapter's width out, >= 1")
    return tokens, max(width // 2, tokens) if hidden is None or hidden <= 0 else hidden


class ChannelAdapter(nn.Module):
    """A residual block of two 1x1 convolutions: x + GN(conv(ReLU(GN(conv(x))))), which keeps the map's shape.

    The convolutions have no bias; GroupNorm has min(32, n) groups.

    Args:
        channels: Channels n of the map; above 32, a multiple of 32.

    Raises:
        ValueError: If the channels do not form 32 equal groups.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = min(MOST_GROUPS, channels)
        if channels < 1 or channels % groups:
            raise ValueError(f"channels is {channels}: 1..{MOST_GROUPS}, or a multiple of {MOST_GROUPS}")
        self.first = nn.Conv2d(channels, channels, 1, bias=False)
        self.first_norm = nn.GroupNorm(groups, channels)
        self.second = nn.Conv2d(channels, channels, 1, bias=False)
        self.second_norm = nn.GroupNorm(groups, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return adapted maps (N, n, H, W) of maps of the same shape."""
        inner = F.relu(self.first_norm(self.first(maps)))
        adapted: Tensor = maps + self.second_norm(self.second(inner))
        return adapted


@dataclass(frozen=True)
class AdapterWidths:
    """Widths of a student's and its teachers' adapters, all >= 1.

    Args:
        student: (o, hidden) of the student's adapter.
        teachers: (o, hidden) of each teacher's.
        changes: What was settled that was not asked for, one sentence each, for a log or a record.
    """

    student: tuple[int, int]
    teachers: tuple[tuple[int, int], ...]
    changes: tuple[str, ...] = ()


def settle_widths(context: Context, out: int | None = None, hidden: int | None = None) -> AdapterWidths:
    """Return the widths of all adapters of a pair.

    A small student (see ``SMALL_STUDENTS``) whose ``out`` is missing gets 256, and its teachers as well, so that what
    they say can be compared; the others' missing widths follow from each network's own embedding.

    Args:
        context: Shapes of student and teachers.
        out: Width of all tokens; None, 0 or less = missing.
        hidden: Width of all hidden layers; None, 0 or less = missing.

    Raises:
        ValueError: If an embedding is too narrow for a quarter of it.
    """
    changes = []
    if _missing(out) and any(part in context.student.name for part in SMALL_STUDENTS):
        out = SMALL_WIDTH
        changes.append(f"out is {out}, as {context.student.name} is a small student")
    settled = []
    for network in (context.student, *context.teachers):
        widths = adapter_widths(network.embedding, out, hidden)
        if _missing(out):
            changes.append(f"out of {network.name} is {widths[0]}, a quarter of its embedding's {network.embedding}")
        if _missing(hidden):
            changes.append(f"hidden of {network.name} is {widths[1]}, the larger of half its embedding and out")
        settled.append(widths)
    return AdapterWidths(settled[0], tuple(settled[1:]), tuple(changes))


class DistillAdapters(nn.Module):
    """One :class:`DistillAdapter` for the student and one for each teacher.

    As a submodule of a method, the student's is trained with the student. The teachers' are fixed random projections
    unless they are to be trained, too.

    Args:
        context: Shapes of student and teachers.
        out: Width of all tokens; missing as in :func:`settle_widths`.
        hidden: Width of all hidden layers; likewise.
        train_teachers: Whether the teachers' adapters are trained, too.

    Raises:
        ValueError: If an embedding is too narrow for a quarter of it.
    """

    def __init__(
        self, context: Context, out: int | None = None, hidden: int | None = None, *, train_teachers: bool = False
    ) -> None:
        super().__init__()
        self.widths = settle_widths(context, out, hidden)
        self.student = DistillAdapter(context.student.embedding, *self.widths.student)
        self.teachers = nn.ModuleList(
            DistillAdapter(teacher.embedding, *widths)
            for teacher, widths in zip(context.teachers, self.widths.teachers, strict=True)
        )
        self.teachers.requires_grad_(train_teachers)

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the student's tokens and each teacher's.

        Args:
            student: The student's embeddings (N, D).
            teachers: Each teacher's embeddings (N, D_k): ask for them with ``TapRequest(..., every_teacher=True)``.

        Raises:
            ValueError: If there are not as many teachers as adapters.
        """
        pairs = zip(self.teachers, teachers, strict=True)
        return self.student(student), tuple(adapter(embedding) for adapter, embedding in pairs)
