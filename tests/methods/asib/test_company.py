"""A run of ASIB is the same alone and beside others, and leaves them alone; the kit and the rules know it."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.methods.asib.method import ASIB
from kdbench.testing import METHOD_CHECKS, check_method
from kdbench.types import Pair

TUNED = {"use_teacher_finetuning": True, "num_stages": 2}


@pytest.mark.parametrize("options", [{}, TUNED], ids=["shared teachers", "own teachers"])
def test_alone_and_in_company(two: Any, options: dict[str, Any]) -> None:
    others = [two.spec(method=name) for name in ("vanilla_kd", "dkd")]
    specs = [others[0], two.spec(**options), others[1]]
    alone = [two.train(spec, f"alone{place}") for place, spec in enumerate(specs)]
    together = [entry.lane for entry in two.lab.train(specs, "together")]
    for one, other in zip(alone, together, strict=True):
        assert other.failure is None
        # Passes that lanes share are charged to each in part; everything else is equal in every bit.
        assert 0 < other.counters.teacher_forwards <= one.counters.teacher_forwards
        other.counters.teacher_forwards = one.counters.teacher_forwards
        assert two.lab.digest(other) == two.lab.digest(one)


@pytest.mark.parametrize("teachers", [("resnet14_w8", "resnet8_w4"), ("resnet14_w8", "resnet8_w4", "resnet14_w8")])
def test_the_kit_on_several_teachers(teachers: tuple[str, ...]) -> None:
    results = check_method(ASIB, pair=Pair("several", "resnet8_w4", teachers, "digits"))
    assert [result.message for result in results if not result.ok] == []
    assert [result.name for result in results] == list(METHOD_CHECKS)


def test_the_kit_takes_two_teachers_by_itself() -> None:
    results = check_method(ASIB)
    assert [result.message for result in results if not result.ok] == []
    assert [result.name for result in results] == list(METHOD_CHECKS)
