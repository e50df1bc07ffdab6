"""Feature maps: pooling against its definition, which stages are paired, which connector a pair of sizes gets."""

from __future__ import annotations

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.maps import (
    Connector,
    no_maps,
    paired_shapes,
    pointlike,
    pool_to,
    taps_behind_stem,
    to_smaller,
    unconnectable,
    unpaired,
)
from kdbench.types import NetworkInfo, PairInfo, StageShape, Taps

Dims = tuple[int, ...]


def network(name: str, *stages: Dims) -> NetworkInfo:
    return NetworkInfo(name, tuple(StageShape(dims) for dims in stages), embedding=4, classes=3, parameters=1)


def pair(student: list[Dims], *teachers: list[Dims]) -> PairInfo:
    made = tuple(network(f"teacher{i}", *stages) for i, stages in enumerate(teachers, 1))
    return PairInfo("toy", network("student", *student), made, StageShape((3, 8, 8)))


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def cell_means(x: Tensor, side: int) -> Tensor:
    out = torch.empty(*x.shape[:2], side, side, dtype=x.dtype)
    rows, columns = ([(i * n // side, ceil((i + 1) * n / side)) for i in range(side)] for n in x.shape[2:])
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            out[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 5), (7, 10), (8, 6), (2, 2)], ids=str)
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_pooling_is_the_mean_over_cells_that_may_overlap(size: tuple[int, int], side: int) -> None:
    x = maps(2, 3, *size)
    mine, theirs = pool_to(x, side), F.adaptive_avg_pool2d(x, side)
    torch.testing.assert_close(mine, cell_means(x.detach(), side), rtol=0, atol=1e-14, check_device=False)
    weights = maps(2, 3, side, side, seed=1)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (mine, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("ours", "theirs"), [(8, 4), (4, 8), (7, 4), (4, 7), (5, 5)])
def test_the_larger_map_is_pooled_whichever_it_is(ours: int, theirs: int, layout: torch.memory_format) -> None:
    student, teacher = (maps(2, 3, side, side).to(memory_format=layout) for side in (ours, theirs))
    one, two = to_smaller(student, teacher)
    side = min(ours, theirs)
    torch.testing.assert_close(one, F.adaptive_avg_pool2d(student, side))
    torch.testing.assert_close(two, F.adaptive_avg_pool2d(teacher, side))
    assert (one is student, two is teacher) == (ours <= theirs, theirs <= ours)


def test_maps_that_are_not_square_meet_at_the_smaller_height_and_width() -> None:
    one, two = to_smaller(maps(1, 2, 8, 12), maps(1, 3, 4, 6))
    assert (one.shape[2:], two.shape[2:]) == ((4, 6), (4, 6))
    one, two = to_smaller(maps(1, 2, 4, 6), maps(1, 3, 5, 5))
    assert (one.shape[2:], two.shape[2:]) == ((4, 5), (4, 5))


def test_pooling_knows_shapes_without_numbers() -> None:
    assert pool_to(torch.empty(2, 3, 7, 7, device="meta"), 4).shape == (2, 3, 4, 4)
    assert pool_to(torch.ones(1, 1, 7, 7), 4).dtype == torch.float32


def test_stages_behind_the_stem() -> None:
    info = pair([(2, 8, 8), (4, 8, 8), (6, 4, 4)], [(3, 8, 8), (5, 8, 8), (7, 4, 4)])
    assert taps_behind_stem(info.student, embedding=True) == Taps((1, 2), embedding=True)
    assert taps_behind_stem(info.student, pre_activation=True) == Taps((1, 2), pre_activation=True)
    assert [(s.channels, t.channels) for s, t in paired_shapes(info)] == [(4, 5), (6, 7)]
    assert unpaired(info) is no_maps(info) is pointlike(info) is None


def test_stages_that_cannot_be_paired() -> None:
    two, three, tokens = [(2, 8, 8), (4, 4, 4)], [(2, 8, 8), (4, 8, 8), (6, 4, 4)], [(16, 32), (16, 32)]
    assert unpaired(pair(two, three)) == (
        "stages are compared one by one, and student has 1 behind its stem, teacher1 has 2"
    )
    assert no_maps(pair(two, three)) is None
    for reason in (no_maps(pair(two, tokens)), unpaired(pair(two, tokens))):
        assert reason == "teacher1 has tokens (16x32), no feature maps"
    assert no_maps(pair(tokens, two)) == "student has tokens (16x32), no feature maps"
    assert no_maps(pair([(2, 8, 8)], two)) == "student has no stage behind its stem"


def test_other_teachers_only_have_to_answer() -> None:
    two, three, tokens = [(2, 8, 8), (4, 4, 4)], [(2, 8, 8), (4, 8, 8), (6, 4, 4)], [(16, 32), (16, 32)]
    assert unpaired(pair(two, two, three)) is None
    assert unpaired(pair(two, two, tokens)) is None
    assert unpaired(pair(three, three, two)) is None


def test_pairs_whose_maps_have_no_positions() -> None:
    stem = (2, 4, 4)
    assert "all maps are 1x1" in (pointlike(pair([stem, (4, 1, 1), (4, 1, 1)], [stem, (4, 4, 4), (4, 1, 1)])) or "")
    assert pointlike(pair([stem, (4, 2, 2), (4, 1, 1)], [stem, (4, 4, 4), (4, 1, 1)])) is None
    assert pointlike(pair([stem, (4, 1, 2)], [stem, (4, 1, 2)])) is None


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel", "stride"),
    [
        ((3, 8, 8), (5, 8, 8), nn.Conv2d, (1, 1), (1, 1)),
        ((3, 8, 8), (5, 4, 4), nn.Conv2d, (3, 3), (2, 2)),
        ((3, 2, 2), (5, 1, 1), nn.Conv2d, (3, 3), (2, 2)),
        ((3, 4, 4), (5, 8, 8), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((3, 7, 7), (5, 4, 4), nn.Conv2d, (4, 4), (1, 1)),
        ((3, 8, 8), (5, 2, 2), nn.Conv2d, (7, 7), (1, 1)),
        ((3, 8, 6), (5, 4, 4), nn.Conv2d, (5, 3), (1, 1)),
        ((3, 8, 6), (5, 4, 3), nn.Conv2d, (3, 3), (2, 2)),
    ],
    ids=str,
)
def test_connector(student: Dims, teacher: Dims, kind: type, kernel: Dims, stride: Dims) -> None:
    connector = Connector(StageShape(student), StageShape(teacher), relu=False).double()
    assert type(connector.conv) is kind
    assert (connector.conv.kernel_size, connector.conv.stride) == (kernel, stride)
    assert connector.conv.bias is not None
    x = maps(4, *student)
    out = connector(x)
    assert out.shape == (4, *teacher)
    # BN in training mode, and a ReLU only where asked for.
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (out < 0).any()
    rectified = Connector(StageShape(student), StageShape(teacher), relu=True).double()
    rectified.load_state_dict(connector.state_dict())
    torch.testing.assert_close(rectified(x), out.relu())


def test_maps_no_connector_reaches() -> None:
    small, large = StageShape((3, 3, 3)), StageShape((3, 8, 8))
    reason = unconnectable(small, large)
    assert reason is not None
    assert reason.startswith("the student's map 3x3x3 is smaller than the teacher's 3x8x8")
    with pytest.raises(ValueError, match="no connector"):
        Connector(small, large, relu=True)
    assert unconnectable(large, small) is None
    assert unconnectable(StageShape((3, 4, 4)), large) is None
    assert unconnectable(StageShape((3, 4, 8)), large) is not None
    assert unconnectable(StageShape((3, 8, 4)), StageShape((3, 4, 8))) is not None
