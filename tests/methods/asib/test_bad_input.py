"""What is wrong with options on a pair is said by ``kdbench plan``, by key and value, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import commandline as cli
import pytest

WHOLE = """
name: {name}
version: 1
loss: {{ce_alpha: 0.65, kd_alpha: {kd}}}
optimizer: {{name: sgd, lr: 0.05, weight_decay: 5e-4}}
schedule: {{name: cosine, epochs: 2}}
data: {{batch_size: 40, validation_fraction: 0.2}}
step: {{precision: fp32}}
freezing: {{use_partial_freeze: {freezing}}}
"""
ANCHORS = {
    "free": WHOLE.format(name="free", kd=0.35, freezing="true"),
    "open": WHOLE.format(name="open", kd=0.35, freezing="false"),
    "sum": WHOLE.format(name="sum", kd=0.4, freezing="false"),
    "weights": "extends: fair_baseline_smoke\nname: weights\nversion: 1\nloss: {teacher_weights: [1, 2, 3]}\n",
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def words(*settings: str, anchor: str = "fair_baseline_smoke", pair: str = "tiny_two") -> list[Any]:
    """Return the words of a plan of ASIB."""
    if anchor in ANCHORS:
        Path(f"{anchor}.yaml").write_text(ANCHORS[anchor], encoding="utf-8")
        anchor = f"{anchor}.yaml"
    given = [word for setting in settings for word in ("--set", f"asib.{setting}")]
    cell = ["--method", "asib", "--pair", pair, "--anchor", anchor, "--per-class", 20, "--seeds", 1]
    return ["plan", *cell, "--no-measure", *given]


def refusal(*settings: str, **more: str) -> str:
    """Return why a plan has nothing to run; nothing but the anchor's file may be left behind."""
    message = cli.failure(*words(*settings, **more))
    start = f"nothing to run: asib on {more.get('pair', 'tiny_two')}: "
    assert message.startswith(start), message
    assert {path.suffix for path in Path().iterdir()} <= {".yaml"}
    return message.removeprefix(start)


def notes(*settings: str, **more: str) -> list[str]:
    """Return what a plan wants the user to know."""
    outcome = cli.kdbench(*words(*settings, **more))
    assert outcome.code == 0, outcome
    start = f"note asib on {more.get('pair', 'tiny_two')}: "
    return [line.removeprefix(start) for line in outcome.out.splitlines() if line.startswith("note ")]


NO_ADAPTERS = ("use_distillation_adapter=false", "feat_kd_key=feat_2d")
FROZEN = ("use_partial_freeze=true", "student_freeze_level=1")
FIRST = "student_freeze_level is 1 in the first stage, but resnet8_w4 starts from random weights"


