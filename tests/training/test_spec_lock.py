"""The configuration of a run is verified after it: what was planned is what was done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kdbench.errors import KdbenchError
from kdbench.records import EpochReport
from kdbench.store import SPEC

if TYPE_CHECKING:
    from conftest import Lab


def test_a_spec_edited_during_the_run_is_found_and_nothing_is_recorded(lab: Lab) -> None:
    spec = lab.spec("dkd")
    (folder,) = lab.folders([spec], "edited")

    def edit(_report: EpochReport) -> None:
        tree = json.loads((folder.path / SPEC).read_text(encoding="utf-8"))
        tree["options"]["beta"] = 3.5
        (folder.path / SPEC).write_text(json.dumps(tree), encoding="utf-8")

    with pytest.raises(KdbenchError, match=r"configuration changed during the run \(in .*spec\.json: "):
        lab.run([spec], "edited", epoch_ended=edit)
    assert folder.record() is None


def test_a_spec_changed_in_memory_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.training import runs

    def meddle(*arguments: object) -> object:
        entries = train(*arguments)
        entries[0].lane.spec.options["beta"] = 3.5
        return entries

    train = runs.train_cohort
    monkeypatch.setattr(runs, "train_cohort", meddle)
    with pytest.raises(KdbenchError, match=r"configuration changed during the run \(in memory: "):
        lab.run([lab.spec("dkd")], "meddled")
