"""Freeze levels on networks small enough to name every parameter by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kdbench.adapters import ChannelAdapter
from kdbench.backbones import freezing
from kdbench.backbones.base import Network
from kdbench.backbones.division import Division, Names, cut
from kdbench.backbones.freezing import FreezeLevel, TensorCount, trainable_names
from kdbench.errors import ConfigError, Unsupported


class Norms(nn.Module):
    """Two blocks, what lies behind them, and a head, with every kind of norm in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.block1 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8))
        self.block10 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8))
        self.final = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


PARTS = Division((("scale", "block1"), ("block10",)), ("final",), ("head",))
HEAD = {"head.weight", "head.bias"}
LAYER_NORMS = {f"{block}.3.{name}" for block in ("block1", "block10") for name in ("weight", "bias")}
BATCH_NORMS = {f"{part}.1.{name}" for part in ("block1", "block10", "final") for name in ("weight", "bias")}
LAST = {f"block10.{index}.{name}" for index in (0, 2) for name in ("weight", "bias")} | {"final.0.weight"}
FIRST = {f"block1.{index}.{name}" for index in (0, 2) for name in ("weight", "bias")} | {"scale"}


def names(level: int, *, freeze_bn: bool, division: Division = PARTS) -> set[str]:
    return set(trainable_names(Norms(), division, FreezeLevel(level, freeze_bn)))


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_what_trains_at_each_level(freeze_bn: bool) -> None:
    norms = LAYER_NORMS | (set() if freeze_bn else BATCH_NORMS)
    assert names(0, freeze_bn=freeze_bn) == HEAD | norms
    assert names(1, freeze_bn=freeze_bn) == HEAD | norms | LAST
    assert names(2, freeze_bn=freeze_bn) == HEAD | norms | LAST | FIRST
    assert names(-1, freeze_bn=freeze_bn) == HEAD | LAYER_NORMS | BATCH_NORMS | LAST | FIRST


def test_names_come_in_the_order_of_the_model() -> None:
    order = [name for name, _ in Norms().named_parameters()]
    assert list(trainable_names(Norms(), PARTS, FreezeLevel())) == order
    found = trainable_names(Norms(), PARTS, FreezeLevel(1))
    assert list(found) == [name for name in order if name in found]


def test_what_always_trains_is_under_no_rule() -> None:
    parts = Division((("scale", "block1"), ("block10",)), ("final",), ("head",), always=("block1.1", "block1.0"))
    always = {f"block1.{index}.{name}" for index in (0, 1) for name in ("weight", "bias")}
    assert names(0, freeze_bn=True, division=parts) == HEAD | LAYER_NORMS | always


def test_more_levels_than_blocks() -> None:
    with pytest.raises(Unsupported, match=r"freeze level 3: the network has 2 blocks; allowed are -1\.\.2"):
        names(3, freeze_bn=False)


@pytest.mark.parametrize(
    ("division", "message"),
    [
        (Division((("block1",), ("block10",)), ("final",), ("head",)), "freezing Norms: 'scale' is in no block"),
        (Division((("scale",),), ("final",), ("head",)), r"'block1.0.weight', .* and 13 more is in no block"),
        (Division((("scale", "block1"), ("block10", "block2")), ("final",), ("head",)), "name 'block2', which it does"),
    ],
)
def test_a_division_that_is_not_the_models(division: Division, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        names(0, freeze_bn=False, division=division)


@pytest.mark.parametrize("level", [-2, True, 1.0, "1", None])
def test_a_level_that_is_none(level: object) -> None:
    with pytest.raises(ConfigError, match=r"freeze level: .* is none; allowed are -1 \(everything trains\), 0"):
        FreezeLevel(level)  # type: ignore[arg-type]


class Chain(Network):
    """Stages of a convolution and a BatchNorm, an adapter behind the first, a final norm."""

    stage_count, embedding_dim = 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), ChannelAdapter(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.last = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        before = (self.second if index else self.first)(x)
        return (before if pre else None), before.relu()

    def final_layers(self) -> tuple[nn.Module, ...]:
        return (self.last,)


def flags(network: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in network.named_parameters()}


def modes(network: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in network.named_modules()}


def test_a_network_with_one_child_per_stage_is_divided_by_itself() -> None:
    division = Chain().freeze_division()
    assert division == Division((("first",), ("second",)), ("last",), ("head",), ("first.2",))


def test_apply_sets_the_flags_and_counts() -> None:
    network = Chain()
    found = freezing.apply(network, FreezeLevel(1, freeze_bn=True))
    trained = {name for name, trains in flags(network).items() if trains}
    adapter = {name for name in flags(network) if name.startswith("first.2.")}
    assert trained == adapter | {"second.0.weight"} | HEAD
    assert found == TensorCount(6 + 1 + 2, 6 + 2 + 4 + 2 + 2, 48 + 16 + 10, 48 + 12 + 16 + 16 + 8 + 10)
    assert str(found) == "9/16 tensors"
    assert freezing.count(network) == found


def test_level_minus_one_undoes_all_of_it() -> None:
    network = Chain().train()
    fresh, running = flags(network), modes(network)
    freezing.apply(network, FreezeLevel(0, freeze_bn=True))
    assert flags(network) != fresh
    assert modes(network) != running
    freezing.apply(network, FreezeLevel(-1, freeze_bn=True))
    assert (flags(network), modes(network)) == (fresh, running)


def test_frozen_norms_keep_their_statistics_until_they_are_thawed() -> None:
    network, images = Chain(), torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    freezing.apply(network.train(), FreezeLevel(0, freeze_bn=True))
    before = copy.deepcopy(dict(network.named_buffers()))
    network(images)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    freezing.apply(network.train(), FreezeLevel(0, freeze_bn=False))
    network(images)
    moved = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name not in {"mean", "std"}}


