"""What several topics need: options from a file's hyper-parameters, bridge and head with a file's weights."""

from __future__ import annotations

from typing import Any

from topic import Topic
from torch import Tensor

from kdbench.method import LossProtocol, Mix
from kdbench.methods.asib.bridge import Bridge
from kdbench.methods.asib.head import SynergyHead
from kdbench.methods.asib.options import ASIBOptions

# The documents' defaults are those of the options but for these, which the files leave out where they mean them.
DEFAULTS = {"ib_mbm_feature_norm": "none"}


def options(hp: dict[str, Any], **more: Any) -> ASIBOptions:
    """Return the options among hyper-parameters; keys of the protocol and of single modules are left out."""
    own = {key: value for key, value in hp.items() if key in ASIBOptions.model_fields}
    return ASIBOptions(**{**DEFAULTS, **own, **more})


def protocol(hp: dict[str, Any], tau: float) -> LossProtocol:
    """Return the loss settings among hyper-parameters."""
    weights = hp.get("teacher_weights")
    return LossProtocol(
        ce_weight=hp.get("ce_alpha", 0.3),
        kd_weight=hp.get("kd_alpha", 0.0),
        tau=tau,
        base_tau=hp.get("tau") or 4.0,
        label_smoothing=hp.get("ce_label_smoothing", 0.0),
        teacher_index=hp.get("kd_teacher_index", 0),
        teacher_weights=None if weights is None else tuple(weights),
    )


def mix(hp: dict[str, Any], partners: Tensor) -> Mix | None:
    """Return how the batch is mixed."""
    return None if hp.get("mix_mode", "none") == "none" else Mix(partners, hp["lam"])


def bridge(case: Topic, prefix: str, hp: dict[str, Any]) -> tuple[Bridge, dict[str, Tensor]]:
    """Return the bridge with the file's weights, and its parameters under their stored names."""
    stored = {name: value for name, value in case.weights(prefix).items() if not name.startswith(("head.", "adapter"))}
    stored = {name: value for name, value in stored.items() if prefix or not name.startswith("flat.")}
    (width, q_dim), kv_dim = stored["q_proj.weight"].shape, stored["kv_proj.weight"].shape[1]
    clip, least = hp.get("logvar_clip", 10.0), hp.get("min_std", 1e-4)
    module = Bridge(q_dim, kv_dim, width, hp.get("n_head", 1), clip, least)
    return module, case.load(module, prefix, set(stored))


def head(case: Topic, dropout: float = 0.0) -> tuple[SynergyHead, dict[str, Tensor]]:
    """Return the synergy head with the file's weights; it has a temperature where the file has one."""
    stored = case.weights("head.")
    classes, width = stored["fc.weight"].shape
    module = SynergyHead(width, classes, dropout, learnable="log_temp" in stored)
    return module, case.load(module, "head.", set(stored))
