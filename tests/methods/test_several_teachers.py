"""Every method that learns from teachers' logits learns from all of them together, as the anchor combines them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from kdbench import registry as registries
from kdbench.config.loading import validate
from kdbench.config.schema import Anchor
from kdbench.method import AnyMethod, Batch, Losses
from kdbench.registry import Registry
from kdbench.testing.bench import Bench, Place, Run
from kdbench.types import Features, Pair

TEACHERS = ("resnet14_w8", "resnet8_w4", "resnet14_w8")
WEIGHTS = (1.0, 3.0, 4.0)
TAU = 3.0
TARGETS = ("teacher", "avg", "weighted_conf")


@cache
def known() -> Registry:
    return registries.load()


def taught() -> Iterable[str]:
    """Return the methods that are taught what the anchor says, not a target of their own."""
    methods = known().methods.as_mapping().items()
    return sorted(name for name, kind in methods if kind.uses_teacher and "loss.kd_target" not in kind.owns)


def bench(method: type[AnyMethod], count: int, **loss: object) -> Bench:
    """Return a bench with so many teachers, under other loss settings."""
    made = Bench(method, Pair("several", "resnet8_w4", TEACHERS[:count], "digits"))
    tree = made.anchor.model_dump()
    tree["locked"] = ()
    tree["loss"].update(tau=TAU, **loss)
    made.__dict__["anchor"] = validate(Anchor, tree, "several")
    return made


def by_hand(logits: list[list[list[float]]], target: str, weights: tuple[float, ...]) -> Tensor:
    """Return the target (N, C) of K teachers' logits [K][N][C], number by number."""
    if target == "teacher":
        return torch.tensor(logits[-1])
    rows = []
    for image in range(len(logits[0])):
        shares = list(weights)
        if target == "weighted_conf":
            shares = []
            for teacher in logits:
                powers = [math.exp(value / TAU) for value in teacher[image]]
                shares.append(max(powers) / sum(powers))
        total = sum(shares)
        rows.append(
            [
                sum(share / total * teacher[image][column] for share, teacher in zip(shares, logits, strict=True))
                for column in range(len(logits[0][image]))
            ]
        )
    return torch.tensor(rows)


def only(teachers: tuple[Features, ...], target: str, weights: tuple[float, ...]) -> tuple[Features, ...]:
    """Return the first teacher with the target as its logits: what all of them together come to."""
    logits = by_hand([features.logits.tolist() for features in teachers], target, weights)
    return (replace(teachers[0], logits=logits),)


def main_place(run: Run) -> Place:
    return Place(next(i for i, phase in enumerate(run.phases) if phase.is_main), 0)


def terms(run: Run, batch: Batch) -> Losses:
    torch.manual_seed(5)
    return run.losses(main_place(run), batch)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", taught())
def test_all_teachers_are_one_target(method: str, target: str, count: int) -> None:
    weights, kind = WEIGHTS[:count], known().methods[method]
    loss = {"kd_target": target, "teacher_weights": weights, "kd_teacher_index": count - 1}
    run = bench(kind, count, **loss).start()
    batch = run.batch(main_place(run), mixed=True)
    assert len(batch.teachers) == count
    together = replace(
        batch,
        teachers=only(batch.teachers, target, weights),
        protocol=replace(batch.protocol, kd_target="teacher", teacher_index=0, teacher_weights=None),
        views=tuple(replace(view, teachers=only(view.teachers, target, weights)) for view in batch.views),
    )
    found, expected = terms(run, batch), terms(run, together)
    assert {name: term.weight for name, term in found.items()} == {n: term.weight for n, term in expected.items()}
    for name, term in found.items():
        torch.testing.assert_close(term.value, expected[name].value, rtol=1e-4, atol=1e-5, msg=name)
    # And it is not the first teacher alone: every method has a term that follows the others' logits.
    first = terms(run, replace(batch, teachers=batch.teachers[:1], views=alone(batch)))
    differs = any(not torch.allclose(term.value, first[name].value, rtol=1e-4) for name, term in found.items())
    assert differs == (count > 1)


def alone(batch: Batch) -> tuple[object, ...]:
    return tuple(replace(view, teachers=view.teachers[:1]) for view in batch.views)


@pytest.mark.parametrize("method", ["vanilla_kd", "dkd"])
def test_weights_by_name_are_the_weights_in_order(method: str) -> None:
    kind = known().methods[method]
    named = bench(kind, 2, teacher_weights={"resnet8_w4": 3.0, "resnet14_w8": 1.0}).start()
    listed = bench(kind, 2, teacher_weights=(1.0, 3.0)).start()
    turned = bench(kind, 2, teacher_weights=(3.0, 1.0)).start()
    values = [
        sum(term.weight * term.value for term in terms(run, run.batch(main_place(run))).values())
        for run in (named, listed, turned)
    ]
    assert values[0].item() == values[1].item() != values[2].item()
