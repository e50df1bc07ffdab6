"""Statistics against values worked out by hand and against the shared reference cases."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdbench.stats import Interval, mean_std, paired_difference, t_interval

CASES = Path(__file__).parents[3] / "shared" / "stats_cases" / "open.json"


def cases(kind: str) -> list[dict[str, Any]]:
    if not CASES.is_file():
        return []
    return [case for case in json.loads(CASES.read_text())["cases"] if case["kind"] == kind]


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_mean_and_std_with_ddof_one() -> None:
    summary = mean_std([70.0, 71.0, 73.0])
    assert summary.n == 3
    assert summary.mean == pytest.approx(214 / 3)
    assert summary.std == pytest.approx(math.sqrt(7 / 3))  # (16 + 1 + 25) / 9 / 2


def test_one_value_has_no_std_and_none_is_an_error() -> None:
    assert mean_std([71.5]).std is None
    with pytest.raises(ValueError, match="at least one"):
        mean_std([])


def test_t_interval_by_hand() -> None:
    # d = 0, 1, 2: mean 1, std 1, t(.975, 2) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138
    interval = t_interval([0.0, 1.0, 2.0])
    assert interval is not None
    assert interval.low == pytest.approx(-1.484138, abs=1e-6)
    assert interval.high == pytest.approx(3.484138, abs=1e-6)
    narrow = t_interval([0.0, 1.0, 2.0], confidence=0.5)  # t(.75, 2) = .816497
    assert narrow is not None
    assert narrow.high == pytest.approx(1 + 0.816497 / math.sqrt(3), abs=1e-6)


def test_t_interval_needs_a_spread_and_a_confidence() -> None:
    assert t_interval([1.0]) is None
    assert t_interval([1.0, 1.0, 1.0]) is None
    with pytest.raises(ValueError, match="confidence 95"):
        t_interval([0.0, 1.0], confidence=95)


def test_pairing_is_by_common_seed() -> None:
    difference = paired_difference({0: 70.0, 2: 72.0, 5: 71.0}, {5: 70.5, 1: 10.0, 0: 69.0})
    assert difference.seeds == (0, 5)
    assert difference.values == (1.0, 0.5)
    assert (difference.n, difference.mean) == (2, 0.75)
    assert difference.std == pytest.approx(math.sqrt(0.125))
    # t(.975, 1) = 12.706205, standard error .25; t = 3, p = 2 * (1/2 - atan(3)/pi)
    assert difference.interval is not None
    assert difference.interval.high == pytest.approx(0.75 + 12.706205 * 0.25, abs=1e-5)
    assert difference.t == pytest.approx(3.0)
    assert difference.p == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert difference.reason == ""


@pytest.mark.parametrize(
    ("first", "second", "reason", "mean"),
    [
        ({0: 70.0}, {1: 70.0}, "no common seed", None),
        ({0: 71.0, 1: 72.0}, {0: 70.0, 2: 5.0}, "one seed", 1.0),
        # 73.1 - 72.8 and 72.4 - 72.1 differ in the last bit: rounding makes them the equal values they are.
        ({0: 73.1, 1: 72.4, 2: 72.12}, {0: 72.8, 1: 72.1, 2: 71.82}, "zero variance", 0.3),
        ({0: 70.0, 1: 71.0}, {0: 70.0, 1: 71.0}, "zero variance", 0.0),
    ],
)
def test_no_interval_says_why(
    first: dict[int, float], second: dict[int, float], reason: str, mean: float | None
) -> None:
    difference = paired_difference(first, second)
    assert difference.reason == reason
    assert difference.mean == mean
    assert (difference.interval, difference.t, difference.p) == (None, None, None)


def test_order_of_seeds_changes_no_bit() -> None:
    first = {seed: 70 + 0.1 * seed for seed in range(7)}
    second = {seed: 70 - 0.37 * (seed % 3) for seed in range(7)}
    turned = {seed: first[seed] for seed in reversed(first)}
    assert paired_difference(first, second) == paired_difference(turned, second)


@pytest.mark.skipif(not CASES.is_file(), reason="needs the shared reference files")
class TestReferenceCases:
    def test_describe(self) -> None:
        assert cases("describe")
        for case in cases("describe"):
            x, expected, tolerance = case["inputs"]["x"], case["expected"], case["tolerance"]
            summary, interval = mean_std(x), t_interval(x)
            assert interval == Interval(
                pytest.approx(expected["ci_low"], abs=tolerance),
                pytest.approx(expected["ci_high"], abs=tolerance),
                0.95,
            )
            assert summary.n == expected["n"]
            assert summary.mean == pytest.approx(expected["mean"], abs=tolerance)
            assert summary.std == pytest.approx(expected["std"], abs=tolerance)

    def test_paired_t(self) -> None:
        assert cases("paired_t")
        for case in cases("paired_t"):
            expected, tolerance = case["expected"], case["tolerance"]
            found = paired_difference(by_seed(case["inputs"]["a"]), by_seed(case["inputs"]["b"]))
            assert found.interval is not None
            values = {
                "mean_diff": found.mean,
                "std_diff": found.std,
                "t": found.t,
                "df": found.n - 1,
                "p": found.p,
                "ci_low": found.interval.low,
                "ci_high": found.interval.high,
            }
            for key, value in values.items():
                assert value == pytest.approx(expected[key], abs=tolerance), (case["name"], key)

    def test_zero_variance_reports_no_p(self) -> None:
        assert cases("degenerate")
        for case in cases("degenerate"):
            found = paired_difference(by_seed(case["inputs"]["a"]), by_seed(case["inputs"]["b"]))
            assert found.p is case["expected"]["report_p"]
            assert found.reason == "zero variance"
            assert found.mean == 0.5

    def test_bootstrap_case_gives_its_t_interval(self) -> None:
        assert cases("bootstrap_ci")
        for case in cases("bootstrap_ci"):
            interval = t_interval(case["inputs"]["d"])
            assert interval is not None
            assert interval.low == pytest.approx(case["expected"]["t"]["low"], abs=1e-9)
            assert interval.high == pytest.approx(case["expected"]["t"]["high"], abs=1e-9)
