"""What steps change, gain, cost and report: by hand, from specs and records made here."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdbench
from kdbench.ablation.differences import described, refusals
from kdbench.ablation.expanding import Ablation, expand, ladder_of
from kdbench.ablation.results import rungs
from kdbench.ablation.writing import to_json, to_markdown, write
from kdbench.errors import ConfigError, ProblemList
from kdbench.plan import Request
from kdbench.records import Accuracy, Cost, Environment, EpochReport, Record
from kdbench.registry import Registry, load
from kdbench.spec import RunSpec
from kdbench.store import RECORD, RunStore
from kdbench.training.results import identity_of

LADDER: dict[str, Any] = {
    "name": "up",
    "method": "dkd",
    "anchor": "crd_smoke",
    "factors": {"weight": ["beta"], "start": ["warmup"]},
    "common": {"beta": 1.0},
    "steps": [
        {"name": "low"},
        {"name": "high", "against": "low", "factor": "weight", "options": {"beta": 8.0}},
        {"name": "soon", "against": "low", "factor": "start", "options": {"warmup": 0.0}},
    ],
    "show_metrics": ["gate", "never"],
    "notes": ["made | here"],
}


def registry_with(folder: Path, *ladders: dict[str, Any]) -> Registry:
    paths = [folder / f"{tree['name']}.yaml" for tree in ladders]
    for path, tree in zip(paths, ladders, strict=True):
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    module = types.ModuleType("house")

    @kdbench.hookimpl
    def kdbench_ladders() -> list[Path]:
        return paths

    module.kdbench_ladders = kdbench_ladders  # type: ignore[attr-defined]
    return load(extra=[module])


def request(*seeds: int, **changes: Any) -> Request:
    return Request(
        (), **{"pairs": ("tiny",), "seeds": seeds or (0,), "anchor": "crd_smoke", "per_class": 20, **changes}
    )


@pytest.fixture
def ablation(tmp_path: Path) -> Ablation:
    registry = registry_with(tmp_path, LADDER)
    return expand(registry.ladders["dkd.up"], request(0, 1, 2), registry)


def record(spec: RunSpec, accuracy: float | None, seconds: float, **changes: Any) -> Record:
    ones: dict[str, Any] = dict.fromkeys(Cost.model_fields, 1)
    cost = Cost(**{**ones, "train_seconds": seconds, "student_forwards": 100, "teacher_forwards": 300})
    values: dict[str, Any] = {
        "status": "ok", "classes": 10, "started_at": "", "ended_at": "", "cost": cost,
        "environment": Environment(python="3", torch="2", device="cpu", threads=1, commit="c"),
        "accuracy": None if accuracy is None else Accuracy(last=accuracy, best=99.0, last5_mean=accuracy, top5=100.0),
    }  # fmt: skip
    return Record(**identity_of(spec), **{**values, **changes})


def report(spec: RunSpec, epoch: int, **metrics: Any) -> EpochReport:
    return EpochReport(
        run_id=spec.run_id, phase="train", epoch=epoch, epochs=2, learning_rate=0.1, losses={}, metrics=metrics,
        images_per_second=1.0, seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def store(ablation: Ablation, tmp_path: Path) -> RunStore:
    """Return a store in which all but one run are finished: gains of 1, 2 and 3 points for the second step."""
    store = RunStore(tmp_path / "runs")
    store.register(ablation.plan.runs)
    for spec in ablation.plan.runs:
        folder, step = store.folder(spec.run_id), spec.variant.removeprefix("up.")
        if step == "soon" and spec.seed == 2:
            continue
        scores = {"low": 70.0, "high": 71.0 + spec.seed, "soon": 69.0}
        folder.write_record(record(spec, scores[step], 20.0 if step == "high" else 10.0))
        if step == "high":
            folder.write_epochs([
                report(spec, 0, gate=9.0), report(spec, 1, gate=float(spec.seed)), report(spec, 2, gate=None, word="a"),
            ])  # fmt: skip
    return store


def test_runs_are_variants_of_one_method_with_equal_seeds(ablation: Ablation) -> None:
    assert [(run.row, run.seed) for run in ablation.plan.runs] == [
        (f"dkd@up.{step}", seed) for step in ("low", "high", "soon") for seed in (0, 1, 2)
    ]
    assert set(ablation.plan.passes) == {("tiny", f"dkd@up.{step}") for step in ("low", "high", "soon")}
    assert [run.options["beta"] for run in ablation.specs("high")] == [8.0] * 3


def test_changes_come_from_the_locked_specs(ablation: Ablation) -> None:
    assert list(described(ablation.ladder, ablation.found)) == [
        "low: compared with none",
        "high against low: weight",
        "  beta: 1.0 -> 8.0",
        "soon against low: start",
        "  warmup: 0.08333333333333333 -> 0.0",
    ]
    assert list(refusals(ablation.ladder, ablation.found)) == []


def test_a_value_that_is_the_default_anyway_is_no_change(tmp_path: Path) -> None:
    steps = [{"name": "low"}, {"name": "same", "against": "low", "factor": "weight", "options": {"beta": 1}}]
    registry = registry_with(tmp_path, {**LADDER, "steps": steps})
    with pytest.raises(
        ProblemList, match="step 'same' changes nothing against 'low'; set a key of its factor 'weight'"
    ):
        expand(registry.ladders["dkd.up"], request(), registry)


def test_wrong_steps_are_told_with_what_is_wrong(tmp_path: Path) -> None:
    steps = [
        {"name": "low"},
        {"name": "b", "against": "low", "factor": "weight", "options": {"beta": -1.0}},
        {"name": "c", "against": "b", "factor": "start", "options": {"warm": 0.5}},
    ]
    registry = registry_with(tmp_path, {**LADDER, "steps": steps})
    with pytest.raises(ProblemList) as caught:
        expand(registry.ladders["dkd.up"], request(), registry)
    first, second = sorted(caught.value.problems)
    assert first.startswith("ladder 'dkd.up': b, c: options of method 'dkd': beta is -1.0:")
    assert second.startswith("ladder 'dkd.up': c: --set dkd.warm=0.5: method 'dkd' has no option 'warm'.")


def test_which_ladder_is_meant(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, LADDER, {**LADDER, "name": "down"})
    assert ladder_of("dkd", "down", registry).name == "down"
    with pytest.raises(ConfigError, match=r"method 'dkd': --ladder is needed, no default can be told"):
        ladder_of("dkd", None, registry)
    registry = registry_with(tmp_path, LADDER, {**LADDER, "name": "down", "default": True})
    assert ladder_of("dkd", None, registry).name == "down"
    assert ladder_of("dkd", None, registry_with(tmp_path, LADDER)).name == "up"  # the only one


def test_gains_costs_and_metrics_by_hand(ablation: Ablation, store: RunStore) -> None:
    low, high, soon = rungs(ablation, store)
    assert (low.gain, low.extra.train_seconds, low.metrics) == (None, None, {})
    assert high.gain is not None
    difference = high.gain.difference
    assert difference is not None
    assert (difference.values, difference.mean, difference.std) == ((1.0, 2.0, 3.0), 2.0, 1.0)
    assert difference.interval is not None
    # t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom; t(.975, 2) = 4.302653
    assert (difference.interval.low, difference.interval.high) == pytest.approx((-0.484138, 4.484138), abs=1e-5)
    assert difference.p == pytest.approx(0.0741799, abs=1e-6)
    assert (high.spent.train_seconds, high.spent.forwards) == (20.0, 400.0)
    assert (high.extra.train_seconds, high.extra.forwards) == (1.0, 0.0)
    assert high.metrics == {"gate": 1.0}  # mean over the seeds 0, 1, 2 of the last number that was reported
    assert soon.gain is not None
    assert soon.gain.difference is not None
    assert (soon.gain.difference.n, soon.row.count("missing")) == (2, 1)


def test_the_tables(ablation: Ablation, store: RunStore) -> None:
    steps = rungs(ablation, store)
    text = to_markdown(ablation, steps)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == [
        "step", "against", "factor", "ok", "accuracy %", "gain", "p", "train s", "forwards", "gate",
    ]  # fmt: skip
    assert rows[2] == [
        "high", "low", "weight", "3/3", "72.00 ± 1.00", "+2.00 [-0.48, +4.48]", "0.074", "20.0 (+100 %)", "400 (0 %)",
        "1.00",
    ]  # fmt: skip
    assert rows[3][3:7] == ["2/3 (1 missing)", "69.00 ± 0.00", "-1.00 [n/a (zero variance)] (n=2)", "n/a"]
    assert r"- made \| here" in text
    tree = json.loads(to_json(ablation, steps))
    assert tree["steps"][1]["changes"] == [{"key": "beta", "before": 1.0, "after": 8.0}]
    assert tree["steps"][1]["gain"]["values"] == [1.0, 2.0, 3.0]
    assert tree["steps"][2]["runs"][2]["status"] == "missing"
    paths = write(ablation, steps, store.root)
    name = "dkd.up-crd_smoke-v1-digits-20pc-tiny"
    assert [path.relative_to(store.root).as_posix() for path in paths] == [
        f"ablations/{name}.md", f"ablations/{name}.json",
    ]  # fmt: skip
    assert paths[0].read_text(encoding="utf-8") == text


def test_a_diverged_run_counts_as_chance_and_leaves_no_interval(ablation: Ablation, store: RunStore) -> None:
    spec = ablation.specs("high")[0]
    (store.folder(spec.run_id).path / RECORD).unlink()
    store.folder(spec.run_id).write_record(record(spec, None, 1.0, status="diverged", cost=None))
    high = rungs(ablation, store)[1]
    assert high.row.scores[0] == 10.0
    assert high.gain is not None
    assert high.gain.difference is not None
    assert (high.gain.difference.interval, high.gain.difference.p) == (None, None)
    assert high.gain.difference.reason == "unstable"
    assert high.metrics == {"gate": 1.5}  # of the ok runs alone
    json.loads(to_json(ablation, rungs(ablation, store)))


def test_anchor_keys_are_part_of_what_a_step_changes(tmp_path: Path, ablation: Ablation) -> None:
    from kdbench.ablation.differences import differences
    from kdbench.spec import DeclaredDeviation

    specs = {step: ablation.specs(step)[0] for step in ("low", "high", "soon")}
    deviation = DeclaredDeviation(key="loss.tau", value=1.0, reason="r")
    specs["high"] = specs["high"].model_copy(update={"deviations": (deviation,)})
    found = differences(ablation.ladder, specs)
    assert [str(change) for change in found[1].changes] == ["beta: 1.0 -> 8.0", "anchor.loss.tau: 4.0 -> 1.0"]
    (refused,) = refusals(ablation.ladder, found)
    assert "step 'high' changes anchor.loss.tau: 4.0 -> 1.0 against 'low', which is outside its factor" in refused