@pytest.mark.parametrize(
    ("settings", "more", "reason"),
    [
        (
            NO_ADAPTERS,
            {},
            "the teachers' features have different widths (resnet14_w8 32, resnet8_w4 16); set "
            "use_distillation_adapter: true and distill_out_dim, so that they get one",
        ),
        (
            ("feat_kd_key=feat_2d", "ib_mbm_query_dim=2048"),
            {},
            "ib_mbm_query_dim is 2048, but the query (feat_2d) of resnet8_w4 has width 16; set it to that, or to 0 for "
            "the feature's own",
        ),
        (
            ("use_distillation_adapter=false",),
            {},
            "feat_kd_key is 'distill_feat', but use_distillation_adapter is false; switch the adapters on, or set "
            "feat_kd_key: feat_2d",
        ),
        (
            ("ib_mbm_n_head=3",),
            {},
            "ib_mbm_n_head is 3, which does not divide the bridge's width 256 (ib_mbm_out_dim, or distill_out_dim with "
            "adapters); take a divisor",
        ),
        (
            ("auto_align_ib_out_dim=false", "ib_mbm_out_dim=10", "ib_mbm_n_head=4"),
            {},
            "ib_mbm_n_head is 4, which does not divide the bridge's width 10 (ib_mbm_out_dim, or distill_out_dim with "
            "adapters); take a divisor",
        ),
        (
            FROZEN,
            {"anchor": "free"},
            f"{FIRST}, and what is frozen would stay random; take a pretrained student, begin with level -1, or set "
            "allow_random_frozen: true",
        ),
        (
            ("synergy_only_epochs=7",),
            {},
            "synergy_only_epochs is 7, but an A-Step has only 6 epochs",
        ),
        (
            ("use_ib=false",),
            {},
            "kd_target is 'auto', but use_ib is false, so its gate could never open",
        ),
        (
            ("kd_target=synergy", "teacher_adapt_epochs=0"),
            {},
            "kd_target is 'synergy', but no A-Step trains the synergy (teacher_adapt_epochs 0)",
        ),
        (
            ("num_stages=2", "student_epochs_per_stage=[2]"),
            {},
            "student_epochs_per_stage has 1 values, but num_stages is 2",
        ),
        (
            ("num_stages=2", "student_epochs_per_stage=[2, 1]"),
            {},
            "student_epochs_per_stage [2, 1] makes 3 epochs, but the anchor has 2: every method has the same",
        ),
        (
            ("num_stages=3",),
            {},
            "num_stages is 3 and there are 1 B-Steps in each, but the anchor has only 2 epochs to share",
        ),
        (
            ("use_cccp=true", "cccp_ns=3", "use_cccp_in_b=true"),
            {},
            "num_stages is 1 and there are 3 B-Steps in each, but the anchor has only 2 epochs to share",
        ),
        (
            ("use_partial_freeze=true", "teacher1_freeze_level_schedule=[0, 1]", "student_freeze_level_schedule=[]"),
            {"anchor": "free"},
            "student_freeze_level_schedule has 0 values, but num_stages is 1; teacher1_freeze_level_schedule has 2 "
            "values, but num_stages is 1",
        ),
        (("min_cw=2", "max_cw=1.5"), {}, "min_cw 2 is larger than max_cw 1.5"),
        (("a_step_lr=0",), {}, "a_step_lr and teacher_lr are both 0, so the A-Step would train nothing"),
        (
            (),
            {"pair": "tiny"},
            "its A-Step (teacher_adapt_epochs 6) needs two teachers or more, the pair has one",
        ),
        (
            (),
            {"anchor": "crd_smoke"},
            "its A-Step (teacher_adapt_epochs 6) measures the synergy on a validation split, but the anchor cuts none "
            "(data.validation_fraction 0)",
        ),
        (
            ("teacher_adapt_epochs=0", "ib_epochs_per_stage=5"),
            {"anchor": "crd_smoke"},
            "its A-Step (ib_epochs_per_stage 5) measures the synergy on a validation split, but the anchor cuts none "
            "(data.validation_fraction 0)",
        ),
    ],
)
def test_refused_by_key_and_value(settings: tuple[str, ...], more: dict[str, str], reason: str) -> None:
    assert refusal(*settings, **more) == reason


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said = refusal("synergy_only_epochs=9", "min_cw=3", "use_ib=false", "num_stages=5", pair="tiny")
    assert said.split("; ") == [
        "num_stages is 5 and there are 1 B-Steps in each, but the anchor has only 2 epochs to share",
        "its A-Step (teacher_adapt_epochs 6) needs two teachers or more, the pair has one",
        "synergy_only_epochs is 9, but an A-Step has only 6 epochs",
        "kd_target is 'auto', but use_ib is false, so its gate could never open",
        "min_cw 3 is larger than max_cw 1.5",
    ]


def test_a_level_beyond_the_blocks_is_out_of_range() -> None:
    said = cli.failure(*words("student_freeze_level=3", anchor="free"))
    assert "student_freeze_level is 3: input should be less than or equal to 2" in said


def test_alphas_that_do_not_sum_to_one_are_the_anchors_fault() -> None:
    said = cli.failure(*words(anchor="sum"))
    assert "loss.ce_alpha 0.65 + loss.kd_alpha 0.4 is 1.05; the sum must be 1" in said


def test_weights_for_other_teachers_are_the_anchors_fault() -> None:
    said = cli.failure(*words(anchor="weights"))
    assert said == "anchor weights: loss.teacher_weights has 3 values, but pair 'tiny_two' has 2 teachers"


@pytest.mark.parametrize("key", ["use_partial_freeze", "student_freeze_bn"])
def test_freezing_is_locked_under_fair_baseline(key: str) -> None:
    assert cli.failure(*words(f"{key}=true")) == (
        f"method 'asib': option {key} is True, but anchor fair_baseline_smoke-v1 (fair_baseline_smoke.yaml) locks "
        f"freezing.{key} at False; set it to that, or declare a Deviation"
    )


def test_a_protocol_without_freezing_refuses_levels_even_if_it_locks_nothing() -> None:
    said = refusal("use_partial_freeze=true", "student_freeze_level=0", "allow_random_frozen=true", anchor="open")
    assert said == (
        "phase 'b1' freezes parts of the student (level 0), but the anchor has freezing.use_partial_freeze false; take "
        "an anchor that allows it"
    )


