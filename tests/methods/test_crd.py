"""CRD: draws of positives and negatives, stale banks of the other network, one Z, and state that survives."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from math import comb, exp, log

import pytest
import torch
from torch import Tensor

from kdbench.errors import Unsupported
from kdbench.method import Batch, LossProtocol, Mix, Setup, total
from kdbench.methods.crd import (
    CRD,
    Contrast,
    CRDOptions,
    draw_negatives,
    draw_of_class,
    estimate_log_z,
    log_scores,
    nce_loss,
    unit,
    update_bank,
)
from kdbench.types import Context, Features, LossWeights, NetworkInfo, Pair, PairInfo, StageShape

CLASSES, SIZE, BATCH = 3, 24, 4
LABELS = torch.arange(SIZE) % CLASSES
UNBALANCED = torch.tensor([0] * 15 + [1] * 6 + [2] * 3)


def pair(classes: int = CLASSES) -> PairInfo:
    map_, image = StageShape((8, 4, 4)), StageShape((3, 8, 8))
    student = NetworkInfo("small", (map_,), embedding=5, classes=classes, parameters=1)
    teacher = NetworkInfo("large", (map_,), embedding=7, classes=classes, parameters=1)
    return PairInfo("toy", student, (teacher,), image)


def method(labels: Tensor = LABELS, **options: object) -> CRD:
    context = Context(pair(), len(labels), epochs=2, steps_per_epoch=6, batch_size=BATCH, seed=0)
    torch.manual_seed(0)
    made = CRD(CRDOptions(**{"feat_dim": 6, **options}), context)
    made.prepare(Setup(labels))
    return made


def batch(step: int, labels: Tensor = LABELS, dtype: torch.dtype = torch.float32) -> Batch:
    draws = torch.Generator().manual_seed(step)
    index = torch.randperm(len(labels), generator=draws)[:BATCH]
    student = Features(
        torch.randn(BATCH, CLASSES, generator=draws),
        torch.randn(BATCH, 5, generator=draws, dtype=dtype).requires_grad_(),
    )
    teacher = Features(
        torch.randn(BATCH, CLASSES, generator=draws), torch.randn(BATCH, 7, generator=draws, dtype=dtype)
    )
    images, protocol = torch.zeros(BATCH, 3, 8, 8), LossProtocol(ce_weight=1.0, kd_weight=0.0, tau=4.0)
    return Batch(images, labels[index], index, student, (teacher,), protocol)


def do_step(made: CRD, step: int) -> Tensor:
    torch.manual_seed(100 + step)
    seen = batch(step)
    loss = made.losses(seen)["crd"].value
    loss.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
            parameter.grad = None
    made.after_step(seen)
    return loss.detach()


# --- the loss ----------------------------------------------------------------------------------------------------


def slow_step(
    embeddings: list[list[list[float]]], banks: list[list[list[float]]], index: list[int], choice: list[list[int]],
    tau: float, momentum: float, z: list[float] | None,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Return both losses and both Z by the formula, and update the banks; entry 0 is the student's, 1 the teacher's."""
    size, count = len(banks[0]), len(choice[0]) - 1

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    scores = [
        [[exp(dot(banks[1 - side][j], anchor) / tau) for j in row] for anchor, row in zip(rows, choice, strict=True)]
        for side, rows in enumerate(embeddings)
    ]
    z = z or [size * sum(map(sum, rows)) / (len(rows) * (count + 1)) for rows in scores]
    losses, noise = [], count / size
    for side in (0, 1):
        loss = 0.0
        for row in scores[side]:
            p = [e / z[side] for e in row]
            loss -= log(p[0] / (p[0] + noise + 1e-7)) + sum(log(noise / (q + noise + 1e-7)) for q in p[1:])
        losses.append(loss / len(choice))
    for side in (0, 1):
        for i, vector in zip(index, embeddings[side], strict=True):
            mixed = [momentum * old + (1 - momentum) * new for old, new in zip(banks[side][i], vector, strict=True)]
            banks[side][i] = [entry / math.sqrt(dot(mixed, mixed)) for entry in mixed]
    return losses, z


