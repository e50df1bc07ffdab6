"""What a driver does grows with its runs, not with their square: counted in function calls, which no machine slows."""

from __future__ import annotations

import cProfile
import pstats
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from kdbench.config.schema import Anchor
from kdbench.execution.grouping import pieces
from kdbench.execution.remaining import TimeLeft
from kdbench.records import parse_json
from kdbench.spec import RunSpec
from kdbench.training.runtime import PhaseTime, RunTime

# Behind everything else: scripts of other folders have the same names.
sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import fleet
from fleet_store import MemoryStore, patched

SMALL, LARGE = 200, 800
GROWTH = LARGE / SMALL


def calls(work: Callable[[], object]) -> float:
    profile = cProfile.Profile()
    profile.runcall(work)
    return float(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def follow(runs: int) -> None:
    """Hear of every run's progress and end, and ask for the time left each time."""
    left = TimeLeft({str(run): RunTime((PhaseTime("main", 1.0),)) for run in range(runs)}, 10.0)
    for run in range(runs):
        left.reached(str(run), "main", 0, 1, 0.5)
        assert left.seconds is not None
        left.ended(str(run))
        assert left.seconds is not None


def cut(runs: int) -> None:
    """Cut as many groups for as many workers, so that almost all of them have to be cut once more."""
    assert sum(pieces([3] * runs, [3] * runs, 2 * runs - 1)) == 2 * runs - 1


@pytest.mark.parametrize("work", [follow, cut])
def test_parts_of_the_driver(work: Callable[[int], None]) -> None:
    assert calls(lambda: work(LARGE)) < 1.5 * GROWTH * calls(lambda: work(SMALL))


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_driver_with_a_fleet_that_fails_now_and_then(
    lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real driver, 20 workers in virtual time; every run is done, but for those that no worker survives."""
    monkeypatch.setattr(fleet, "DEADLY", 0.01)

    def drive(runs: int) -> float:
        specs, root = fleet.planned(runs), tmp_path / str(runs)
        store = MemoryStore(root)
        with patched(store):
            return calls(lambda: fleet.simulate(specs, store, root, 20, lanes, fleet.Watch()))

    drive(40)  # what is imported or kept from call to call is not measured
    assert drive(LARGE) < 1.5 * GROWTH * drive(SMALL)


def test_retries_do_not_hold_up_those_who_wait(tmp_path: Path) -> None:
    """A fleet's driver slept for half a second at every worker that was stopped: minutes an hour, workers idle."""
    specs, store = fleet.planned(LARGE), MemoryStore(tmp_path)
    with patched(store):
        made = fleet.simulate(specs, store, tmp_path, 20, 1, fleet.Watch())
    assert sum(made.ends.values()) > len(specs) * 1.03, "too few failed to show anything"
    assert made.clock.slept < 20 * 3 * 1.5, "more than the last jobs of 20 workers can ask for"


def test_reading_a_spec_flattens_its_protocol_once(tmp_path: Path) -> None:
    """It once did so for every locked key: most of the time of reading a store."""
    spec = fleet.planned(1)[0]
    assert len(spec.anchor.locked) > 3
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json(), encoding="utf-8")
    parse_json(RunSpec, path)  # the protocol itself is parsed once for all
    with mock.patch.object(Anchor, "keys", autospec=True, side_effect=Anchor.keys) as keys:
        assert parse_json(RunSpec, path) == spec
    assert keys.call_count <= 1
