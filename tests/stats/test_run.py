"""The runner of reference cases: it passes what is right, and fails everything else."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
CASES = HERE.parents[2] / "shared" / "stats_cases" / "open.json"
sys.path.insert(0, str(HERE))

import importlib.util  # noqa: E402

_spec = importlib.util.spec_from_file_location("stats_run", HERE / "run.py")
assert _spec
assert _spec.loader
run = importlib.util.module_from_spec(_spec)
sys.modules["stats_run"] = run
_spec.loader.exec_module(run)

ALL = json.loads(CASES.read_text())["cases"] if CASES.is_file() else []
needs_shared = pytest.mark.skipif(not ALL, reason="needs the shared reference files")
KINDS = {
    *("describe", "paired_t", "degenerate", "welch_t", "effect_size", "power", "bootstrap_ci", "min_p", "multiplicity"),
    *("wilcoxon", "wilcoxon_ties", "pairwise_wilcoxon_holm", "signflip", "signflip_stratified", "stratified_t"),
    *("friedman", "nemenyi_cd", "borda", "blocked_tukey", "iqm", "prob_improvement", "stratified_bootstrap"),
    *("bayes_signed_rank", "bayes_t", "aso", "mcnemar", "wilson", "crossed_se"),
}


@needs_shared
@pytest.mark.parametrize("case", ALL, ids=lambda case: case["name"])
def test_reference_case(case: dict[str, Any]) -> None:
    assert run.verdict(case).problems == ()


def test_every_kind_has_an_adapter() -> None:
    assert set(run.KINDS) == KINDS


EXACT = ("paired_t", "multiplicity", "mcnemar", "blocked_tukey", "degenerate")


def spoilt(value: Any, by: float) -> list[Any]:
    """Return copies of an expected value with one leaf moved or changed in each."""
    if isinstance(value, dict):
        return [{**value, key: bad} for key, inner in value.items() for bad in spoilt(inner, by)]
    if isinstance(value, list):
        return [[*value[:i], bad, *value[i + 1 :]] for i, inner in enumerate(value) for bad in spoilt(inner, by)]
    if isinstance(value, bool) or value is None:
        return [not value]
    if isinstance(value, str):
        return [value + "x"]
    return [value + by, value - by]


@needs_shared
@pytest.mark.parametrize(
    "case", [c for c in ALL if c["kind"] in ("paired_t", "multiplicity", "mcnemar", "blocked_tukey")]
)
def test_no_expected_value_goes_unchecked(case: dict[str, Any]) -> None:
    found = run.KINDS[case["kind"]](case["inputs"], case["options"], case["expected"])
    changed = spoilt(case["expected"], 1.0)
    for wrong in changed[:: max(1, len(changed) // 40)]:
        bad = {**case, "expected": wrong}
        problems = [
            problem
            for path, got, expected in run.leaves(found, wrong, ())
            if (problem := run.judge(got, expected, run.tolerance(bad, path))[1])
        ]
        assert len(problems) == 1


CASE = {
    "name": "hand",
    "kind": "describe",
    "inputs": {"x": [0.0, 1.0, 2.0]},
    "options": {},
    "expected": {"n": 3, "mean": 1.0},
    "tolerance": 1e-9,
}


def test_a_case_by_hand_passes_and_its_neighbours_fail() -> None:
    assert run.verdict(CASE).problems == ()
    assert run.verdict({**CASE, "expected": {"n": 3, "mean": 1.0 + 1e-8}}).problems
    assert run.verdict({**CASE, "expected": {"n": 3, "unheard_of": 1.0}}).problems
    assert run.verdict({**CASE, "expected": {}}).problems
    assert run.verdict({**CASE, "expected": {"mean": None}}).problems
    assert run.verdict({**CASE, "expected": {"mean": "nan"}}).problems
    assert run.verdict({**CASE, "kind": "astrology"}).problems == ("unknown kind 'astrology'",)
    assert run.verdict({**CASE, "inputs": {"x": [math.nan, 1.0]}}).problems


@pytest.mark.parametrize(
    ("given", "path", "allowed"),
    [
        (0.5, ("a",), 0.5),
        ({"default": 1e-6, "a": 0.1}, ("a", "b"), 0.1),
        ({"default": 1e-6, "a": 0.1}, ("b",), 1e-6),
        ({"a": 0.1}, ("b",), 1e-9),
    ],
)
def test_tolerance_is_given_per_key(given: object, path: tuple[str, ...], allowed: float) -> None:
    assert run.tolerance({"kind": "describe", "tolerance": given}, path) == allowed


@pytest.mark.parametrize(("kind", "status", "word"), [("describe", 0, "1 of 1"), ("astrology", 1, "0 of 1")])
def test_exit_status(tmp_path: Path, kind: str, status: int, word: str) -> None:
    case = copy.deepcopy(CASE)
    case["kind"] = kind
    file = tmp_path / "cases.json"
    file.write_text(json.dumps({"cases": [case]}))
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert word in done.stdout