def test_chained_steps_agree_with_loops_over_the_formula() -> None:
    torch.manual_seed(1)
    contrast = Contrast(5, 7, 6, SIZE, tau=0.2, momentum=0.3).double()
    banks, z = [contrast.student_bank.tolist(), contrast.teacher_bank.tolist()], None
    for _ in range(3):
        student, teacher = torch.randn(BATCH, 5).double(), torch.randn(BATCH, 7).double()
        choice = torch.stack([torch.randperm(SIZE)[:9] for _ in range(BATCH)])
        index = torch.randperm(SIZE)[:BATCH]
        c = contrast(student, teacher, choice)
        contrast.update(index, c.student, c.teacher, c.log_z)
        embeddings = [c.student.tolist(), c.teacher.tolist()]
        losses, z = slow_step(embeddings, banks, index.tolist(), choice.tolist(), 0.2, 0.3, z)
        assert [c.student_loss.item(), c.teacher_loss.item()] == pytest.approx(losses, rel=1e-12)
        assert c.log_z.exp().tolist() == pytest.approx(z, rel=1e-12)
        for mine, slow in zip((contrast.student_bank, contrast.teacher_bank), banks, strict=True):
            torch.testing.assert_close(mine, torch.tensor(slow, dtype=torch.float64))


def test_each_side_is_scored_against_the_stale_bank_of_the_other_and_trains_its_own_embedding() -> None:
    made, seen = method(nce_k=5), batch(0)
    made.contrast.student_bank.copy_(unit(torch.randn(SIZE, 6)))
    teacher = seen.teacher.embedding.clone().requires_grad_()
    choice = made.draw(seen.index)
    c = made.contrast(seen.student.embedding, teacher, choice)
    stale = (made.contrast.teacher_bank[seen.index] * c.student).sum(1) / 0.07 - c.log_z[0]
    torch.testing.assert_close(c.student_log_p[:, 0], stale)
    stale = (made.contrast.student_bank[seen.index] * c.teacher).sum(1) / 0.07 - c.log_z[1]
    torch.testing.assert_close(c.teacher_log_p[:, 0], stale)
    weights = [made.contrast.student_embed.weight, made.contrast.teacher_embed.weight]
    for loss, own in ((c.student_loss, 0), (c.teacher_loss, 1)):
        grads = torch.autograd.grad(loss, [*weights, teacher], allow_unused=True, retain_graph=True)
        assert grads[own] is not None
        assert grads[1 - own] is None
        assert grads[2] is None
    assert not made.contrast.student_bank.requires_grad


def test_scores_are_those_of_the_chosen_rows() -> None:
    torch.manual_seed(0)
    bank, anchors, choice = torch.randn(9, 3), torch.randn(2, 3), torch.tensor([[4, 0, 8], [1, 1, 7]])
    expected = torch.einsum("nkd,nd->nk", bank[choice], anchors) / 0.5
    torch.testing.assert_close(log_scores(anchors, bank, choice, 0.5), expected)
    assert estimate_log_z(expected, 9).item() == pytest.approx(log(9 * expected.exp().mean().item()))


def test_gradient_of_the_loss() -> None:
    torch.manual_seed(0)
    log_p = (5 * torch.randn(3, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nce_loss(x, 20, eps=1e-7), (log_p,))


@pytest.mark.parametrize("shift", [-1e4, -90.0, 90.0, 1e4])
def test_loss_and_gradient_are_finite_where_scores_overflow(shift: float) -> None:
    log_p = (torch.randn(3, 6) + shift).requires_grad_()
    loss = nce_loss(log_p, 20, eps=1e-7)
    loss.backward()
    assert loss.isfinite()
    assert log_p.grad is not None
    assert log_p.grad.isfinite().all()


def test_zero_vectors_have_no_direction_and_no_gradient() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], requires_grad=True)
    found = unit(vectors)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]))
    found.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[0].abs().sum() > 0
    assert not vectors.grad[1:].any()


