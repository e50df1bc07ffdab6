"""Everything that a run of ASIB reports has its line in docs/asib.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kdbench.records import EpochReport, StepReport

PAGE = Path(__file__).parents[2] / "docs" / "asib.md"
TEACHERS = ("resnet14_w8", "resnet8_w4")
# An early gate, and every term there is.
OPTIONS = (
    "num_stages=2", "teacher_adapt_epochs=2", "teacher_eval_every=1", "synergy_only_epochs=1",
    "enable_kd_after_syn_acc=0", "use_cccp=true", "use_cccp_in_a=true", "use_cccp_in_b=true", "cccp_alpha=0.1",
    "ib_mbm_reg_lambda=0.1", "reg_lambda=0.1", "synergy_temp_learnable=true", "synergy_temp_reg=0.1",
    "feat_kd_alpha_in_a=0.01", "use_disagree_weight=true", "use_loss_clamp=true", "loss_clamp_mode=hard",
    "loss_clamp_max=1.5", "disable_loss_clamp_in_a=false",
)  # fmt: skip


def documented() -> set[str]:
    """Return the names in the first column of the tables of metrics."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## Per-epoch metrics\n")[2].partition("\n## ")[0]
    columns = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for column in columns for name in re.findall(r"`(\w+)`", column)}


def reported(report: EpochReport | StepReport) -> set[str]:
    return {*report.losses, *report.metrics}


def test_what_is_reported_is_documented(lab: Any) -> None:
    teachers = (lab.teacher, lab.make_teacher(TEACHERS[1]))
    spec = lab.spec("asib", *OPTIONS, networks=("resnet8_w4", TEACHERS), teachers=teachers)
    (trained,) = lab.train([spec], "here")
    assert trained.lane.failure is None
    history = trained.lane.history
    assert [report.phase for report in history] == ["a1", "a1", "b1", "a2", "a2", "b2", "b2"]
    found = set().union(*map(reported, history))
    assert found - documented() == set()
    fields = {"validation_accuracy", "test_accuracy", "train_accuracy", "learning_rate", "seconds"}
    assert fields <= set(EpochReport.model_fields)
    # What depends on luck (an epoch undone), or on training copies of the teachers.
    rare = {"guarded", "teacherK_trainable"}
    assert documented() - fields - rare - found == set()