def test_a_network_in_eval_mode_stays_in_it() -> None:
    network = Chain().eval()
    for policy in (FreezeLevel(), FreezeLevel(0), FreezeLevel(1, freeze_bn=True)):
        freezing.apply(network, policy)
        assert not any(modes(network).values())


def test_norms_of_what_always_trains_move() -> None:
    class Published(Chain):
        def freeze_division(self) -> Division:
            return Division((("first",),), ("last",), ("head",), ("second",))

    network = Published().train()
    freezing.apply(network, FreezeLevel(0, freeze_bn=True))
    assert (network.first[1].training, network.second[1].training, network.last.training) == (False, True, False)
    assert flags(network)["second.1.weight"]


def test_only_trained_parameters_get_gradients() -> None:
    network = Chain().train()
    freezing.apply(network, FreezeLevel(1))
    network(torch.rand(4, 3, 2, 2)).logits.square().sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {
        name for name, trains in flags(network).items() if trains
    }


def test_what_a_new_network_holds_fixed_never_trains() -> None:
    network = Chain()
    network.second[0].weight.requires_grad_(requires_grad=False)
    fresh = flags(network)
    for level in (0, 1, 2, -1):
        freezing.apply(network, FreezeLevel(level))
        assert not flags(network)["second.0.weight"]
    assert flags(copy.deepcopy(network)) == fresh
    freezing.apply(copied := copy.deepcopy(network), FreezeLevel(2))
    assert not flags(copied)["second.0.weight"]


def test_a_network_that_was_frozen_as_a_whole_trains_again() -> None:
    network = Chain().requires_grad_(requires_grad=False)
    freezing.apply(network, FreezeLevel(0, freeze_bn=True))
    assert flags(network)["head.weight"]
    freezing.apply(network, FreezeLevel())
    assert all(flags(network).values())


def test_a_network_that_cannot_tell_its_blocks() -> None:
    class Deeper(Chain):
        stage_count = 3

    network = Deeper()
    with pytest.raises(Unsupported, match="freezing Deeper: it has 3 stages and 2 modules besides head and final") as e:
        freezing.apply(network, FreezeLevel(0))
    assert "Set the level to -1, take another backbone, or let the class say them: freeze_blocks()" in str(e.value)
    assert all(flags(network).values())
    freezing.apply(network, FreezeLevel())


def test_a_head_that_is_no_module() -> None:
    class Headless(Chain):
        @property
        def head(self) -> nn.Module:
            return nn.Identity()

        @head.setter
        def head(self, module: nn.Module) -> None:
            self.classifier = module

    network = Headless()
    with pytest.raises(Unsupported, match="freezing Headless: its head is no module of it"):
        freezing.apply(network, FreezeLevel(0))


def test_a_subclass_says_its_blocks() -> None:
    class Finer(Chain):
        def freeze_blocks(self) -> tuple[Names, ...]:
            return ("first.0", "first.1", "first.2"), ("second.0",), ("second.1",)

    network = Finer()
    freezing.apply(network, FreezeLevel(1, freeze_bn=True))
    assert not flags(network)["second.0.weight"]
    freezing.apply(network, FreezeLevel(2, freeze_bn=True))
    assert flags(network)["second.0.weight"]


def test_a_module_called_like_a_part_changes_nothing() -> None:
    """Third-party networks have modules called blocks; what the base class adds must not stand in front of them."""
    taken = {name for name in dir(Network) if not name.startswith("_")} - set(dir(nn.Module))
    assert taken.isdisjoint({"blocks", "stages", "layers", "features", "division", "fixed"})


def test_a_model_is_cut_where_its_blocks_end() -> None:
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 1), "act": nn.ReLU(), "head": nn.Linear(4, 2)})
    model["body"] = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3)))
    model["norm"] = nn.LayerNorm(4)
    model.register_parameter("token", nn.Parameter(torch.ones(1)))
    assert cut(model, ["body.0", "body.2"], "head") == Division(
        (("token", "stem", "body.0"), ("body.1", "body.2")), ("norm",), ("head",)
    )
    assert cut(model, ["body.1", "body.2"], "head", first="body.0").blocks == (
        ("token", "stem"), ("body.0", "body.1"), ("body.2",)
    )  # fmt: skip
