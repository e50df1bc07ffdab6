"""What one lane does to shared things, or a full disk to its checkpoints, costs no other lane and no run."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.errors import ConfigError, StoreError
from kdbench.method import Phase, checked_phases
from kdbench.training import cohort
from kdbench.training.checkpoint import CheckpointFolder


@pytest.mark.parametrize("what", ["images", "labels", "teacher logits"])
def test_a_method_that_changes_its_batch_ends_alone(lab: Any, what: str) -> None:
    expected = lab.digest_of(lab.train([lab.spec("dkd")], "alone")[0].lane.student.state_dict())
    vandal, dkd = lab.train([lab.spec("toy_vandal", f"what={what}"), lab.spec("dkd")], "beside")
    assert "changed its batch in place" in str(vandal.lane.failure)
    assert dkd.lane.failure is None
    assert lab.digest_of(dkd.lane.student.state_dict()) == expected


def test_labels_shown_to_prepare_are_a_copy(lab: Any) -> None:
    expected = lab.digest_of(lab.train([lab.spec("dkd")], "alone")[0].lane.student.state_dict())
    _, dkd = lab.train([lab.spec("toy_vandal", "what=prepared labels"), lab.spec("dkd")], "beside")
    assert lab.digest_of(dkd.lane.student.state_dict()) == expected


def test_a_full_disk_costs_no_run_and_is_told(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lab.run([lab.spec("dkd")], "whole")[0]
    save, calls = CheckpointFolder.save, []

    def full(self: CheckpointFolder, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise StoreError("no space left")
        save(self, *arguments)

    monkeypatch.setattr(CheckpointFolder, "save", full)
    record = lab.run([lab.spec("dkd")], "full")[0]
    assert (record.status, record.accuracy) == ("ok", whole.accuracy)
    assert record.attempts[-1].outcome == "1 checkpoints could not be saved"


def test_a_teacher_of_another_recipe_is_refused(lab: Any) -> None:
    spec = lab.spec("dkd", teachers=())
    own = spec.model_copy(update={"teacher_names": ()})
    changed = own.model_copy(update={"anchor": lab.anchor(loss__tau=3.0).model_copy(update={"name": "recipe"})})
    name = cohort.artefact_names(changed)[0]
    assert lab.place.teachers.exists(lab.dataset, name), "the store has one of that name"
    with pytest.raises(ConfigError, match="was made by another recipe"):
        lab.train([changed], "refused")


def test_a_main_phase_has_the_anchors_learning_rate() -> None:
    with pytest.raises(ValueError, match="the main phase has the anchor's learning rate"):
        Phase(learning_rate=0.01)
    assert Phase("head", epochs=2, learning_rate=0.01).learning_rate == 0.01


@pytest.mark.parametrize(
    "phases", [(), (Phase(), Phase("again")), (Phase("a", epochs=1), Phase("a", epochs=1), Phase())]
)
def test_phases_are_counted(lab: Any, phases: tuple[Phase, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    lane = lab.train([lab.spec("student")], "one")[0].lane
    monkeypatch.setattr(type(lane.method), "phases", lambda _self: phases)
    with pytest.raises(ValueError, match="need unique names and one main phase"):
        checked_phases(lane.method)
