"""The base class alone, on a network small enough to compute by hand: every stage adds 1, then ReLU."""

import pytest
import torch
from torch import Tensor, nn

from kdbench.backbones.base import Backbone, Network, by_channels, head_at
from kdbench.types import Features, Source, StageShape, Taps


class Adder(Network):
    """Three stages x -> relu(x + 1); the embedding is the mean over positions; the head doubles its sum."""

    stage_count = 3

    def __init__(self, num_classes: int = 1, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.embedding_dim = in_channels
        self.head = nn.Linear(in_channels, num_classes, bias=False)
        nn.init.constant_(self.head.weight, 2.0)
        self.pre_asked: list[int] = []

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        before = x + 1
        if pre:
            self.pre_asked.append(index)
        return (before if pre else None), before.relu()

    def embed(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Aliased(Adder):
    head = head_at("classifier.0")

    def __init__(self) -> None:
        super().__init__()
        del self._modules["head"]
        self.classifier = nn.Sequential(nn.Linear(1, 1, bias=False))
        nn.init.constant_(self.classifier[0].weight, 3.0)


def constant(value: float) -> Tensor:
    return torch.full((2, 1, 4, 4), value)


def values(tensors: tuple[Tensor, ...]) -> list[float]:
    return [tensor.flatten()[0].item() for tensor in tensors]


def test_nothing_is_returned_that_is_not_asked_for() -> None:
    features = Adder()(constant(0.0))
    assert features.logits.tolist() == [[6.0], [6.0]]
    assert features.embedding is None
    assert (features.stages, features.pre_stages, features.indices) == ((), (), ())


def test_all_taps() -> None:
    features = Adder()(constant(-2.0), Taps("all", pre_activation=True, embedding=True))
    assert values(features.pre_stages) == [-1.0, 1.0, 2.0]
    assert values(features.stages) == [0.0, 1.0, 2.0]
    assert features.indices == (0, 1, 2)
    assert features.embedding is not None
    assert features.embedding.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("stages", [(2, 0), (-1, 0), (0, 2, -1)])
def test_stages_come_shallow_to_deep_and_once_whatever_the_order_of_the_taps(stages: tuple[int, ...]) -> None:
    features = Adder()(constant(0.0), Taps(stages))
    assert features.indices == (0, 2)
    assert values(features.stages) == [1.0, 3.0]


def test_narrow_finds_the_stages_of_taps_in_any_order() -> None:
    features: Features = Adder()(constant(0.0), Taps("all")).narrow(Taps((2, 0)))
    assert values(features.stages) == [3.0, 1.0]


def test_pre_activation_is_computed_for_tapped_stages_only() -> None:
    network = Adder()
    network(constant(0.0), Taps((1,), pre_activation=True))
    assert network.pre_asked == [1]
    network(constant(0.0), Taps("all"))
    assert network.pre_asked == [1]


@pytest.mark.parametrize(("stage", "logit"), [(0, 6.0), (1, 4.0), (2, 2.0), (3, 0.0)])
def test_forward_from_runs_the_rest(stage: int, logit: float) -> None:
    assert Adder().forward_from(stage, constant(0.0)).logits[0].item() == logit


def test_forward_from_drops_taps_before_its_start() -> None:
    features = Adder().forward_from(2, constant(0.0), Taps("all"))
    assert features.indices == (2,)
    assert values(features.stages) == [1.0]


def test_a_stage_that_does_not_exist() -> None:
    with pytest.raises(IndexError, match=r"stage 3 does not exist: the network has stages 0\.\.2"):
        Adder()(constant(0.0), Taps((3,)))


def test_the_network_normalises_its_images() -> None:
    network = Adder(in_channels=3)
    network.set_normalisation([0.5, 0.25, 0.0], [0.5, 0.25, 2.0])
    features = network(torch.ones(1, 3, 2, 2), Taps((0,)))
    assert features.stages[0][0, :, 0, 0].tolist() == [2.0, 4.0, 1.5]


def test_normalisation_is_not_part_of_the_weights() -> None:
    assert list(Adder().state_dict()) == ["head.weight"]


def test_a_head_of_another_name() -> None:
    network = Aliased()
    assert network.head is network.classifier[0]
    assert network(constant(0.0)).logits[0].item() == 9.0
    assert list(network.state_dict()) == ["classifier.0.weight"]


BACKBONE = Backbone("adder", "toy", by_channels(Adder), Source("", 2026, ""), min_size=8, multiple_of=4)


def test_info_from_a_dry_run() -> None:
    info = BACKBONE.info(5, StageShape((3, 12, 8)))
    assert info.stages == (StageShape((3, 12, 8)),) * 3
    assert (info.name, info.embedding, info.classes, info.parameters) == ("adder", 3, 5, 15)


@pytest.mark.parametrize("dims", [(1, 8, 8), (3, 12, 32)])
def test_images_that_fit(dims: tuple[int, ...]) -> None:
    assert BACKBONE.unfit(StageShape(dims)) is None


@pytest.mark.parametrize("dims", [(1, 4, 8), (1, 8, 4), (1, 8, 10), (1, 9, 8)])
def test_images_that_do_not_fit(dims: tuple[int, ...]) -> None:
    reason = BACKBONE.unfit(StageShape(dims))
    assert reason is not None
    assert reason.startswith("backbone 'adder' needs height and width of at least 8 pixels that are multiples of 4")