@pytest.mark.parametrize("what", ["dead", "duplicates", "huge"])
def test_degenerate_features_keep_loss_gradients_and_banks_finite(what: str) -> None:
    made, seen = method(nce_t=0.001), batch(0)
    change = {"dead": lambda x: 0 * x, "duplicates": lambda x: x[:1].expand(BATCH, -1), "huge": lambda x: 1e4 * x}[what]
    if what == "dead":
        made.contrast.student_embed.bias.data.zero_()
        made.contrast.teacher_embed.bias.data.zero_()
    student = change(seen.student.embedding.detach()).clone().requires_grad_()
    seen = replace(
        seen,
        student=replace(seen.student, embedding=student),
        teachers=(replace(seen.teacher, embedding=change(seen.teacher.embedding)),),
    )
    loss = total(made.losses(seen))
    loss.backward()
    made.after_step(seen)
    assert loss.isfinite()
    assert all(t.isfinite().all() for t in (student.grad, *(p.grad for p in made.parameters())))
    assert all(buffer.isfinite().all() for buffer in made.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features_are_compared_in_float32(dtype: torch.dtype) -> None:
    made, low = method(), batch(0, dtype=dtype)
    wider = replace(
        low,
        student=replace(low.student, embedding=low.student.embedding.detach().float()),
        teachers=(replace(low.teacher, embedding=low.teacher.embedding.float()),),
    )
    values = []
    for seen in (low, wider):
        torch.manual_seed(0)
        values.append(made.losses(seen)["crd"].value)
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(*values)


# --- positives and negatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "count"), [(LABELS, 5), (LABELS, 16), (UNBALANCED, 9), (UNBALANCED, 1)])
def test_negatives_are_different_images_of_other_classes(labels: Tensor, count: int) -> None:
    largest = int(labels.bincount().max())
    own = labels[torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    for _ in range(20):
        found = draw_negatives(labels, own, count, largest)
        assert found.shape == (SIZE, count)
        assert (labels[found] != own[:, None]).all()
        assert all(len(set(row)) == count for row in found.tolist())


def test_every_set_of_negatives_is_equally_likely() -> None:
    torch.manual_seed(0)
    labels, rounds = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]), 3000
    sets = Counter(frozenset(draw_negatives(labels, torch.tensor([1, 0]), 2, 4)[0].tolist()) for _ in range(rounds))
    expected = rounds / comb(5, 2)
    assert len(sets) == comb(5, 2)
    # Chi-square with 9 degrees of freedom: 34 has a probability of 1e-4.
    assert sum((seen - expected) ** 2 / expected for seen in sets.values()) < 34


def test_every_image_of_a_batch_draws_its_own_negatives_again_in_every_step() -> None:
    labels, own = torch.arange(1000) % 10, torch.zeros(8, dtype=torch.int64)
    torch.manual_seed(0)
    first, second = draw_negatives(labels, own, 100, 100), draw_negatives(labels, own, 100, 100)
    rows = {frozenset(row) for found in (first, second) for row in found.tolist()}
    assert len(rows) == 16
    torch.manual_seed(0)
    assert torch.equal(first, draw_negatives(labels, own, 100, 100))


def test_more_negatives_than_a_class_leaves_are_drawn_with_replacement() -> None:
    own, seen = torch.tensor([0, 1, 2]), Counter()
    torch.manual_seed(0)
    for _ in range(300):
        found = draw_negatives(UNBALANCED, own, 12, 15)  # 9, 18 and 21 images are of other classes
        assert (UNBALANCED[found] != own[:, None]).all()
        assert len(set(found[1].tolist())) == len(set(found[2].tolist())) == 12
        assert len(set(found[0].tolist())) > 2
        seen.update(found[0].tolist())
    assert sorted(seen) == list(range(15, 24))
    assert all(abs(count - 400) < 80 for count in seen.values())  # standard deviation 19


