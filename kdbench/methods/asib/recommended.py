"""The values ASIB is run with unless something else is asked for: its method file, and what its notes advise."""

from __future__ import annotations

from collections.abc import Mapping


def recommended() -> Mapping[str, object]:
    """Return option values."""
    return {
        "use_ib": True,
        "ib_beta": 5e-5,
        "ib_beta_warmup_epochs": 5,
        "ib_mbm_logvar_clip": 4.0,
        "ib_mbm_min_std": 0.01,
        "ib_mbm_lr_factor": 2.0,
        "kd_target": "auto",
        "kd_ens_alpha": 0.25,
        "synergy_logit_scale": 0.7,
        "tau_syn": 6.0,
        "teacher_adapt_epochs": 6,
        "synergy_only_epochs": 2,
        "enable_kd_after_syn_acc": 0.8,
        "teacher_adapt_kd_warmup": 4,
        "kd_warmup_epochs": 5,
        "kd_max_ratio": 1.75,
        "use_distillation_adapter": True,
        "distill_out_dim": 256,  # what small students get by themselves; so any two teachers fit
        "feat_kd_key": "distill_feat",
        "feat_kd_alpha": 0.05,
        "feat_kd_alpha_in_a": 0.0,
        "train_distill_adapter_only": True,
        "min_cw": 0.5,
        "max_cw": 1.5,
    }
