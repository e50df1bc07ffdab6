"""Costs counted by hand on a network of two convolutions, and the message for a student that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdbench.backbones.base import Backbone, Network, by_channels
from kdbench.backbones.cost import cost_of, flops_of
from kdbench.memory import Estimate, estimate, student_costs, teacher_flops, too_large
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.types import Source, StageShape

IMAGE = StageShape((1, 8, 8))


class TwoConvolutions(Network):
    """1 -> 4 channels at 8x8 with bias, 4 -> 6 at 4x4 without, ReLU after each, pooling, linear."""

    stage_count = 1
    embedding_dim = 6

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(6, num_classes)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        assert index == 0
        assert not pre
        return None, self.second(self.first(x).relu()).relu()

    def embed(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


# 4*9 + 4, 6*4*9, 6*10 + 10
PARAMETERS = 40 + 216 + 70
# multiply-adds: 64 positions * 4*9, 16 positions * 6*4*9, 6*10; two operations each
FLOPS = 2 * (64 * 36 + 16 * 216 + 60)
# kept for the backward pass, in float32: image 64, first ReLU 4*64 (also the input of the second convolution),
# second ReLU 6*16, embedding 6
ACTIVATIONS = 4 * (64 + 256 + 96 + 6)


@pytest.fixture
def registry(with_plugin: Callable[..., Registry]) -> Registry:
    return with_plugin(
        kdbench_backbones=lambda: [
            Backbone("two", "x", by_channels(TwoConvolutions), Source("t", 2020, "u")),
        ]
    )


@pytest.fixture
def plan(registry: Registry) -> Plan:
    """Plan with ``two`` as student of ``two``: 100 images per epoch, 10 of them for validation, 2 epochs."""
    request = Request(("vanilla_kd", "student"), ("tiny",), (0, 1), "fair_baseline_smoke", per_class=10)
    made = make_plan(request, registry)
    info = registry.backbones["two"].info(10, IMAGE)
    pair = replace(made.infos["tiny"], student=info, teachers=(info,))
    runs = tuple(run.model_copy(update={"student": "two"}) for run in made.runs)
    return replace(made, infos={"tiny": pair}, runs=runs)


def test_cost_by_hand() -> None:
    with torch.device("meta"):
        network = TwoConvolutions()
    cost = cost_of(network, IMAGE)
    assert (cost.parameters, cost.flops, cost.activation_bytes) == (PARAMETERS, FLOPS, ACTIVATIONS)
    # Weights, gradients and momentum in float32, and 16 images' activations.
    assert cost.training_bytes(16) == 12 * PARAMETERS + 16 * ACTIVATIONS


def test_flops_do_not_depend_on_mode_or_leave_weights() -> None:
    with torch.device("meta"):
        network = TwoConvolutions().train()
    assert flops_of(network, IMAGE) == FLOPS
    assert all(parameter.is_meta for parameter in network.parameters())


def test_flops_grow_with_the_image() -> None:
    with torch.device("meta"):
        network = TwoConvolutions()
    assert flops_of(network, StageShape((1, 16, 16))) == 2 * (256 * 36 + 64 * 216 + 60)


def test_costs_of_a_plan(plan: Plan, registry: Registry) -> None:
    assert student_costs(plan, registry)["tiny"].flops == FLOPS
    assert teacher_flops(plan, registry) == {"tiny": FLOPS}
    doubled = replace(plan.infos["tiny"], teachers=plan.infos["tiny"].teachers * 2)
    assert teacher_flops(replace(plan, infos={"tiny": doubled}), registry) == {"tiny": 2 * FLOPS}


def test_estimate_by_hand(plan: Plan, registry: Registry) -> None:
    assert plan.train_sizes == {"tiny": 90}
    needed = 12 * PARAMETERS + 128 * ACTIVATIONS
    # Two runs with a teacher and two without, 90 images in 2 epochs; backward = 2 forward, the teacher forward only.
    flops = 2 * 180 * (3 + 1) * FLOPS + 2 * 180 * 3 * FLOPS
    assert estimate(plan, plan.runs, registry) == Estimate(720, pytest.approx(flops / 1e15), needed)
    assert estimate(plan, plan.runs[:1], registry).images == 180
    assert estimate(plan, (), registry) == Estimate(0, 0.0, 0)


def test_too_large_at_the_byte(plan: Plan, registry: Registry) -> None:
    needed = 12 * PARAMETERS + 128 * ACTIVATIONS
    assert too_large(plan, registry, needed) == []
    assert too_large(plan, registry, needed - 1) == [  # once, for all four runs
        "pair 'tiny': training student 'two' needs at least 0.0 GiB, this device has 0.0; choose a smaller student, an "
        "anchor with step.accumulate, or another --device"
    ]


def test_too_large_in_gibibytes_and_accumulation_helps(plan: Plan, registry: Registry) -> None:
    def with_batches(size: int, accumulate: int) -> Plan:
        anchor = plan.runs[0].anchor
        anchor = anchor.model_copy(
            update={
                "data": anchor.data.model_copy(update={"batch_size": size}),
                "step": anchor.step.model_copy(update={"accumulate": accumulate}),
            }
        )
        return replace(plan, runs=tuple(run.model_copy(update={"anchor": anchor}) for run in plan.runs))

    huge = 1 << 21  # times 1688 bytes is 3.3 GiB
    (said,) = too_large(with_batches(huge, 1), registry, 2 << 30)
    assert said.startswith("pair 'tiny': training student 'two' needs at least 3.3 GiB, this device has 2.0; ")
    assert too_large(with_batches(huge, 2), registry, 2 << 30) == []
