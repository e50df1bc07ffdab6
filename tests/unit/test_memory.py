"""Costs counted by hand on a network of two convolutions, and the message for a student that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdbench.backbones.base import Backbone, Network, by_channels
from kdbench.backbones.cost import NetworkCost, cost_of, flops_of
from kdbench.cohort_memory import Estimator
from kdbench.config.schema import Anchor
from kdbench.memory import Estimate, estimate, student_costs, teacher_flops, too_large, training_memory
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.rehearsal import Burden, Passes
from kdbench.spec import RunSpec
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
# alive at once in a forward pass, in float32: image as given and normalised, first convolution's and ReLU's output
FORWARD = 4 * (2 * 64 + 2 * 256)


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
    runs = tuple(
        run.model_copy(update={"student": "two", "teachers": ("two",) if run.teachers else ()}) for run in made.runs
    )
    return replace(made, infos={"tiny": pair}, runs=runs)


def test_cost_by_hand() -> None:
    with torch.device("meta"):
        network = TwoConvolutions()
    cost = cost_of(network, IMAGE)
    assert cost == NetworkCost(PARAMETERS, FLOPS, ACTIVATIONS, FORWARD)
    # Weights, gradients and momentum in float32, and 16 images' activations.
    assert cost.training_bytes(16) == 12 * PARAMETERS + 16 * ACTIVATIONS


class Counted(nn.Module):
    """A linear layer 3 -> 5 on tokens (N, 2, 3), then whatever a test wants to see counted."""

    def __init__(self, then: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(3, 5), then

    def forward(self, tokens: Tensor) -> object:
        return self.then(self.linear(tokens))


@pytest.mark.parametrize(
    ("then", "kept"),
    [
        (lambda x: x, 0),
        (lambda x: x.exp(), 10),  # exp keeps its output
        (lambda x: x.relu_().sigmoid(), 10 + 10),  # in place: the first layer's output is the second's input
        (lambda x: x.exp().view(-1, 5).exp(), 10 + 10),  # a view of what is kept already, with another first dimension
        (lambda x: x.exp().chunk(2, dim=1)[0].sigmoid(), 10 + 5),  # part of it is no more memory
        (lambda x: x.sin()[:, :, :2].cos(), 10 + 10),  # sin keeps its input; a view of four keeps all ten alive
        (lambda x: x[:, :1].tanh().expand(-1, 2, -1).square(), 5),  # repeated without memory; tanh keeps it, too
        (lambda x: x.view(-1, 2, 1, 5).transpose(1, 2).flatten(0, 1).exp(), 10),  # batch and heads in one dimension
        (lambda x: nn.functional.max_pool1d(x, 5)[:, :, 0].exp(), 10 + 4 + 2),  # its places are eight bytes each
    ],
)
def test_what_is_kept_of_tokens_by_hand(then: Callable[[Tensor], object], kept: int) -> None:
    """Six numbers of the input are always kept, for the gradient of the weights; ten leave the linear layer."""
    with torch.device("meta"):
        network = Counted(then)
    assert cost_of(network, StageShape((2, 3))).activation_bytes == 4 * (6 + kept)


def test_statistics_of_a_batch_are_no_activations() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    assert cost_of(network, StageShape((1, 8, 8))).activation_bytes == 4 * (64 + 256)


def test_what_lives_at_once_by_hand() -> None:
    """Input 6 and ten from each operation: a chain drops what it has read, a shortcut holds it."""
    with torch.device("meta"):
        chain = nn.Sequential(nn.Linear(3, 5), nn.Softplus(), nn.Sigmoid(), nn.Tanh())
        shortcut = Counted(lambda x: x + x.exp().exp())
        in_place = Counted(lambda x: x.exp_().relu_())
    sizes = [cost_of(network, StageShape((2, 3))).forward_bytes for network in (chain, shortcut, in_place)]
    assert sizes == [4 * (6 + 20), 4 * (6 + 30), 4 * (6 + 10)]


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
    # The teacher's weights, too, and its forward pass needs more than the student keeps.
    needed = (12 + 4) * PARAMETERS + 128 * FORWARD
    # Two runs with a teacher and two without, 90 images in 2 epochs; backward = 2 forward, the teacher forward only.
    flops = 2 * 180 * (3 + 1) * FLOPS + 2 * 180 * 3 * FLOPS
    assert estimate(plan, plan.runs, registry) == Estimate(720, pytest.approx(flops / 1e15), needed)
    assert estimate(plan, plan.runs[:1], registry).images == 180
    assert estimate(plan, plan.runs[-1:], registry, base=5).memory_bytes == 5 + 12 * PARAMETERS + 128 * ACTIVATIONS
    assert estimate(plan, (), registry) == Estimate(0, 0.0, 0)


COSTS = NetworkCost(1000, 1, 50, 7)


def protocol(plan: Plan, **changes: dict[str, object]) -> Anchor:
    """Return the plan's anchor (128 images, SGD, no accumulation) with other values in some sections."""
    anchor = plan.runs[0].anchor
    return anchor.model_copy(
        update={name: getattr(anchor, name).model_copy(update=values) for name, values in changes.items()}
    )


