"""The values ASIB is run with unless something else is asked for: its method file, and what its notes advise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kdbench.config.loading import read_yaml
from kdbench.methods.asib.options import FreezingOptions

METHOD_FILE = Path(__file__).parent / "presets" / "asib_A.yaml"
# What the specification advises where the method file is silent, and what makes the file fit any two teachers.
ADVICE = MappingProxyType(
    {
        "ib_mbm_logvar_clip": 4.0,
        "ib_mbm_min_std": 0.01,
        "ib_mbm_lr_factor": 2.0,
        "distill_out_dim": 256,  # what small students get by themselves
        "feat_kd_key": "distill_feat",  # else the feature term needs a bridge as wide as the student's embedding
        "feat_kd_alpha_in_a": 0.0,  # in the A-Step it would pull the bridge to a student that knows nothing yet
        "train_distill_adapter_only": True,  # tokens of random adapters are no fair start
    }
)


@cache
def recommended() -> Mapping[str, Any]:
    """Return option values: the method file's without freezing, which anchors lock, and the advice."""
    options: dict[str, Any] = read_yaml(METHOD_FILE)["options"]
    kept = {name: value for name, value in options.items() if name not in FreezingOptions.model_fields}
    return MappingProxyType({**kept, **ADVICE})
