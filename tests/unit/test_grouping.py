"""Cutting runs into cohorts: as few as memory allows, and no worker without work."""

from __future__ import annotations

import pytest

from kdbench.execution.grouping import cohorts_of, groups_of, pieces
from kdbench.plan import Request, make_plan
from kdbench.registry import Registry
from kdbench.spec import RunSpec


@pytest.mark.parametrize(
    ("sizes", "most", "jobs", "expected"),
    [
        ([18], [16], 1, [2]),
        ([18], [16], 2, [2]),  # 9 + 9, not 16 + 2
        ([18], [18], 1, [1]),
        ([18], [18], 4, [4]),
        ([3], [8], 8, [3]),  # no worker gets less than a run
        ([4, 4, 4], [8, 8, 8], 2, [2, 1, 1]),  # the last round has 2 + 2 instead of 4 and nothing
        ([4, 4, 4], [8, 8, 8], 3, [1, 1, 1]),
        ([4, 4, 4], [2, 8, 8], 2, [2, 1, 1]),  # what memory cuts is one of them
        ([1, 6], [8, 8], 3, [1, 2]),
        ([1, 1, 1], [8, 8, 8], 2, [1, 1, 1]),
        ([17] * 5, [17] * 5, 2, [2, 1, 1, 1, 1]),
        ([7], [3], 1, [3]),
        ([], [], 3, []),
    ],
)
def test_pieces(sizes: list[int], most: list[int], jobs: int, expected: list[int]) -> None:
    assert pieces(sizes, most, jobs) == expected


@pytest.fixture(scope="module")
def specs(registry: Registry) -> tuple[RunSpec, ...]:
    """Three methods and two seeds."""
    request = Request(("student", "vanilla_kd", "dkd"), ("tiny",), (0, 1), "fair_baseline_smoke", per_class=20)
    return make_plan(request, registry).runs


def test_seeds_are_groups(specs: tuple[RunSpec, ...]) -> None:
    groups = groups_of(specs)
    assert [[spec.method for spec in group] for group in groups] == [["student", "vanilla_kd", "dkd"]] * 2
    assert [{spec.seed for spec in group} for group in groups] == [{0}, {1}]


@pytest.mark.parametrize("jobs", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("most", [1, 2, 8])
def test_cohorts_have_every_run_once_and_the_largest_first(specs: tuple[RunSpec, ...], jobs: int, most: int) -> None:
    cohorts = cohorts_of(specs, jobs, lambda _group: most)
    assert sorted(spec.run_id for cohort in cohorts for spec in cohort) == sorted(spec.run_id for spec in specs)
    lengths = [len(cohort) for cohort in cohorts]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) <= most
    assert len(cohorts) % jobs == 0 or max(lengths) == 1
    assert all(len({spec.seed for spec in cohort}) == 1 for cohort in cohorts)


def test_a_limit_holds_for_its_group(specs: tuple[RunSpec, ...]) -> None:
    cohorts = cohorts_of(specs, 1, lambda group: 2 if group[0].seed else 3)
    assert [(cohort[0].seed, len(cohort)) for cohort in cohorts] == [(0, 3), (1, 2), (1, 1)]


def test_no_runs_no_cohorts() -> None:
    assert cohorts_of((), 2, lambda _group: 8) == []
