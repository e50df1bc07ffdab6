"""kdbench asib-config: files in ASIB's words become a preset that can be used."""

from __future__ import annotations

from pathlib import Path

import yaml
from commandline import failure, kdbench

from kdbench.config.loading import load_anchor
from kdbench.config.presets import load_preset

EXPERIMENT = """
teacher1: {name: convnext_s}
teacher2: {name: resnet152}
model: {student: {name: resnet101_scratch}}
num_stages: "2"
student_epochs_per_stage: [3, 3]
optimizer: sgd
ce_alpha: 0.65
kd_alpha: 0.35
use_ib: false
use_wandb: true
"""
METHOD = (
    "name: asib\nuse_ib: 'yes'\nib_beta: '5e-05'\nkd_target: auto\nteacher_adapt_epochs: 1\nteacher_weights: [.4, .6]\n"
)


def files(folder: Path, more: str = "") -> tuple[Path, Path]:
    (folder / "mine.yaml").write_text(EXPERIMENT + more, encoding="utf-8")
    (folder / "method.yaml").write_text(METHOD, encoding="utf-8")
    return folder / "mine.yaml", folder / "method.yaml"


def test_what_it_prints_is_a_preset_and_a_protocol(tmp_path: Path) -> None:
    experiment, method = files(tmp_path)
    outcome = kdbench("asib-config", experiment, "--method-file", method, "--name", "made")
    assert outcome.code == 0, outcome
    path = tmp_path / "made.yaml"
    path.write_text(outcome.out, encoding="utf-8")
    preset = load_preset(path)
    assert preset.method == "asib"
    assert {key: preset.options[key] for key in ("use_ib", "ib_beta", "num_stages", "kd_target")} == {
        "use_ib": True, "ib_beta": 5e-05, "num_stages": 2, "kd_target": "auto",
    }  # fmt: skip
    anchor = load_anchor(str(path), {})
    assert (anchor.name, anchor.schedule.epochs, anchor.optimizer.lr) == ("made", 6, 0.05)
    assert anchor.loss.teacher_weights == {"convnext_s": 0.4, "resnet152": 0.6}
    assert anchor.data.validation_fraction == 0.1
    assert preset.notes[0] == "pair: one of teacher1 convnext_s, teacher2 resnet152, student resnet101_scratch"
    assert any(note.startswith("use_wandb: True: without effect") for note in preset.notes)


def test_the_experiment_may_have_priority(tmp_path: Path) -> None:
    experiment, method = files(tmp_path, "method_priority: experiment\n")
    printed = yaml.safe_load(kdbench("asib-config", experiment, "--method-file", method).out)
    assert printed["name"] == "mine"
    assert printed["options"]["use_ib"] is False
    assert "kd_target" not in printed["options"]


def test_what_is_wrong_is_said_in_words(tmp_path: Path) -> None:
    experiment, _ = files(tmp_path, "use_cccpp: true\ncl_mode: true\n")
    assert failure("asib-config", experiment).splitlines() == [
        "use_cccpp: unknown key. Did you mean 'use_cccp'?",
        "cl_mode: True: not possible: learning task by task is no distillation run and has no place in a preset; "
        "allowed: False",
    ]
    experiment, _ = files(tmp_path, "ib_mbm_n_head: 0\n")
    assert "options of 'mine': ib_mbm_n_head is 0: input should be greater than or equal to 1" in failure(
        "asib-config", experiment
    )
    assert failure("asib-config", tmp_path / "none.yaml").endswith(
        "cannot be read (No such file or directory); check the path"
    )
