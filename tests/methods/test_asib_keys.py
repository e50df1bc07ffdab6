"""Every key of an ASIB configuration has a home here, and layers, casts and translations do what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kdbench.config.schema import Anchor
from kdbench.errors import ProblemList
from kdbench.methods.asib.keys import ALIASES, HOMES, home_of
from kdbench.methods.asib.layers import cast, flat, resolve
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.translate import translate
from kdbench.registry import Registry

# The key reference of the specification, section 6.2, row by row.
REFERENCE = """
device seed small_input results_dir exp_id
dataset.name dataset.root dataset.data_aug dataset.small_input dataset.batch_size dataset.num_workers
dataset.pin_memory dataset.persistent_workers dataset.prefetch_factor dataset.backend
dataset_batch_size stages student_epochs
num_stages student_epochs_per_stage teacher_adapt_epochs
use_amp amp_dtype grad_scaler_init_scale use_channels_last
use_ib ib_beta ib_beta_warmup_epochs beta_schedule ib_epochs_per_stage
ib_mbm_query_dim ib_mbm_out_dim ib_mbm_n_head ib_mbm_feature_norm ib_mbm_reg_lambda
ib_mbm_logvar_clip ib_mbm_min_std ib_mbm_dropout ib_mbm_lr_factor
synergy_head_dropout synergy_temp_learnable synergy_temp_init synergy_temp_reg
use_vib_synergy_head hybrid_beta kd_ens_alpha_max
a_step_lr a_step_weight_decay teacher_lr teacher_weight_decay a_step_amp_enabled
optimizer student_lr student_weight_decay b_step_momentum b_step_nesterov adam_beta1 adam_beta2
b_step_lr b_step_weight_decay
schedule.type lr_warmup_epochs min_lr step_size gamma grad_clip_norm
ce_alpha kd_alpha kd_ens_alpha feat_kd_alpha feat_kd_alpha_in_a feat_kd_key feat_kd_clip feat_kd_huber_beta
kd_target kd_teacher_index teacher_weights tau_gate
tau tau_schedule tau_start tau_end tau_decay_power tau_syn
kd_warmup_epochs kd_max_ratio teacher_adapt_kd_warmup teacher_adapt_alpha_kd
enable_kd_after_syn_acc synergy_only_epochs synergy_ce_alpha synergy_logit_scale use_mu_for_kd
teacher_eval_every synergy_ema_alpha synergy_eval_use_all_teachers
label_smoothing ce_label_smoothing min_cw max_cw
use_loss_clamp loss_clamp_mode loss_clamp_max loss_clamp_warmup_epochs disable_loss_clamp_in_a
use_cccp use_cccp_in_a use_cccp_in_b cccp_alpha cccp_ramp_epochs cccp_nt cccp_ns
use_partial_freeze student_freeze_level student_freeze_level_schedule teacher1_freeze_level
teacher1_freeze_level_schedule teacher2_freeze_level teacher2_freeze_level_schedule student_freeze_bn
teacher1_freeze_bn teacher2_freeze_bn force_ppf_off student_freeze_schedule
use_teacher_finetuning train_distill_adapter_only reg_lambda
use_distillation_adapter distill_out_dim distill_hidden_dim auto_align_ib_out_dim
mixup_alpha cutmix_alpha_distill
use_disagree_weight disagree_mode disagree_lambda_high disagree_lambda_low
disagreement_max_samples disagreement_max_batches
compute_teacher_eval teacher_eval_on_gpu teacher_eval_amp teacher_eval_batch_size teacher_eval_max_batches
teacher_eval_force_cudnn teacher_eval_num_workers
use_safe_mode disable_cudnn deterministic use_wandb wandb_project log_level debug_verbose print_config_only
strict_mode auto_renorm
overlap_pct use_overlap_sampling cl_mode num_tasks replay_ratio replay_capacity lambda_ewc epochs
teacher1.name teacher2.name teacher1.pretrained teacher2.pretrained teacher1_ckpt teacher2_ckpt
model.student.name model.student.pretrained model.student.use_adapter
"""
KEYS = REFERENCE.split()


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_home(key: str) -> None:
    homes = home_of(key)
    assert homes
    for home in homes:
        assert home.at or home.why  # nothing is left without a word


def test_homes_are_places_that_exist() -> None:
    anchor = {"loss": {"ce_alpha": 1, "kd_alpha": 0}, "optimizer": {"lr": 1, "weight_decay": 0}}
    known = Anchor.model_validate(
        {"name": "x", **anchor, "schedule": {"epochs": 1}, "data": {"batch_size": 1}, "step": {}}
    ).keys()
    for key, homes in HOMES.items():
        for home in homes:
            if home.kind == "anchor":
                assert home.at in known, key
            if home.kind == "option":
                assert home.at in ASIBOptions.model_fields, key
    assert set(ASIBOptions.model_fields) <= set(HOMES)
    assert set(ALIASES.values()) <= set(HOMES)


def _words_of_the_reference(text: str) -> set[str]:
    """Return the keys in the first column of the reference, braces and brackets written out."""
    table = text.split("### 6.2 Key reference")[1].partition("### 6.3")[0]
    words: set[str] = set()
    for line in table.splitlines()[3:]:
        column = re.sub(r"\([^)]*\)", " ", line.split("|")[1])  # without the types
        for item in re.findall(
            r"[\w.*]*(?:\{[\w,]+\}[\w.\[\]]*|[\w.*\[\]]+)", column.replace("student_freeze_schedule", "")
        ):
            words |= _written_out(item)
    return {word for word in words if "*" not in word and len(word) > 1}


def _written_out(item: str) -> set[str]:
    if brace := re.search(r"\{([\w,]+)\}", item):
        parts = [item[: brace.start()] + part + item[brace.end() :] for part in brace[1].split(",")]
        return set().union(*map(_written_out, parts))
    if bracket := re.search(r"\[(\w+)\]", item):
        bare = item[: bracket.start()]
        return {bare, bare + bracket[1]}
    return {item}


def test_the_reference_has_no_key_that_the_table_lacks(shared: Path) -> None:
    words = _words_of_the_reference((shared / "asib.md").read_text(encoding="utf-8"))
    assert len(words) > 130
    groups = ("", "dataset.", "model.student.", "teacher1.", "disagree_lambda_")
    missing = {word for word in words if not any(home_of(group + word) for group in groups)}
    assert missing == set()


def test_texts_that_mean_numbers_are_numbers() -> None:
    given = {
        "a": "5e-05",
        "b": ["4", "true", {"c": "OFF"}],
        "d": "4.",
        "e": "cosine",
        "f": " 0.5 ",
        "g": "1e3x",
        "h": "-2",
    }
    assert cast(given) == {
        "a": 5e-05, "b": [4, True, {"c": False}], "d": 4.0, "e": "cosine", "f": 0.5, "g": "1e3x", "h": -2,
    }  # fmt: skip
    assert isinstance(cast("4"), int)
    assert flat({"x": {"y": "1", "teacher_weights": {"n": ".5"}}}) == {"x.y": 1, "x.teacher_weights": {"n": 0.5}}


def test_the_method_file_wins_unless_the_experiment_says_otherwise() -> None:
    base = {"tau": 4.0, "dataset": {"batch_size": 64, "name": "cifar100"}}
    method = {"name": "m", "use_ib": True, "kd_target": "auto"}
    experiment = {"use_ib": False, "dataset": {"batch_size": "128"}}
    merged = resolve(experiment, method, base)
    assert merged == {
        "tau": 4.0, "dataset.batch_size": 128, "dataset.name": "cifar100", "use_ib": True, "kd_target": "auto",
        "method": "m",
    }  # fmt: skip
    rung = resolve({**experiment, "method_priority": "experiment"}, method, base)
    assert rung == {
        "tau": 4.0, "dataset.batch_size": 128, "dataset.name": "cifar100", "use_ib": False, "method": "m",
    }  # fmt: skip


def test_freezing_forced_off_wins_over_every_layer() -> None:
    method = {"use_partial_freeze": True, "student_freeze_level": 1, "teacher1_freeze_level_schedule": [1, 1]}
    merged = resolve({"force_ppf_off": "yes"}, method, {})
    assert merged["use_partial_freeze"] is False
    assert [merged[f"{who}_freeze_level"] for who in ("student", "teacher1", "teacher2")] == [-1, -1, -1]
    assert "teacher1_freeze_level_schedule" not in merged


def test_the_base_layer_is_translated_whole() -> None:
    made = translate(resolve({"kd_alpha": 0.7}))
    assert made.anchor["data.batch_size"] == 64
    assert (made.anchor["schedule.epochs"], made.options["student_epochs_per_stage"]) == (5, [5])
    assert (made.anchor["optimizer.lr"], made.anchor["step.precision"]) == (0.05, "bf16")
    ASIBOptions.model_validate(made.options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ce_alpha": 0.7, "kd_alpha": 0.4},
         "ce_alpha 0.7 + kd_alpha 0.4 is 1.1; the sum must be 1, or strict_mode false with auto_renorm"),
        ({"ce_alpah": 0.7}, "ce_alpah: unknown key. Did you mean 'ce_alpha'?"),
        ({"teacher_weights": [0.4, 0.6]},
         "teacher_weights: [0.4, 0.6]: of which teachers? Bind them to names: {name: weight, ..}"),
        ({"num_stages": 2, "student_epochs_per_stage": [3]},
         "student_epochs_per_stage: [3]: 1 stages, but num_stages is 2; make them agree"),
        ({"schedule.type": "poly"}, "schedule.type: poly: allowed: cosine, step, none"),
        ({"dataset.data_aug": 2}, "dataset.data_aug: 2: allowed: 0 (none), 1 (crop with reflected padding, mirror)"),
        ({"amp_dtype": "int8"}, "amp_dtype: int8: allowed: bfloat16, bf16, float16, fp16, float32"),
        ({"small_input": False},
         "small_input: False: not possible: up to 64 pixels every stem keeps the resolution; allowed: True"),
        ({"cl_mode": True}, "cl_mode: True: not possible: learning task by task is no distillation run and has no "
         "place in a preset; allowed: False"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_in_words(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemList) as caught:
        translate(config)
    assert caught.value.problems == (message,)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ProblemList) as caught:
        translate({"wrong": 1, "cl_mode": True, "ce_alpha": 1.0, "kd_alpha": 1.0})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("config", "anchor"),
    [
        ({"ce_alpha": 0.3}, {"loss.ce_alpha": 0.3, "loss.kd_alpha": 0.7}),
        ({"ce_alpha": 1.0, "kd_alpha": 1.0, "strict_mode": False, "auto_renorm": True},
         {"loss.ce_alpha": 1.0, "loss.kd_alpha": 1.0, "strict_mode": False, "auto_renorm": True}),
        ({"stages": 3, "student_epochs": 4}, {"schedule.epochs": 12}),
        ({"use_amp": False}, {"step.precision": "fp32"}),
        ({"amp_dtype": "float16"}, {"step.precision": "fp16"}),
        ({"dataset.data_aug": 0}, {"data.crop_padding": 0, "data.mirror": False, "data.padding_mode": "reflect"}),
        ({"optimizer": "adamw", "b_step_momentum": 0.9, "b_step_nesterov": True, "adam_beta1": 0.8},
         {"optimizer.name": "adamw", "optimizer.betas": [0.8, 0.999]}),
        ({"optimizer": "sgd", "b_step_nesterov": True}, {"optimizer.name": "sgd", "optimizer.nesterov": True}),
        ({"schedule.type": "none"}, {"schedule.name": "constant"}),
        ({"student_epochs_per_stage": [10, 10], "schedule.type": "step", "schedule.step_size": 6,
          "lr_warmup_epochs": 2, "gamma": 0.5},
         {"schedule.epochs": 20, "schedule.name": "step", "schedule.milestones": [8, 14], "schedule.gamma": 0.5,
          "schedule.warmup_epochs": 2}),
        ({"teacher1.name": "a", "teacher2.name": "b", "teacher_weights": [0.4, 0.6]},
         {"loss.teacher_weights": {"a": 0.4, "b": 0.6}}),
        ({"use_partial_freeze": True}, {"freezing.use_partial_freeze": True}),
        ({"use_safe_mode": True}, {"step.safe_retry": True}),
        ({"kd_target": "synergy"}, {}),
    ],
)  # fmt: skip
def test_what_the_protocol_says(config: dict[str, Any], anchor: dict[str, Any]) -> None:
    assert translate(config).anchor == anchor


def test_options_keep_their_names_and_other_methods_have_their_own() -> None:
    assert translate({"kd_target": "auto", "stages": 2, "student_epochs": 4}).options == {
        "kd_target": "auto", "num_stages": 2, "student_epochs_per_stage": [4, 4],
    }  # fmt: skip
    other = translate({"kd_target": "teacher", "dkd_beta": 2.0, "use_ib": False, "max_cw": 3.0}, "dkd")
    assert other.options == {"beta": 2.0}
    assert other.anchor == {"loss.kd_target": "teacher"}
    assert other.notes == ["max_cw: 3.0: an option of asib, without effect on method 'dkd'"]
    none = translate({"attention_weight": 0.5, "feature_weight": 1.0}, "reviewkd")
    assert none.options == {"weight": 1.0}
    assert none.notes == ["attention_weight: 0.5: has no counterpart in method 'reviewkd' here"]


def test_counterparts_are_options_that_exist(registry: Registry) -> None:
    from kdbench.config.loading import read_yaml
    from kdbench.methods.asib.translate import COUNTERPARTS

    for method, names in read_yaml(COUNTERPARTS).items():
        assert {name for name in names.values() if name} <= set(registry.methods[method].options_type.model_fields)


def test_dead_keys_are_told_where_they_say_something() -> None:
    assert translate({"hybrid_beta": 0.05, "kd_ens_alpha_max": None}).notes == []
    assert translate({"hybrid_beta": 0.0}).notes == [
        "hybrid_beta: 0.0: without effect: read nowhere in the training of the original"
    ]
    assert translate({"wandb_project": "x"}).notes[0].startswith("wandb_project: x: without effect: curves are")