def test_relaxed_positives_are_all_images_of_the_class_with_equal_frequency() -> None:
    made = method(UNBALANCED, mode="relax", nce_k=4)
    own, seen = torch.tensor([1, 1, 2, 0]), Counter()
    torch.manual_seed(0)
    for _ in range(1000):
        drawn = draw_of_class(own, made.by_class, made.class_start, made.class_size)
        assert torch.equal(UNBALANCED[drawn], own)
        seen.update(drawn[:1].tolist())
    assert sorted(seen) == list(range(15, 21))
    assert all(abs(count - 1000 / 6) < 60 for count in seen.values())  # standard deviation 12


def test_relaxed_steps_update_the_images_of_the_batch_all_the_same() -> None:
    made, seen = method(mode="relax"), batch(0)
    before = made.contrast.student_bank.clone()
    choice = made.draw(seen.index)
    assert torch.equal(LABELS[choice[:, 0]], seen.labels)
    made.losses(seen)
    made.after_step(seen)
    changed = (made.contrast.student_bank != before).any(1).nonzero().flatten()
    assert torch.equal(changed, seen.index.sort().values)


def test_exact_positives_are_the_images_themselves_and_mixing_changes_nothing() -> None:
    made, seen = method(), batch(0)
    assert torch.equal(made.draw(seen.index)[:, 0], seen.index)
    mixed = replace(seen, mix=Mix(seen.labels.flip(0), 0.7))
    values = []
    for one in (seen, mixed):
        torch.manual_seed(0)
        values.append(made.losses(one)["crd"].value)
    assert torch.equal(*values)


# --- state -------------------------------------------------------------------------------------------------------


def test_banks_change_after_the_step_only_in_the_rows_of_the_batch_and_to_unit_length() -> None:
    made, seen = method(momentum=0.3), batch(0)
    before = {side: getattr(made.contrast, f"{side}_bank").clone() for side in ("student", "teacher")}
    made.losses(seen)
    embeddings = {"student": made._pending[0].student, "teacher": made._pending[0].teacher}
    assert all(torch.equal(getattr(made.contrast, f"{side}_bank"), bank) for side, bank in before.items())
    made.contrast.student_embed.weight.data.add_(1)  # the optimizer step must not matter
    made.after_step(seen)
    others = torch.ones(SIZE, dtype=torch.bool).index_fill(0, seen.index, value=False)
    for side, bank in before.items():
        now = getattr(made.contrast, f"{side}_bank")
        assert torch.equal(now[others], bank[others])
        torch.testing.assert_close(now[seen.index].norm(dim=1), torch.ones(BATCH))
        torch.testing.assert_close(now[seen.index], unit(0.3 * bank[seen.index] + 0.7 * embeddings[side]))


def test_banks_start_uniform_with_rows_of_about_unit_length() -> None:
    torch.manual_seed(0)
    contrast = Contrast(2, 2, 64, 500, tau=0.07, momentum=0.5)
    for bank in (contrast.student_bank, contrast.teacher_bank):
        assert bank.max().item() == pytest.approx(math.sqrt(3 / 64), rel=1e-3)
        assert bank.mean().item() == pytest.approx(0, abs=0.005)
        assert bank.norm(dim=1).mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(contrast.student_bank, contrast.teacher_bank)


