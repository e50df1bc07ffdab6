"""How the layers of an ASIB configuration become one: what wins over what, and texts that mean numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.config.loading import read_yaml
from kdbench.methods.asib.config import cast

Tree = dict[str, Any]
BASE = Path(__file__).with_name("base.yaml")
# Keys whose value is a mapping of its own, not a group of keys.
_WHOLE = {"teacher_weights"}
_LEVELS = ("student", "teacher1", "teacher2")


def resolve(experiment: Mapping[str, Any], method: Mapping[str, Any] | None = None, base: Tree | None = None) -> Tree:
    """Return one flat configuration of dotted keys.

    Args:
        experiment: Keys of an experiment file; they win over the base.
        method: Keys of the method file; promoted to the top they win over both, unless the experiment says
            ``method_priority: experiment``: then they are left out, all but the method's name.
        base: Keys of the lowest layer; None = those of ``base.yaml``.

    Source:
        ASIB's layers: "method first". A ladder's files came under the default method's values by it, which the recorded
        configurations did not have; ``method_priority`` says so in the file.
    """
    own = dict(method or {})
    if experiment.get("method_priority", "method") == "experiment":
        own = {key: value for key, value in own.items() if key == "name"}
    name = own.pop("name", None)
    merged = flat(read_yaml(BASE) if base is None else base) | flat(experiment) | flat(own)
    merged.pop("method_priority", None)
    if name is not None:
        merged["method"] = name
    return _without_freezing(merged) if merged.get("force_ppf_off") else merged


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Return a tree's leaves under dotted keys, each text that means a number or a truth value as that."""
    leaves: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and key not in _WHOLE:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = cast(value)
    return leaves


def _without_freezing(config: Tree) -> Tree:
    levels = {f"{who}_freeze_level": -1 for who in _LEVELS}
    kept = {key: value for key, value in config.items() if not key.endswith("_freeze_level_schedule")}
    return {**kept, "use_partial_freeze": False, **levels}