def test_memory_of_a_run_by_hand(plan: Plan) -> None:
    anchor = protocol(plan)
    assert training_memory(COSTS, (), anchor) == 12 * 1000 + 128 * 50
    assert training_memory(COSTS, (), anchor, inputs=4, base=3) == 3 + 12 * 1000 + 4 * 128 * 50
    # Both teachers' weights stay, but their activations do not: the larger of 9, 6 and the student's 50 per image.
    teachers = [NetworkCost(300, 1, 999, 9), NetworkCost(20, 1, 999, 6)]
    assert training_memory(COSTS, teachers, anchor) == 12 * 1000 + 4 * 320 + 128 * 50
    teachers[1] = NetworkCost(20, 1, 999, 60)
    assert training_memory(COSTS, teachers, anchor) == 12 * 1000 + 4 * 320 + 128 * 60


def test_accumulation_splits_the_students_batch_and_not_the_teachers(plan: Plan) -> None:
    anchor = protocol(plan, step={"accumulate": 4})
    assert training_memory(COSTS, (), anchor) == 12 * 1000 + 32 * 50
    assert training_memory(COSTS, [NetworkCost(0, 1, 1, 40)], anchor) == 12 * 1000 + 128 * 40


def test_optimizer_and_average_keep_numbers_per_weight(plan: Plan) -> None:
    adaptive, averaged = {"name": "adamw"}, {"ema_decay": 0.99}
    sizes = [
        training_memory(COSTS, (), protocol(plan, **changes)) - 128 * 50
        for changes in ({"optimizer": adaptive}, {"step": averaged}, {"optimizer": adaptive, "step": averaged})
    ]
    assert sizes == [16_000, 16_000, 20_000]


def test_too_large_at_the_byte(plan: Plan, registry: Registry) -> None:
    needed = 16 * PARAMETERS + 128 * FORWARD
    assert too_large(plan, registry, needed) == []
    assert too_large(plan, registry, needed - 1) == [  # once, for all four runs
        "pair 'tiny': training student 'two' beside 'two' needs at least 0.0 GiB, this device has 0.0; choose a "
        "smaller pair, an anchor with step.accumulate, or another --device"
    ]
    alone = replace(plan, runs=tuple(run for run in plan.runs if not run.teachers))
    assert too_large(alone, registry, 12 * PARAMETERS + 128 * ACTIVATIONS) == []
    (said,) = too_large(alone, registry, 12 * PARAMETERS + 128 * ACTIVATIONS - 1)
    assert said.startswith("pair 'tiny': training student 'two' needs at least ")


def test_too_large_in_gibibytes_and_accumulation_helps(plan: Plan, registry: Registry) -> None:
    def with_batches(size: int, accumulate: int) -> Plan:
        anchor = protocol(plan, data={"batch_size": size}, step={"accumulate": accumulate})
        alone = [run for run in plan.runs if not run.teachers]
        return replace(plan, runs=tuple(run.model_copy(update={"anchor": anchor}) for run in alone))

    huge = 1 << 21  # times 1688 bytes is 3.3 GiB
    (said,) = too_large(with_batches(huge, 1), registry, 2 << 30)
    assert said.startswith("pair 'tiny': training student 'two' needs at least 3.3 GiB, this device has 2.0; ")
    assert too_large(with_batches(huge, 2), registry, 2 << 30) == []


