"""All methods in one cohort: each lane ends in the bits it has alone, however the cohort was put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from kdbench import registry
from kdbench.method import Batch, Losses
from kdbench.testing.bench import TWO_TEACHERS, pair_for
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.trainer import Interrupted

TOYS = {"toy_bank", "toy_head"}  # third parties' methods, with every kind of state
_METHODS = registry.load().methods
NAMES = [m.name for m in _METHODS.values() if _METHODS.owner(m.name).distribution == "kdbench"]
# Of a shared pass each lane is charged its part; that is a cost, and the only thing that depends on the company.
SHARED_COST = "teacher_forwards"
TIMES = {"started_at", "ended_at", "attempts", "cost"}


@pytest.fixture
def specs(lab: Any) -> list[Any]:
    """Every method, on the first pair it does not decline: they are of one seed and protocol."""
    anchor = lab.anchor(schedule__epochs=2, data__cutmix_alpha=1.0, step__ema_decay=0.9)
    one = [name for name in NAMES if pair_for(_METHODS[name]) is not TWO_TEACHERS]
    return [lab.spec_for(name, anchor) for name in [*one, *sorted(TOYS)]]


def final(lab: Any, specs: Iterable[Any], where: str) -> dict[str, str]:
    """Return the digest of each run's last checkpoint: all of its state but times and shared cost."""
    found = {}
    for spec in specs:
        state = lab.timeless(CheckpointFolder(lab.folders([spec], where)[0].checkpoints).newest())
        state["counters"].pop(SHARED_COST)
        found[spec.method] = lab.digest_of(state)
    return found


@pytest.fixture
def alone(lab: Any, specs: list[Any]) -> dict[str, str]:
    """What each run ends in by itself."""
    for spec in specs:
        (trained,) = lab.train([spec], "alone")
        assert trained.lane.failure is None
    return final(lab, specs, "alone")


def test_each_of_all_methods_ends_in_its_own_bits_whatever_cohort_it_is_in(
    lab: Any, specs: list[Any], alone: dict[str, str]
) -> None:
    """Beside a lane that diverges and one that fails; and stopped, left at different places, and grouped anew."""
    assert len(specs) > 16
    anchor = specs[0].anchor
    diverging = lab.spec("toy_nan", "epoch=1", anchor=anchor)
    failing = lab.spec("toy_bad", "where=losses", "epoch=1", anchor=anchor)
    together = lab.train([diverging, *reversed(specs), failing], "together")
    assert together[0].lane.diverged
    assert together[-1].lane.failure is not None
    assert final(lab, specs, "together") == alone
    for spec, stop in zip(specs, (3, 6, 2, 5), strict=False):
        with pytest.raises(Interrupted):
            lab.train([spec], "apart", should_stop=lab.stop_after(stop))
    with pytest.raises(Interrupted):  # some lanes are in phases of their own then, some in the main one, some nowhere
        lab.train(specs, "apart", should_stop=lab.stop_after(20))
    half = len(specs) // 2
    for group in (specs[half:], specs[: half - 1], specs[half - 1 : half]):
        lab.train(group, "apart")
    assert final(lab, specs, "apart") == alone


def test_records_of_a_cohort_are_those_of_single_runs(lab: Any, specs: list[Any]) -> None:
    few = [spec for spec in specs if spec.method in {"student", "crd", "simkd"}]
    together = lab.run(few, "together")
    for spec, record in zip(few, together, strict=True):
        (single,) = lab.run([spec], "alone")
        assert record.model_dump(exclude=TIMES) == single.model_dump(exclude=TIMES)
        assert record.cost.student_forwards == single.cost.student_forwards
        assert record.cost.train_only_parameters == single.cost.train_only_parameters
        files = [lab.folders([spec], where)[0].path for where in ("together", "alone")]
        for name in ("student.safetensors", "predictions.npz"):
            assert len({(path / name).read_bytes() for path in files}) == 1, (spec.method, name)


def test_no_lane_holds_a_gradient_or_a_note_when_another_steps(lab: Any) -> None:
    def losses(_self: object, batch: Batch) -> Losses:
        batch.note("loud", batch.student.logits.mean())
        return {"ce": batch.supervised(), "kd": batch.kd()}

    lab.probe("noting", losses=losses)
    for entry in lab.train([lab.spec("noting"), lab.spec("fitnet")], "runs"):
        lane = entry.lane
        assert lane.failure is None
        assert lane.counters.images == 3 * lab.steps * 40
        assert [p for part in (lane.student, lane.method) for p in part.parameters() if p.grad is not None] == []
        assert lane._noted == []
