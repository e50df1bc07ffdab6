"""AB: the boundary loss, its connectors, and two phases of which the second knows nothing of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdbench.maps import Connector
from kdbench.method import total
from kdbench.methods.ab import AB, ABOptions, ab_loss, ab_terms, boundary_loss, make_connector, stage_weights
from kdbench.testing.bench import Bench, Place
from kdbench.types import NetworkInfo, Pair, PairInfo, StageShape

BENCH = Bench(AB)
INIT, MAIN = Place(0, 0), Place(1, 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(name: str, *shapes: tuple[int, ...]) -> NetworkInfo:
    return NetworkInfo(name, tuple(map(StageShape, shapes)), 8, 5, 100)


def pair(student: NetworkInfo, teacher: NetworkInfo) -> PairInfo:
    return PairInfo("p", student, (teacher,), StageShape((3, 16, 16)))


def test_it_is_the_formula() -> None:
    students = [draw(2, 3, 4, 4, seed=1), draw(2, 2, 2, 2, seed=2), draw(2, 5, 1, 1, seed=3)]
    teachers = [draw(*one.shape, seed=9 + i) for i, one in enumerate(students)]
    margin, expected = 0.7, 0.0
    for depth, (ours, theirs) in enumerate(zip(students, teachers, strict=True)):
        stage = 0.0
        for g, t in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True):
            stage += max(0.0, margin - g) ** 2 if t > 0 else max(0.0, g + margin) ** 2
        assert boundary_loss(ours, theirs, margin).item() == pytest.approx(stage, rel=1e-12)
        expected += 2.0 ** (depth - 2) * stage / 2 / 1000 * 3
    assert ab_loss(students, teachers, margin).item() == pytest.approx(expected, rel=1e-12)
    assert sum(ab_terms(students, teachers, margin)).item() == pytest.approx(expected, rel=1e-12)
    assert stage_weights(3) == [0.25, 0.5, 1.0]


def test_a_teacher_at_zero_is_inactive_and_units_beyond_the_margin_cost_nothing() -> None:
    student = torch.tensor([[[[-1.0, 1.0, 1.0, -0.5]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, 3.0, 0.0, 2.0]]]], requires_grad=True)
    value = boundary_loss(student, teacher, 1.0)
    value.backward()
    assert value.item() == 0 + 0 + 4 + 2.25
    assert student.grad is not None
    assert student.grad.flatten().tolist() == [0, 0, 4, -3]
    assert teacher.grad is None


def test_it_is_a_mean_over_images_and_a_sum_over_units() -> None:
    ours, theirs = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    once = ab_loss([ours], [theirs], 1.0)
    assert torch.allclose(ab_loss([torch.cat([ours, ours])], [torch.cat([theirs, theirs])], 1.0), once)
    assert torch.allclose(ab_loss([ours.repeat(1, 2, 1, 1)], [theirs.repeat(1, 2, 1, 1)], 1.0), 2 * once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_sums_in_float32(dtype: torch.dtype) -> None:
    ours, theirs = draw(4, 8, 8, 8).to(dtype), draw(4, 8, 8, 8, seed=1).to(dtype)
    ours[0], ours[1, :, 0] = 500, 0  # 8 * 64 * 500^2 is beyond float16
    leaf = ours.clone().requires_grad_()
    value = ab_loss([leaf], [theirs], 1.0)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(ab_loss([ours.double()], [theirs.double()], 1.0).item(), rel=1e-5)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_connectors_are_identities_where_shapes_agree_and_have_no_relu_elsewhere() -> None:
    assert isinstance(make_connector(StageShape((4, 8, 8)), StageShape((4, 8, 8))), nn.Identity)
    for student, teacher in [((4, 8, 8), (6, 8, 8)), ((4, 8, 8), (4, 4, 4)), ((4, 4, 4), (4, 8, 8))]:
        connector = make_connector(StageShape(student), StageShape(teacher))
        assert isinstance(connector, Connector)
        out = connector(draw(3, *student).float())
        assert out.shape == (3, *teacher)
        assert (out < 0).any()


def test_the_initialisation_trains_features_and_connectors_alone() -> None:
    run = BENCH.start()
    batch = run.batch(INIT)
    losses = run.losses(INIT, batch)
    assert set(losses) == {"ab"}
    total(losses).backward()
    assert all(p.grad is None for p in run.student.head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in run.student.parameters())
    assert all(p.grad is not None for p in run.method.parameters())
    # Behind the stem, before the activation: 3 stages, with negative values in each.
    assert len(batch.student.pre_stages) == len(batch.teacher.pre_stages) == 3
    assert all((one < 0).any() for one in batch.teacher.pre_stages)


def test_the_main_phase_has_no_term_of_its_own() -> None:
    run = BENCH.start()
    losses = run.losses(MAIN, run.batch(MAIN))
    assert set(losses) == {"ce", "kd"}
    total(losses).backward()
    assert all(p.grad is None for p in run.method.parameters())


@pytest.mark.parametrize(("share", "epochs", "expected"), [(30 / 240, 240, 30), (30 / 240, 15, 2), (0.01, 4, 1)])
def test_length_of_the_initialisation(share: float, epochs: int, expected: int) -> None:
    init, main = AB(ABOptions(init_share=share), replace(BENCH.context, epochs=epochs)).phases()
    assert (init.epochs, init.learning_rate, init.parameters, init.runs_student) == (expected, None, None, True)
    assert init.rate_factor is not None
    assert {init.rate_factor(done / 10) for done in range(10)} == {1.0}
    assert main.is_main


def test_without_an_initialisation_it_has_no_epochs() -> None:
    assert [phase.epochs for phase in AB(ABOptions(init_share=0), BENCH.context).phases()] == [0, None]


def test_its_weight_belongs_to_the_initialisation() -> None:
    run = BENCH.start()
    heavy = AB(ABOptions(weight=3), BENCH.context)
    assert heavy.boundary_losses(run.batch(INIT))["ab"].weight == 3
    assert (AB.published.ce, AB.published.kd) == (1, 0)
    assert not AB.recommended("fair_baseline", Pair("p", "a", ("b",), "d"))


def test_what_it_declines() -> None:
    small = network("s", (4, 16, 16), (4, 8, 8), (8, 4, 4))
    assert AB.supports(pair(small, network("t", (4, 16, 16), (8, 8, 8), (16, 4, 4)))) is None
    assert AB.supports(pair(small, network("t", (4, 16, 16), (8, 16, 16), (8, 2, 2)))) is None
    assert "no connector" in str(AB.supports(pair(small, network("t", (4, 32, 32), (8, 16, 16), (8, 16, 16)))))
    assert "one by one" in str(AB.supports(pair(small, network("t", (4, 16, 16), (8, 8, 8)))))
    assert "tokens" in str(AB.supports(pair(small, network("t", (5, 8), (5, 8), (5, 8)))))
