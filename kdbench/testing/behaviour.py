"""Checks of how the losses behave: at extreme logits, on mixed images, with equal seeds; and what deploy returns."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.evaluation import logits_of
from kdbench.method import Batch, Mix, total
from kdbench.testing.bench import BATCH, CLASSES, Bench, Place, equal
from kdbench.testing.failure import CheckFailure
from kdbench.testing.outcome import check
from kdbench.testing.structure import losses_name, require_terms
from kdbench.types import Features

EXTREME = 500.0  # far beyond float32's exp, and within reach of half-precision networks that start to diverge
Tensors = Callable[[Batch], Iterator[tuple[str, Tensor]]]


@check()
def check_extreme_logits(bench: Bench) -> None:
    """Loss and gradient stay finite where logits are +-500, rows are constant, or student and teacher disagree."""
    advice = "work in log space (log_softmax, logsumexp), guard divisions by a norm or variance that can be 0"
    run = bench.start()
    for place in run.places():
        for name, student, teacher in _extremes(run.batch(place).labels):
            batch = _with_logits(run.batch(place), student, teacher)
            losses = run.losses(place, batch)
            for key, term in losses.items():
                if not term.value.isfinite():
                    raise CheckFailure(
                        f"{bench}: term '{key}' is {term.value.item()} at logits of +-500 ({name}); {advice}"
                    )
            loss = total(losses)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            named = [("the student's logits", student), *run.method.named_parameters()]
            if bad := [key for key, tensor in named if tensor.grad is not None and not tensor.grad.isfinite().all()]:
                raise CheckFailure(
                    f"{bench}: the gradient at {bad[0]} is not finite at logits of +-500 ({name}); {advice}"
                )
            run.method.zero_grad()


def _extremes(labels: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, student logits (leaf) and teacher logits, all (N, C)."""
    hit = EXTREME * (2 * nn.functional.one_hot(labels, CLASSES).float() - 1)
    signs = torch.randint(2, hit.shape, generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    mixed = torch.cat([EXTREME * signs[: BATCH // 2], torch.full_like(signs[BATCH // 2 :], EXTREME)])
    pairs = {
        "student and teacher right": (hit, hit),
        "student wrong, teacher right": (-hit, hit),
        "student right, teacher wrong": (hit, -hit),
        "constant student": (torch.full_like(hit, EXTREME), hit),
        "constant teacher": (hit, torch.full_like(hit, -EXTREME)),
        "random signs and constant rows": (mixed, mixed.roll(3, 0)),
    }
    for name, (student, teacher) in pairs.items():
        yield name, student.clone().requires_grad_(), teacher.clone()


def _with_logits(batch: Batch, student: Tensor, teacher: Tensor) -> Batch:
    """Return the batch with other logits, also in its views; a student that was not run has none."""
    if not batch.student.logits.numel():
        student = batch.student.logits

    def changed(features: tuple[Features, ...]) -> tuple[Features, ...]:
        return tuple(replace(one, logits=teacher.clone()) for one in features)

    views = tuple(
        replace(view, student=replace(view.student, logits=student), teachers=changed(view.teachers))
        for view in batch.views
    )
    own = replace(batch.student, logits=student)
    return replace(batch, student=own, teachers=changed(batch.teachers), views=views)


@check()
def check_batch_unchanged(bench: Bench) -> None:
    """Losses, backward and ``after_step`` leave images, labels, index, partners and student features as they were."""
    advice = "other methods see the same tensors; replace in-place operations (add_, x[...] = ...) by new tensors"
    _require_unchanged(bench, _student_side, advice)


@check()
def check_teacher_unchanged(bench: Bench) -> None:
    """Losses, backward and ``after_step`` leave the teachers' features as they were, constants included."""
    advice = "teachers are shared constants; work on detached copies and leave requires_grad alone"
    _require_unchanged(bench, _teacher_side, advice)


def _require_unchanged(bench: Bench, tensors_of: Tensors, advice: str) -> None:
    run = bench.start()
    for place in run.places():
        batch = run.batch(place, mixed=True)
        before = {name: tensor.detach().clone() for name, tensor in tensors_of(batch)}
        needed_gradient = {name: tensor.requires_grad for name, tensor in tensors_of(batch)}
        total(run.losses(place, batch)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            run.method.after_step(batch)
        for name, tensor in tensors_of(batch):
            if tensor.requires_grad != needed_gradient[name] or not equal(tensor, before[name]):
                raise CheckFailure(f"{bench}: {losses_name(run, place)} or after_step() changed batch.{name}; {advice}")


def _student_side(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    yield from (("images", batch.images), ("labels", batch.labels), ("index", batch.index))
    if batch.mix is not None:
        yield "mix.labels", batch.mix.labels
    yield from _tensors("student", batch.student)
    for index, view in enumerate(batch.views):
        yield f"views[{index}].images", view.images
        yield from _tensors(f"views[{index}].student", view.student)


def _teacher_side(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for index, features in enumerate(batch.teachers):
        yield from _tensors(f"teachers[{index}]", features)
    for index, view in enumerate(batch.views):
        for number, features in enumerate(view.teachers):
            yield from _tensors(f"views[{index}].teachers[{number}]", features)


def _tensors(owner: str, features: Features) -> Iterator[tuple[str, Tensor]]:
    yield f"{owner}.logits", features.logits
    if features.embedding is not None:
        yield f"{owner}.embedding", features.embedding
    for kind in ("stages", "pre_stages"):
        for index, tensor in enumerate(getattr(features, kind)):
            yield f"{owner}.{kind}[{index}]", tensor


@check(structural=True)  # what compares two runs needs it
def check_same_seed(bench: Bench) -> None:
    """Two runs of one seed are equal, whatever the global generators of Python and NumPy hold."""
    first, again, other = (_trained(bench, host_seed) for host_seed in (1, 1, 2))
    if moved := _first_difference(first, again):
        raise CheckFailure(
            f"{bench}: two runs with the same seed differ ('{moved}'); every draw must come from torch's generator, "
            "which the trainer seeds, or from kdbench.stream(context.seed, 'method'); also look for times, ids, hashes"
        )
    if moved := _first_difference(first, other):
        raise CheckFailure(
            f"{bench}: the result depends on the global generator of Python or NumPy ('{moved}'), which no run seeds; "
            "draw from torch, or from a generator seeded with kdbench.stream(context.seed, 'method', ...)"
        )


def _trained(bench: Bench, host_seed: int) -> dict[str, Tensor]:
    random.seed(host_seed)
    np.random.seed(host_seed)
    run = bench.start()
    values = {}
    for place in run.schedule():
        values[f"loss of step {place.step + 1}"] = total(run.losses(place, run.batch(place))).detach()
        run.step(place)
    return {**values, **_tensors_of("student", run.student), **_tensors_of("method", run.method)}


def _tensors_of(owner: str, module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict().items()
    return {f"{owner}.{key}": value.clone() for key, value in state if isinstance(value, Tensor)}


def _first_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    return next((key for key in one if not equal(one[key], other[key])), None)


@check()
def check_mixed_images(bench: Bench) -> None:
    """With mixup or cutmix the losses are sound, and who uses the labels uses the partners' labels, too."""
    for place in bench.start().places():
        run = bench.start()
        batch = run.batch(place, mixed=True)
        if batch.mix is None:
            continue  # a phase that takes its images unmixed
        where = f"{bench}: {losses_name(run, place)}"
        losses = run.losses(place, batch)
        require_terms(f"{where} on mixed images", losses)
        other_own = _loss(bench, place, labels=(batch.labels + 1) % CLASSES)
        other_partner = _loss(bench, place, mix=Mix((batch.mix.labels + 1) % CLASSES, batch.mix.share))
        value = total(losses).detach()
        if not torch.equal(value, other_own) and torch.equal(value, other_partner):
            raise CheckFailure(
                f"{where} use batch.labels but not the labels of the partners in batch.mix, so mixed images are "
                "learnt with wrong labels; use batch.supervised(), or batch.over_labels(loss) for a loss of your own"
            )


def _loss(bench: Bench, place: Place, **changes: object) -> Tensor:
    run = bench.start()
    batch = replace(run.batch(place, mixed=True), **changes)  # type: ignore[arg-type]
    return total(run.losses(place, batch)).detach()


@check()
def check_deploy(bench: Bench) -> None:
    """``deploy`` returns a module that maps images to logits (N, C), and changes neither student nor modes."""
    run = bench.start()
    before = {**_tensors_of("student", run.student), **_tensors_of("method", run.method)}
    modes = [(part, part.training) for part in (*run.student.modules(), *run.method.modules())]
    module = run.method.deploy(run.student)
    if not isinstance(module, nn.Module):
        raise CheckFailure(f"{bench}: deploy() returned {type(module).__name__}; return the student or another module")
    if any(part.training != training for part, training in modes):
        raise CheckFailure(f"{bench}: deploy() switched between train and eval mode; the evaluator does that")
    with torch.no_grad():
        output = module.eval()(torch.rand(BATCH, *bench.image.dims))
    logits = logits_of(output)
    if not isinstance(logits, Tensor) or logits.shape != (BATCH, CLASSES) or not logits.isfinite().all():
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CheckFailure(
            f"{bench}: the deployed module returned {shape} for {BATCH} images of {CLASSES} classes; return Features "
            "or finite logits (N, C)"
        )
    after = {**_tensors_of("student", run.student), **_tensors_of("method", run.method)}
    if moved := _first_difference(before, after):
        raise CheckFailure(f"{bench}: deploying or evaluating changed '{moved}'; evaluation must leave no trace")