def test_a_bank_row_that_cancels_stays_finite() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    update_bank(bank, torch.tensor([0]), torch.tensor([[-1.0, 0.0]]), 0.5)
    assert torch.equal(bank, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_z_is_set_by_the_first_step_and_survives_a_checkpoint() -> None:
    made = method()
    assert made.contrast.log_z.isnan().all()
    do_step(made, 0)
    z = made.contrast.log_z.clone()
    assert z.isfinite().all()
    other = method()
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for one in (made, other):
        do_step(one, 1)
        assert torch.equal(one.contrast.log_z, z)


def test_a_resumed_run_and_a_deep_copy_go_on_with_the_same_bits() -> None:
    made = method(mode="relax")
    do_step(made, 0)
    resumed, copied = method(mode="relax"), copy.deepcopy(made)
    resumed.load_state_dict(copy.deepcopy(made.state_dict()))
    losses = [[do_step(one, step).item() for step in (1, 2)] for one in (made, resumed, copied)]
    assert losses[0] == losses[1] == losses[2]
    for one in (resumed, copied):
        assert all(
            torch.equal(a, b) for a, b in zip(made.state_dict().values(), one.state_dict().values(), strict=True)
        )


def test_it_can_be_copied_between_losses_and_after_step() -> None:
    made, seen = method(), batch(0)
    made.losses(seen)
    copy.deepcopy(made)
    made.after_step(seen)
    assert made._pending == []


def test_batches_of_an_accumulated_step_are_kept_apart_and_losses_without_a_step_forgotten() -> None:
    made, probe = method(), batch(5)
    chunks = [replace(batch(step), index=torch.arange(8 * step, 8 * step + BATCH)) for step in (0, 1)]
    before = made.contrast.student_bank.clone()
    for seen in (probe, *chunks):
        made.losses(seen)
    embeddings, z = [pending.student for pending in made._pending[1:]], made._pending[1].log_z
    for seen in chunks:
        made.after_step(seen)
    for seen, vectors in zip(chunks, embeddings, strict=True):
        mixed = unit(0.5 * before[seen.index] + 0.5 * vectors)
        torch.testing.assert_close(made.contrast.student_bank[seen.index], mixed)
    assert made._pending == []
    assert torch.equal(made.contrast.log_z, z)  # of the first of them
    with pytest.raises(ValueError, match="losses"):
        made.after_step(probe)


# --- options -----------------------------------------------------------------------------------------------------


def test_options_and_weights_are_the_published_ones() -> None:
    assert CRDOptions().model_dump() == {
        "weight": 0.8, "feat_dim": 128, "nce_k": None, "nce_t": 0.07, "momentum": 0.5, "mode": "exact",
    }  # fmt: skip
    assert CRD.published == LossWeights(ce=1.0, kd=0.0)
    toy = Pair("toy", "small", ("large",), "digits")
    assert CRD.recommended("crd", toy) == {}
    assert CRD.recommended("fair_baseline", toy) == {"feat_dim": 512}
    losses = method(weight=0.3).losses(batch(0))
    assert {name: term.weight for name, term in losses.items()} == {"ce": 1.0, "kd": 0.0, "crd": 0.3}


def test_more_negatives_than_images_are_refused_and_by_default_as_many_as_there_are_are_drawn() -> None:
    with pytest.raises(Unsupported, match=r"25.* 24 training images"):
        method(nce_k=25)
    assert method().negatives == 16
    assert method(UNBALANCED).negatives == 9
    assert method(torch.arange(40000) % CLASSES).negatives == 16384
    assert method(nce_k=24).draw(torch.arange(3)).shape == (3, 25)


def test_one_class_is_declined() -> None:
    assert "one class" in (CRD.supports(pair(classes=1)) or "")
    assert CRD.supports(pair()) is None
    with pytest.raises(Unsupported, match="one class"):
        method(torch.zeros(SIZE, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_shapes_alone_suffice(mode: str) -> None:
    with torch.device("meta"):
        context = Context(pair(), SIZE, epochs=2, steps_per_epoch=6, batch_size=BATCH, seed=0)
        made = CRD(CRDOptions(mode=mode), context)
        made.prepare(Setup(torch.arange(SIZE)))
        features = Features(torch.empty(BATCH, CLASSES), torch.empty(BATCH, 5))
        teacher = Features(torch.empty(BATCH, CLASSES), torch.empty(BATCH, 7))
        index, protocol = torch.arange(BATCH), LossProtocol(ce_weight=1.0, kd_weight=0.0, tau=4.0)
        seen = Batch(torch.empty(BATCH, 3, 8, 8), index, index, features, (teacher,), protocol)
        assert total(made.losses(seen)).shape == ()
        made.after_step(seen)
    assert made.negatives == 16