@pytest.mark.parametrize("key", ["tau", "ce_alpha", "kd_alpha"])
def test_keys_of_the_protocol_are_no_options(key: str) -> None:
    said = cli.failure(*words(f"{key}=0.5"))
    assert said.startswith(f"--set asib.{key}=0.5: loss.{key} is 0.5, but anchor fair_baseline_smoke-v1")


# --- what is allowed but should be known ------------------------------------------------------------------------------

USUAL = [
    "hidden of resnet8_w4 is 256, the larger of half its embedding and out",
    "hidden of resnet14_w8 is 256, the larger of half its embedding and out",
    "ib_mbm_out_dim is 256, as the adapters' width, not 512",
]
SETTLED = ("distill_hidden_dim=256", "ib_mbm_out_dim=256")


@pytest.mark.parametrize(
    ("settings", "more", "expected"),
    [
        ((), {}, USUAL),
        (SETTLED, {}, []),
        (
            (*SETTLED, "kd_ens_alpha_max=0.8", "b_step_lr=0.2", "synergy_eval_use_all_teachers=true"),
            {},
            [
                "synergy_eval_use_all_teachers is True, which has no effect",
                "kd_ens_alpha_max is 0.8, which has no effect",
                "b_step_lr is 0.2, which has no effect",
            ],
        ),
        (
            (*SETTLED, "feat_kd_key=feat_2d"),
            {},
            ["feat_kd_alpha is 0.05, but the query has width 16 and the bridge 256: there is no feature term"],
        ),
        (
            (*SETTLED, "kd_target=avg"),
            {},
            [
                "feat_kd_alpha is 0.05, but with kd_target 'avg' the bridge does not run in the B-Step: there is no "
                "feature term"
            ],
        ),
        (
            (*SETTLED, "train_distill_adapter_only=false"),
            {},
            ["the teachers' adapters stay random projections (train_distill_adapter_only false)"],
        ),
        ((*SETTLED, "feat_kd_alpha=0"), {}, ["the student's adapter gets no gradient (feat_kd_alpha 0)"]),
        (
            (*SETTLED, *FROZEN, "allow_random_frozen=true"),
            {"anchor": "free"},
            ["frozen layers of resnet8_w4 keep their random weights (allow_random_frozen)"],
        ),
        (
            (*SETTLED, "ib_mbm_query_dim=2048"),
            {},
            ["ib_mbm_query_dim is 256, as the student's adapter, not 2048"],
        ),
        (
            (*SETTLED, "use_cccp=true"),
            {},
            ["use_cccp is true, but neither use_cccp_in_a nor use_cccp_in_b: there is no CCCP term"],
        ),
        (
            (*SETTLED, "use_cccp=true", "use_cccp_in_a=true", "synergy_only_epochs=6"),
            {},
            ["synergy_only_epochs 6 leaves no epoch of the A-Step (6) in which CCCP acts"],
        ),
    ],
)
def test_notes(settings: tuple[str, ...], more: dict[str, str], expected: list[str]) -> None:
    assert notes(*settings, **more) == expected


def test_notes_are_said_once_per_cell_by_run_too() -> None:
    dry = cli.kdbench("run", *words(*SETTLED, "kd_ens_alpha_max=0.8")[1:], "--seeds", 3, "--dry-run")
    note = "note asib on tiny_two: kd_ens_alpha_max is 0.8, which has no effect"
    assert dry.out.splitlines().count(note) == 1
    short = ("teacher_adapt_epochs=1", "synergy_only_epochs=0", "distill_out_dim=8", "distill_hidden_dim=8")
    one = [word for word in words(*short, "ib_mbm_out_dim=8", "kd_ens_alpha_max=0.8")[1:] if word != "--no-measure"]
    place = ["--out", "runs", "--teachers", "teachers", "--threads", 1, "--executor", "inline"]
    done = cli.kdbench("run", *one, *place)
    assert done.code == 0, done
    assert done.out.splitlines()[0] == note
    assert done.out.splitlines().count(note) == 1
    assert done.out.splitlines()[-1].startswith("1 ok, 0 diverged, 0 failed;")


def test_the_kit_from_the_command_line() -> None:
    outcome = cli.kdbench("plugin", "check", "asib")
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines()[-1] == "1 method(s) checked, 0 problem(s)"
