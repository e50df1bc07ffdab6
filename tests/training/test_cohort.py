"""What may be trained together, and what may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kdbench.errors import ConfigError
from kdbench.training.cohort import cohort_key
from kdbench.training.results import learned_nothing_below

if TYPE_CHECKING:
    from conftest import Lab


def test_methods_of_one_seed_go_together_and_seeds_do_not(lab: Lab) -> None:
    student, dkd, other = lab.spec("student"), lab.spec("dkd"), lab.spec("dkd", seed=1)
    assert cohort_key(student) == cohort_key(dkd) != cohort_key(other)


def test_another_batch_size_is_another_cohort(lab: Lab) -> None:
    small = lab.spec("dkd", anchor=lab.anchor(data__batch_size=20))
    assert cohort_key(small) != cohort_key(lab.spec("dkd"))


def test_another_loss_weight_is_not(lab: Lab) -> None:
    softer = lab.spec("dkd", anchor=lab.anchor(loss__tau=2.0))
    assert cohort_key(softer) == cohort_key(lab.spec("dkd"))


def test_two_seeds_in_one_worker_are_refused_before_any_training(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"seed0, .*seed1: cannot be trained together"):
        lab.run([lab.spec("student"), lab.spec("student", seed=1)], "mixed")
    assert not list((lab.root / "mixed").rglob("*.pt"))


@pytest.mark.parametrize(("classes", "floor"), [(2, 50.0), (4, 50.0), (10, 20.0), (100, 2.0)])
def test_nothing_learned_is_twice_chance_where_that_is_low(classes: int, floor: float) -> None:
    assert learned_nothing_below(classes, 15) == floor


def test_a_smoke_run_need_not_have_learned_anything() -> None:
    assert learned_nothing_below(10, 2) < 0
