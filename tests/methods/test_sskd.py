"""SSKD: matching turned images, which rows teach, and a teacher's head that is trained first and then stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.losses import combine_teachers
from kdbench.method import Batch, Mix, View, total
from kdbench.methods.sskd import (
    SSKD,
    SSKDOptions,
    head_rate,
    image_major,
    matching_loss,
    own_image,
    selected_kl,
    selection,
    similarity,
    ss_loss,
    tf_loss,
    truth_rank,
)
from kdbench.testing.bench import BATCH, Bench, Place
from kdbench.types import Pair, StageShape

BENCH = Bench(SSKD)
FIRST, MAIN = Place(0, 0), Place(1, 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_kl(student: Tensor, teacher: Tensor, tau: float) -> float:
    p, q = (teacher / tau).softmax(0).tolist(), (student / tau).softmax(0).tolist()
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def slow_kept(ranks: list[int], ratio: float) -> list[bool]:
    """Keep row by row: the right ones, then the best of the wrong ones."""
    wrong = sorted((rank, row) for row, rank in enumerate(ranks) if rank > 0)
    best = {row for _, row in wrong[: math.floor(len(wrong) * ratio)]}
    return [rank == 0 or row in best for row, rank in enumerate(ranks)]


def test_rows_of_an_image_are_adjacent() -> None:
    views = [torch.full((2, 1), 10.0 * v) + torch.tensor([[1.0], [2.0]]) for v in range(3)]
    assert image_major(views).flatten().tolist() == [1, 11, 21, 2, 12, 22]
    assert own_image(torch.empty(6, 2)).tolist() == [0, 0, 0, 1, 1, 1]


def test_similarity_is_the_cosine() -> None:
    normal, turned = draw(4, 5), draw(12, 5, seed=1)
    normal[1], turned[2] = 0, turned[3]
    expected = F.cosine_similarity(turned[:, None], normal[None], dim=2)
    assert torch.allclose(similarity(normal, turned), expected, atol=1e-15)
    rows = F.log_softmax(expected, 1)
    slow = -sum(rows[a, a // 3].item() for a in range(12)) / 12
    assert matching_loss(expected).item() == pytest.approx(slow, rel=1e-12)


def test_equal_scores_do_not_lower_the_rank() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 7.0, -1.0]])
    assert truth_rank(scores, torch.tensor([1, 2, 0])).tolist() == [3, 0, 2]
    assert truth_rank(scores, torch.tensor([3, 0, 2])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.7, 0.75, 1.0])
def test_selection_keeps_the_right_and_the_best_of_the_wrong(ratio: float) -> None:
    draws = torch.Generator().manual_seed(0)
    for high in (1, 2, 3, 20):  # many ties at the cut, and none
        for length in (6, 10, 21):
            ranks = torch.randint(high, (length,), generator=draws)
            assert selection(ranks, ratio).tolist() == slow_kept(ranks.tolist(), ratio)


def test_the_ratio_is_that_of_the_wrong_rows_and_exact() -> None:
    assert selection(torch.tensor([0] * 8 + [1, 2, 3, 4]), 0.5).sum() == 10
    for count in range(1, 200):
        for ratio in (0.1, 0.29, 0.7, 0.75, 0.9):
            assert selection(torch.arange(1, count + 1), ratio).sum() == math.floor(count * ratio)


def test_it_divides_by_the_rows_that_were_chosen() -> None:
    student, teacher = draw(6, 4), draw(6, 4, seed=1)
    chosen = torch.tensor([True, False, True, True, False, False])
    expected = 9 * sum(slow_kl(student[a], teacher[a], 3) for a in (0, 2, 3)) / 3
    assert selected_kl(student, teacher, chosen, 3).item() == pytest.approx(expected, rel=1e-12)


def test_without_rows_it_is_zero() -> None:
    student = draw(6, 4).requires_grad_()
    value = tf_loss(student, -50 * F.one_hot(torch.arange(6) % 4, 4).double(), torch.arange(6) % 4, tau=4, ratio=0)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_extreme_logits_and_zero_or_equal_vectors(dtype: torch.dtype) -> None:
    scores = 500 * draw(12, 6).sign().to(dtype)
    scores[0], scores[1] = 500, scores[2]
    student, teacher = scores.clone().requires_grad_(), scores.roll(1, 0).clone().requires_grad_()
    normal, turned = draw(4, 6).to(dtype), draw(12, 6, seed=1).to(dtype)
    normal[0], normal[1], turned[0] = 0, normal[2], 0
    leaves = normal.clone().requires_grad_(), turned.clone().requires_grad_()
    matching = similarity(*leaves)
    tf = tf_loss(student, teacher, torch.arange(12) % 6, tau=4, ratio=0.5)
    value = tf + ss_loss(matching, matching.detach().roll(1, 1), tau=0.5, ratio=0.75) + matching_loss(matching)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (student, *leaves))
    assert teacher.grad is None


def test_low_precision_is_the_same_within_rounding() -> None:
    a, b, labels = draw(12, 6).bfloat16(), draw(12, 6, seed=1).bfloat16(), torch.arange(12) % 6
    low, high = (tf_loss(x, y, labels, tau=4, ratio=0.5) for x, y in ((a, b), (a.double(), b.double())))
    assert low.item() == pytest.approx(high.item(), rel=1e-5)


def test_no_shape_depends_on_values() -> None:
    with torch.device("meta"):
        matching = similarity(torch.empty(4, 6), torch.empty(12, 6))
        labels = torch.empty(12, dtype=torch.int64)
        assert ss_loss(matching, matching, tau=0.5, ratio=0.75).shape == ()
        assert tf_loss(torch.empty(12, 9), torch.empty(12, 9), labels, tau=4, ratio=0.5).shape == ()


def slow_terms(method: SSKD, batch: Batch, labels: Tensor) -> dict[str, float]:
    """Compute both own terms as the literature's code lays them out: rows 4i..4i+3 are the views of image i."""
    o, views = method.options, [batch, *batch.views]

    def rows(side: str, part: str) -> Tensor:
        return torch.stack([getattr(getattr(view, side), part) for view in views], 1).flatten(0, 1).double()

    turned = [row for row in range(4 * BATCH) if row % 4]
    heads = {"student": method.student_head.double(), "teacher": method.teacher_head.double()}
    found = {}
    for name, tau, ratio in (("tf", o.tf_tau, o.tf_ratio), ("ss", o.ss_tau, o.ss_ratio)):
        scores = {}
        for side, head in heads.items():
            representation = head(rows(side, "embedding"))
            cosines = F.cosine_similarity(representation[turned][:, None], representation[::4][None], dim=2)
            scores[side] = rows(side, "logits")[turned] if name == "tf" else cosines
        truth = [int(labels[row // 4]) if name == "tf" else row // 4 for row in turned]
        order = scores["teacher"].argsort(1, descending=True).tolist()
        kept = slow_kept([order[a].index(t) for a, t in enumerate(truth)], ratio)
        values = [slow_kl(scores["student"][a], scores["teacher"][a], tau) for a, k in enumerate(kept) if k]
        found[name] = tau**2 * sum(values) / len(values)
    return found


@pytest.mark.parametrize("share", [None, 0.7, 0.3])
def test_its_losses_are_those_of_a_batch_with_four_rows_for_each_image(share: float | None) -> None:
    run = BENCH.start()
    batch, partners = run.batch(MAIN), torch.arange(BATCH).roll(3)
    if share is not None:
        batch = replace(batch, mix=Mix(batch.labels[partners], share))
    labels = batch.labels[partners] if share == 0.3 else batch.labels
    method = SSKD(SSKDOptions(tf_ratio=0.4), BENCH.context)
    with torch.no_grad():
        losses = method.losses(batch)
        expected = slow_terms(method, batch, labels)
    assert list(losses) == ["ce", "kd", "tf", "ss"]
    for name, value in expected.items():
        assert losses[name].value.item() == pytest.approx(value, rel=1e-4), name


def test_several_teachers_teach_the_views_as_the_anchor_combines_them() -> None:
    run = BENCH.start()
    batch = run.batch(MAIN)
    more = [replace(view.teacher, logits=-view.teacher.logits.roll(1, 1)) for view in batch.views]
    views = tuple(replace(view, teachers=(view.teacher, extra)) for view, extra in zip(batch.views, more, strict=True))
    several = replace(batch, teachers=batch.teachers * 2, views=views)
    targets = image_major(
        [combine_teachers(tuple(t.logits for t in v.teachers), "avg", index=0, weights=None, tau=4) for v in views]
    )
    student, labels = image_major([v.student.logits for v in views]), batch.labels.repeat_interleave(3)
    assert torch.equal(run.method.losses(several)["tf"].value, tf_loss(student, targets, labels, tau=4, ratio=1))


def test_the_first_phase_trains_the_teachers_head_alone() -> None:
    run = BENCH.start()
    phase, _ = run.phases
    assert (phase.runs_student, phase.learning_rate) == (False, None)
    chosen = run.parameters(FIRST)
    assert {id(p) for p in chosen} == {id(p) for p in run.method.teacher_head.parameters()}
    losses = run.losses(FIRST, run.batch(FIRST))
    assert set(losses) == {"matching"}
    total(losses).backward()
    assert all(p.grad is not None and p.grad.any() for p in chosen)


def test_the_main_phase_leaves_the_teachers_head() -> None:
    run = BENCH.start()
    before = [p.clone() for p in run.method.teacher_head.parameters()]
    run.losses(MAIN, run.batch(MAIN))["ss"].value.backward()
    assert all(p.grad is None for p in run.method.teacher_head.parameters())
    # A cosine does not see the length, but the direction depends on every layer.
    assert all(p.grad is not None and p.grad.any() for p in run.method.student_head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in run.student.parameters())
    run.step(MAIN)
    assert all(map(torch.equal, before, run.method.teacher_head.parameters()))


def test_gradients_pass_both_upright_and_turned_images() -> None:
    normal, turned = draw(4, 5).requires_grad_(), draw(12, 5, seed=1).requires_grad_()
    ss_loss(
        similarity(normal, turned), similarity(draw(4, 5, seed=2), draw(12, 5, seed=3)), tau=0.5, ratio=1
    ).backward()
    for leaf in (normal, turned):
        assert leaf.grad is not None
        assert leaf.grad.any(1).all()


@pytest.mark.parametrize(("epochs", "expected"), [(240, 60), (15, 4), (1, 1)])
def test_length_and_rate_of_the_first_phase(epochs: int, expected: int) -> None:
    phase = SSKD(SSKDOptions(), replace(BENCH.context, epochs=epochs)).phases()[0]
    assert phase.epochs == expected
    assert phase.rate_factor is head_rate
    assert [head_rate(epoch / 60) for epoch in (0, 29, 30, 44, 45, 59)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_views_are_the_three_turns() -> None:
    assert [view.quarter_turns for view in SSKD.views] == [1, 2, 3]
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    assert View(1).turned(image).tolist() == [[[[2, 4], [1, 3]]]]  # counter-clockwise


def test_options_and_recommended_values() -> None:
    o = SSKDOptions()
    assert (o.tf_weight, o.ss_weight, o.tf_tau, o.ss_tau, o.tf_ratio, o.ss_ratio) == (2.7, 10, 4, 0.5, 1, 0.75)
    assert (SSKD.published.ce, SSKD.published.kd) == (0.1, 0.9)
    pair = Pair("p", "a", ("b",), "d")
    assert SSKD.recommended("fair_baseline", pair) == {"ss_weight": 1.0, "tf_weight": 0.5}
    assert not SSKD.recommended("crd", pair)


def test_what_it_declines() -> None:
    assert SSKD.supports(BENCH.info) is None
    assert "square" in str(SSKD.supports(replace(BENCH.info, image=StageShape((3, 16, 24)))))
    headless = replace(BENCH.info, student=replace(BENCH.info.student, embedding=0))
    assert "no embedding" in str(SSKD.supports(headless))
    with pytest.raises(Unsupported, match="at least two"):
        SSKD(SSKDOptions(), replace(BENCH.context, batch_size=1))