# --- cohorts ----------------------------------------------------------------------------------------------------------

BURDENS = {"vanilla_kd": Burden(10, 100, 7, 5), "student": Burden()}
IMAGES, PIXELS = 90, 64  # a batch of 128 has no more than all of them
KEPT = {"vanilla_kd": 8 * (PARAMETERS + 10) + 100, "student": 8 * PARAMETERS}  # weights and momentum
TAUGHT = 4 * PARAMETERS  # the teacher's weights
DATA = 100 * PIXELS


def estimator(plan: Plan, registry: Registry, base: int = 0, **changes: dict[str, object]) -> Estimator:
    """Return what estimates cohorts of the plan, evaluated on few images at a time unless the changes say otherwise."""
    anchor = protocol(plan, **{"evaluation": {"batch_size": 10}, **changes})
    passes = {("tiny", name): Passes(2, 2, burden=burden) for name, burden in BURDENS.items()}
    runs = tuple(run.model_copy(update={"anchor": anchor}) for run in plan.runs)
    return Estimator(replace(plan, passes=passes, runs=runs), registry, base)


def runs_of(found: Estimator, *methods: str) -> list[RunSpec]:
    return [next(run for run in found.plan.runs if run.method == method) for method in methods]


def test_a_cohort_by_hand(plan: Plan, registry: Registry) -> None:
    found = estimator(plan, registry, base=3)
    # Gradients, activations, images in float32, and what the teacher said of them, against its own forward pass.
    step = 4 * (PARAMETERS + 10) + IMAGES * (ACTIVATIONS + 7 + 4 * PIXELS + 5)
    passing = max(step, IMAGES * FORWARD)
    assert found.cohort(runs_of(found, "vanilla_kd")) == 3 + DATA + TAUGHT + KEPT["vanilla_kd"] + passing
    alone = 4 * PARAMETERS + IMAGES * (ACTIVATIONS + 4 * PIXELS)
    assert found.cohort(runs_of(found, "student")) == 3 + DATA + KEPT["student"] + alone
    both = runs_of(found, "student", "vanilla_kd", "student")
    assert found.cohort(both) == 3 + DATA + TAUGHT + KEPT["vanilla_kd"] + 2 * KEPT["student"] + passing


def test_one_lane_at_a_time_is_evaluated_or_saved(plan: Plan, registry: Registry) -> None:
    found = estimator(plan, registry, evaluation={"batch_size": 500})
    assert found.cohort(runs_of(found, "student", "student")) == DATA + 2 * KEPT["student"] + 500 * FORWARD
    small = estimator(plan, registry, data={"batch_size": 1}, evaluation={"batch_size": 1})
    assert small.cohort(runs_of(small, "student")) == DATA + (1 + 2) * KEPT["student"]


def test_accumulation_average_and_adaptive_optimizers_change_a_cohort(plan: Plan, registry: Registry) -> None:
    whole, parts = (estimator(plan, registry, step={"accumulate": count}) for count in (1, 4))
    student = runs_of(whole, "student")
    saved = whole.cohort(student) - parts.cohort(runs_of(parts, "student"))
    assert saved == (IMAGES - 23) * ACTIVATIONS  # the largest of four parts
    averaged = estimator(plan, registry, step={"ema_decay": 0.9}, optimizer={"name": "adamw", "nesterov": False})
    method = runs_of(averaged, "vanilla_kd") * 2
    more = averaged.cohort(method) - averaged.cohort(method[:1])
    assert more == 16 * (PARAMETERS + 10) + 200


def test_as_many_lanes_as_fit_at_the_byte(plan: Plan, registry: Registry) -> None:
    found = estimator(plan, registry)
    specs = runs_of(found, "student", "vanilla_kd", "student")
    two = found.cohort(specs[:2])  # the largest two: any two fit where these do
    assert found.most_lanes(specs, two) == 2
    assert found.most_lanes(specs, two - 1) == 1
    assert found.most_lanes(specs, found.cohort(specs)) == 3
    assert found.most_lanes(specs, found.cohort(specs) * 9) == 3
    assert found.most_lanes(specs, 0) == 1  # it must be run, and may do better than its estimate
