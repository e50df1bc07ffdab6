"""Adapters: sizes and values counted and computed by hand, what is trained, and which widths are settled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdbench
from kdbench.adapters import ChannelAdapter, DistillAdapter, DistillAdapters, adapter_widths, settle_widths
from kdbench.method import trainable
from kdbench.types import Context, NetworkInfo, PairInfo, StageShape


def context(student: tuple[str, int], *teachers: tuple[str, int]) -> Context:
    """Return the context of networks given by name and width of the embedding."""
    infos = [NetworkInfo(name, (StageShape((3, 4, 4)),), width, 10, 1) for name, width in (student, *teachers)]
    pair = PairInfo("p", infos[0], tuple(infos[1:]), StageShape((3, 32, 32)))
    return Context(pair, train_size=100, epochs=2, steps_per_epoch=10, batch_size=10, seed=0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def filled(module: nn.Module) -> nn.Module:
    """Return the module in float64 with weights that are all different from its initial ones."""
    module = module.double()
    draws = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
    return module


@pytest.mark.parametrize(
    ("width", "out", "hidden", "expected"),
    [
        (2048, None, None, (512, 1024)),
        (2048, 256, None, (256, 1024)),
        (256, 512, None, (512, 512)),  # half of 256 is less than out
        (768, 256, 100, (256, 100)),
        (64, 0, -1, (16, 32)),  # as in files that say 0 or -1 for nothing
        (7, None, None, (1, 3)),
        (3, 2, None, (2, 2)),
    ],
)
def test_widths(width: int, out: int | None, hidden: int | None, expected: tuple[int, int]) -> None:
    assert adapter_widths(width, out, hidden) == expected
    adapter = DistillAdapter(width, out, hidden)
    o, h = expected
    assert (adapter.out, adapter.hidden) == expected
    assert count(adapter) == width * h + h + h * o + o
    assert adapter(torch.zeros(3, width)).shape == (3, o)


def test_an_embedding_without_a_quarter() -> None:
    with pytest.raises(ValueError, match=r"width 3 has no quarter; give the adapter's width out"):
        DistillAdapter(3)


def test_distill_adapter_by_hand() -> None:
    adapter = DistillAdapter(2, out=1, hidden=2)
    adapter.load_state_dict(
        {
            "first.weight": torch.tensor([[1.0, 2.0], [-1.0, 0.5]]),
            "first.bias": torch.tensor([0.5, 1.0]),
            "second.weight": torch.tensor([[3.0, -2.0]]),
            "second.bias": torch.tensor([0.25]),
        }
    )
    # (1, 1): hidden 3.5 and 0.5; (2, -2): hidden -1.5, which ReLU cuts, and -2, too.
    found = adapter(torch.tensor([[1.0, 1.0], [2.0, -2.0]]))
    assert found.tolist() == [[3 * 3.5 - 2 * 0.5 + 0.25], [0.25]]


def group_norm(maps: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the normalisation written out: mean 0 and variance 1 in each image and group of channels."""
    n, c, h, w = maps.shape
    grouped = maps.reshape(n, groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    unit = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(n, c, h, w)
    return unit * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize(("channels", "groups"), [(6, 6), (32, 32), (64, 32)])
def test_channel_adapter_by_its_formula(channels: int, groups: int) -> None:
    adapter = ChannelAdapter(channels)
    assert count(adapter) == 2 * channels**2 + 4 * channels
    filled(adapter)
    x = torch.randn(3, channels, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    w = adapter.state_dict()
    first = torch.einsum("oc,nchw->nohw", w["first.weight"][:, :, 0, 0], x)
    inner = group_norm(first, groups, w["first_norm.weight"], w["first_norm.bias"]).clamp_min(0)
    second = torch.einsum("oc,nchw->nohw", w["second.weight"][:, :, 0, 0], inner)
    expected = x + group_norm(second, groups, w["second_norm.weight"], w["second_norm.bias"])
    torch.testing.assert_close(adapter(x), expected)


def test_channel_adapter_without_its_last_scale_is_the_identity() -> None:
    adapter, x = ChannelAdapter(4), torch.randn(2, 4, 3, 3)
    nn.init.zeros_(adapter.second_norm.weight)
    assert torch.equal(adapter(x), x)


@pytest.mark.parametrize("channels", [0, 33, 100])
def test_channels_that_form_no_groups(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"channels is {channels}: 1\.\.32, or a multiple of 32"):
        ChannelAdapter(channels)


@pytest.mark.parametrize("name", ["mobilenet_v2_scratch", "efficientnet_b0_scratch", "my.shufflenet_v2"])
def test_small_students_get_256(name: str) -> None:
    pair = context((name, 1280), ("resnet152", 2048), ("convnext_s", 768))
    for missing in (None, 0, -1):
        found = settle_widths(pair, missing)
        assert (found.student, found.teachers) == ((256, 640), ((256, 1024), (256, 384)))
        assert found.changes[0] == f"out is 256, as {name} is a small student"
        assert not any("quarter" in change for change in found.changes)
    asked = settle_widths(pair, 128, 64)
    assert (asked.student, asked.teachers, asked.changes) == ((128, 64), ((128, 64), (128, 64)), ())


def test_other_students_get_a_quarter_each() -> None:
    found = settle_widths(context(("resnet101_scratch", 2048), ("convnext_s", 768)), hidden=300)
    assert (found.student, found.teachers) == ((512, 300), ((192, 300),))
    assert found.changes == (
        "out of resnet101_scratch is 512, a quarter of its embedding's 2048",
        "out of convnext_s is 192, a quarter of its embedding's 768",
    )
    # The rule is for students: a teacher of that name changes nothing.
    teacher = settle_widths(context(("resnet20", 64), ("mobilenet_v2", 1280)), hidden=8)
    assert (teacher.student, teacher.teachers) == ((16, 8), ((320, 8),))


def test_adapters_of_a_pair() -> None:
    adapters = DistillAdapters(context(("s", 8), ("a", 16), ("b", 12)), out=5)
    student, first, second = torch.randn(4, 8), torch.randn(4, 16), torch.randn(4, 12)
    ours, theirs = adapters(student, [first, second])
    assert [tuple(tokens.shape) for tokens in (ours, *theirs)] == [(4, 5)] * 3
    # Each is its own network on its own embedding.
    for found, adapter, x in zip((ours, *theirs), (adapters.student, *adapters.teachers), (student, first, second)):  # noqa: B905
        expected = F.linear(
            F.linear(x, adapter.first.weight, adapter.first.bias).relu(), adapter.second.weight, adapter.second.bias
        )
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="zip"):
        adapters(student, [first])


def test_what_is_trained() -> None:
    pair = context(("s", 8), ("a", 16), ("b", 12))
    x = torch.randn(4, 8), [torch.randn(4, 16), torch.randn(4, 12)]

    def reached(adapters: DistillAdapters) -> dict[str, bool]:
        ours, theirs = adapters(*x)
        sum(((ours - one) ** 2).sum() for one in theirs).backward()
        return {name: p.grad is not None and bool(p.grad.any()) for name, p in adapters.named_parameters()}

    frozen, asked = DistillAdapters(pair, out=5), DistillAdapters(pair, out=5, train_teachers=True)
    assert {name for name, took in reached(frozen).items() if took} == {
        f"student.{part}" for part in ("first.weight", "first.bias", "second.weight", "second.bias")
    }
    assert len(trainable(frozen)) == 4
    assert all(reached(asked).values())
    assert len(trainable(asked)) == 12


def test_channel_adapter_passes_its_gradient_on() -> None:
    adapter, x = ChannelAdapter(8), torch.randn(2, 8, 4, 4, requires_grad=True)
    (adapter(x) ** 2).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in (x, *adapter.parameters()))


def test_they_are_offered_to_plugins() -> None:
    names = {"DistillAdapter", "DistillAdapters", "ChannelAdapter", "settle_widths"}
    assert names <= set(kdbench.__all__)
    assert kdbench.DistillAdapters is DistillAdapters
