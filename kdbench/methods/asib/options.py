"""Every key of an ASIB configuration that is the method's own; those of the protocol live in the anchor.

Names are those of ASIB's configuration files. ``keys.py`` says where each of the other keys has its home.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdbench.method import Options

Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=-1, le=2)]
Levels = tuple[Level, ...] | None
Width = Annotated[int, Field(ge=1)] | None


class StageOptions(Options):
    """Stages: each is an A-Step, if there is one, and a B-Step."""

    num_stages: int = Field(1, ge=1, le=100, description="number of stages")
    student_epochs_per_stage: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="student epochs of each stage, together the anchor's; null = the anchor's in equal parts"
    )
    teacher_adapt_epochs: int = Field(0, ge=0, description="epochs of the A-Step in each stage; 0 = no A-Step")
    ib_epochs_per_stage: int = Field(
        0, ge=0, description="with use_ib: epochs of the A-Step where teacher_adapt_epochs is 0"
    )
    cccp_nt: int = Field(1, ge=1, description="with use_cccp: A-Steps in each stage, one after the other")
    cccp_ns: int = Field(1, ge=1, description="with use_cccp: B-Steps in each stage; they share the student's epochs")
    restore_best_student: bool = Field(
        True, description="go on after a stage from its best validation epoch; the last stage ends with its last epoch"
    )


class BridgeOptions(Options):
    """The information-bottleneck bridge (IB_MBM) and the synergy head."""

    use_ib: bool = Field(False, description="whether the bottleneck's KL and its certainty weights are used")
    ib_beta: float = Field(0.0, ge=0, description="weight of the bottleneck's KL")
    ib_beta_warmup_epochs: int = Field(0, ge=0, description="epochs in which ib_beta rises from 0")
    beta_schedule: tuple[float, float, float] | None = Field(
        None, description="[first, last, epochs] of the KL's weight, linear; replaces ib_beta"
    )
    ib_mbm_query_dim: int = Field(0, ge=0, description="width of the student's feature; 0 = as it is")
    ib_mbm_out_dim: int = Field(512, ge=1, description="width of the bottleneck; ib_mbm_n_head divides it")
    ib_mbm_n_head: int = Field(1, ge=1, description="attention heads of the bridge")
    ib_mbm_feature_norm: Literal["l2", "layernorm", "none"] = Field(
        "l2", description="normalisation of query and tokens before the bridge"
    )
    ib_mbm_logvar_clip: float = Field(10.0, gt=0, description="largest size of the bottleneck's log variance")
    ib_mbm_min_std: float = Field(1e-4, ge=0, description="smallest standard deviation of the bottleneck")
    ib_mbm_dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the synergy head unless it has its own")
    ib_mbm_reg_lambda: float = Field(0.0, ge=0, description="weight of the mean square of bridge and head")
    ib_mbm_lr_factor: float = Field(1.0, gt=0, description="factor on the learning rate of bridge and head")
    synergy_head_dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="dropout of the synergy head; null = ib_mbm_dropout"
    )
    synergy_temp_learnable: bool = Field(False, description="whether the synergy logits have a learnt temperature")
    synergy_temp_init: float = Field(0.0, description="first value of its logarithm")
    synergy_temp_reg: float = Field(0.0, ge=0, description="weight of the square of its logarithm")


class AdapterOptions(Options):
    """Distillation adapters behind the embeddings, and what is trained of the teachers."""

    use_distillation_adapter: bool = Field(False, description="whether embeddings pass an adapter each")
    distill_out_dim: Width = Field(None, description="width of the adapters; null = 256 for small students, else D/4")
    distill_hidden_dim: Width = Field(None, description="width of their hidden layers; null = max(D/2, out)")
    auto_align_ib_out_dim: bool = Field(True, description="with adapters: whether ib_mbm_out_dim is distill_out_dim")
    feat_kd_key: Literal["distill_feat", "feat_2d"] = Field(
        "feat_2d", description="the student's query: behind its adapter, or its embedding"
    )
    train_distill_adapter_only: bool = Field(False, description="whether the A-Step trains the teachers' adapters")
    use_teacher_finetuning: bool = Field(False, description="whether the A-Step trains copies of the teachers as well")


class AStepOptions(Options):
    """The A-Step: optimizer, terms, evaluation."""

    a_step_lr: float = Field(1e-4, ge=0, description="learning rate of the A-Step; 0 = teacher_lr")
    a_step_weight_decay: float = Field(1e-4, ge=0, description="weight decay where teacher_weight_decay is 0")
    teacher_lr: float = Field(0.0, ge=0, description="learning rate of teachers and their adapters; 0 = a_step_lr")
    teacher_weight_decay: float = Field(0.0, ge=0, description="weight decay of the A-Step; 0 = a_step_weight_decay")
    a_step_amp_enabled: bool = Field(True, description="whether the A-Step has the anchor's precision, else fp32")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="first beta of the A-Step's Adam")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="second beta of the A-Step's Adam")
    synergy_only_epochs: int = Field(0, ge=0, description="first epochs of each A-Step with cross-entropy alone")
    synergy_ce_alpha: float = Field(0.6, ge=0, description="weight of the cross-entropy after them")
    teacher_adapt_alpha_kd: Annotated[float, Field(ge=0)] | None = Field(
        None, description="weight of the student's KL in the A-Step; null = the anchor's kd_alpha"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the A-Step's cross-entropy")
    feat_kd_alpha_in_a: Annotated[float, Field(ge=0)] | None = Field(
        None, description="weight of the feature term in the A-Step; null = feat_kd_alpha"
    )
    reg_lambda: float = Field(0.0, ge=0, description="weight of the mean square of the trained teacher parameters")
    disable_loss_clamp_in_a: bool = Field(True, description="whether the loss clamp leaves the A-Step alone")
    a_step_loss_guard: bool = Field(
        True, description="undo an A-Step epoch whose loss is worse than the best one's, and halve the rate"
    )
    teacher_eval_every: int = Field(2, ge=1, description="A-Step epochs between two measurements of the synergy")
    synergy_ema_alpha: Share = Field(0.8, description="share of the old value in the synergy accuracy's average")
    synergy_eval_use_all_teachers: bool = Field(False, description="without effect: all teachers are always used")


class BStepOptions(Options):
    """The B-Step: KD target, gate, weights, feature term, clamp."""

    kd_target: Literal["teacher", "avg", "weighted_conf", "synergy", "auto"] = Field(
        "avg", description="what the student is taught: one teacher, all, the synergy, or the nearer for each sample"
    )
    tau_gate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="temperature of weighted_conf's confidences; null = that of the epoch"
    )
    tau_syn: Annotated[float, Field(gt=0)] | None = Field(
        None, description="temperature of the synergy target; null = that of the epoch"
    )
    kd_ens_alpha: Share = Field(0.0, description="share of the teachers' mean in the synergy target while it warms up")
    teacher_adapt_kd_warmup: int = Field(0, ge=0, description="B-Step epochs of that mixture")
    kd_warmup_epochs: int = Field(0, ge=0, description="B-Step epochs in which the KD weight rises")
    kd_max_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest KD as a multiple of CE after the warm-up; null = no limit"
    )
    enable_kd_after_syn_acc: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="synergy accuracy that opens the gate, above 1.5 in percent; null = 0.8 in B, 0 in A"
    )
    synergy_logit_scale: float = Field(1.0, gt=0, description="factor on the synergy logits")
    use_mu_for_kd: bool = Field(True, description="whether the B-Step takes the bottleneck's mean, else a sample")
    min_cw: float = Field(0.1, ge=0, description="least certainty weight")
    max_cw: float = Field(1.5, gt=0, description="largest certainty weight of the B-Step")
    feat_kd_alpha: float = Field(0.0, ge=0, description="weight of the feature term")
    feat_kd_clip: Annotated[float, Field(gt=0)] | None = Field(None, description="largest size of its target's entries")
    feat_kd_huber_beta: Annotated[float, Field(gt=0)] | None = Field(
        None, description="where the feature term turns from square to linear; null = square"
    )
    use_loss_clamp: bool = Field(False, description="whether the loss is limited")
    loss_clamp_mode: Literal["soft", "hard"] = Field("soft", description="scale the loss down, or cut it off")
    loss_clamp_max: float = Field(100.0, gt=0, description="largest loss")
    loss_clamp_warmup_epochs: int = Field(0, ge=0, description="epochs before the limit holds")
    use_cccp: bool = Field(False, description="whether the CCCP term is used (see the next two)")
    use_cccp_in_a: bool = Field(False, description="CCCP in the A-Step")
    use_cccp_in_b: bool = Field(False, description="CCCP in the B-Step")
    cccp_alpha: float = Field(0.0, ge=0, description="weight of the CCCP term")
    cccp_ramp_epochs: int = Field(0, ge=0, description="A-Step epochs in which it rises")
    use_disagree_weight: bool = Field(False, description="whether samples are weighted by the teachers' disagreement")
    disagree_mode: Literal["pred", "both_wrong", "any_wrong", "none"] = Field(
        "pred", description="when teachers disagree: predictions differ, all wrong, one wrong, never"
    )
    disagree_lambda_high: float = Field(1.0, ge=0, description="weight of samples on which they do")
    disagree_lambda_low: float = Field(1.0, ge=0, description="weight of the others")
    disagreement_max_samples: int = Field(2000, ge=1, description="validation images of the disagreement rate")
    disagreement_max_batches: int = Field(10, ge=1, description="validation batches of the disagreement rate")


class FreezingOptions(Options):
    """Partial freeze policy (PPF): levels -1 all, 0 head, 1 and 2 the last blocks; a schedule has one per stage."""

    use_partial_freeze: bool = Field(False, description="whether levels hold; the anchor must allow it")
    student_freeze_level: Level = Field(-1, description="level of the student")
    student_freeze_level_schedule: Levels = Field(None, description="its level in each stage")
    student_freeze_bn: bool = Field(False, description="whether its BatchNorm is frozen at level >= 0")
    teacher1_freeze_level: Level = Field(-1, description="level of the first teacher where it is fine-tuned")
    teacher1_freeze_level_schedule: Levels = Field(None, description="its level in each stage")
    teacher1_freeze_bn: bool = Field(True, description="whether its BatchNorm is frozen at level >= 0")
    teacher2_freeze_level: Level = Field(-1, description="level of the further teachers where they are fine-tuned")
    teacher2_freeze_level_schedule: Levels = Field(None, description="their level in each stage")
    teacher2_freeze_bn: bool = Field(True, description="whether their BatchNorm is frozen at level >= 0")
    force_ppf_off: bool = Field(False, description="no freezing, whatever the other keys say")
    allow_random_frozen: bool = Field(False, description="freeze layers of a student that still has random weights")


class DeadOptions(Options):
    """Keys that the original reads nowhere in its training: accepted, without effect, and warned of."""

    use_vib_synergy_head: bool = Field(False, description="without effect")
    hybrid_beta: float = Field(0.05, description="without effect")
    kd_ens_alpha_max: Share | None = Field(None, description="without effect")
    b_step_lr: float = Field(0.1, description="without effect: the anchor has the student's learning rate")
    b_step_weight_decay: float = Field(3e-4, description="without effect: the anchor has its weight decay")


class ASIBOptions(
    DeadOptions, FreezingOptions, BStepOptions, AStepOptions, AdapterOptions, BridgeOptions, StageOptions
):
    """All of them, with the defaults of ASIB's ``base.yaml`` and code."""


DEAD = ("synergy_eval_use_all_teachers", *DeadOptions.model_fields)
