"""Whole runs with a cold, a warm and no cache end in the same bits, alone and in company, and cost what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbench.training.teacher_cache import CachePlace
from kdbench.training.trainer import Interrupted

LOGITS, EMBEDDING, MAPS = ("vanilla_kd", "dkd"), "crd", "fitnet"
ALL = (*LOGITS, EMBEDDING, MAPS)
TRAIN, EPOCHS, CROPS = 160, 3, 9  # digits are not mirrored, and 8x8 images are padded by 1


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    return CachePlace(tmp_path / "cache", 2**30)


def results(lab: Any, trained: list[Any]) -> dict[str, str]:
    """Digests of all that a run leaves behind, but for what it cost."""
    found = {}
    for entry in trained:
        assert entry.lane.failure is None
        state = lab.timeless(entry.lane.state())
        del state["counters"]
        found[entry.lane.spec.method] = lab.digest_of(state)
    return found


def costs(trained: list[Any]) -> list[tuple[float, float]]:
    counters = [entry.lane.counters for entry in trained]
    return [(each.teacher_forwards, each.teacher_cached) for each in counters]


@pytest.mark.parametrize("changes", [{}, {"step__teacher_cache": "half"}, {"step__channels_last": False}])
def test_cold_warm_and_no_cache_give_the_same_bits(lab: Any, place: CachePlace, changes: dict[str, Any]) -> None:
    anchor = lab.anchor(**changes)
    specs = [lab.spec(method, anchor=anchor) for method in ALL]
    without = {}
    for spec in specs:
        without |= results(lab, lab.train([spec], "without"))
    together = lab.train(specs[:3], "together", cache=place)
    assert results(lab, together) == {method: without[method] for method in ALL[:3]}
    cold = sum(live for live, _ in costs(together))
    assert 0 < cold < EPOCHS * TRAIN, "some crops come again within three epochs"
    for spec in specs:
        warm = lab.train([spec], "warm", cache=place)
        assert results(lab, warm) == {spec.method: without[spec.method]}
        expected = (EPOCHS * TRAIN, 0) if spec.method == MAPS else (0, EPOCHS * TRAIN)
        assert costs(warm) == [expected]


def test_a_run_that_was_stopped_ends_in_the_same_bits(lab: Any, place: CachePlace) -> None:
    specs = [lab.spec(method) for method in LOGITS]
    expected = results(lab, lab.train(specs, "whole"))
    with pytest.raises(Interrupted):
        lab.train(specs, "cut", should_stop=lab.stop_after(6), cache=place)
    resumed = lab.train(specs, "cut", cache=place)
    assert results(lab, resumed) == expected
    live, cached = map(sum, zip(*costs(resumed), strict=True))
    assert cached > 0
    # The second half of an epoch that was stopped is new; what was done before it is on no account twice.
    assert live + cached >= EPOCHS * TRAIN


def test_half_is_another_protocol(lab: Any) -> None:
    exact, half = lab.anchor(), lab.anchor(step__teacher_cache="half")
    assert exact.sha256 != half.sha256
    found = [
        results(lab, lab.train([lab.spec("dkd", anchor=anchor)], anchor.step.teacher_cache)) for anchor in (exact, half)
    ]
    assert found[0] != found[1]
