"""A configuration as plain data: casting, and the lock that notices when it changes (6.1)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

_UNLOCKED = frozenset({
    "config_sha256", "locked", "use_amp", "teacher1_ckpt", "teacher2_ckpt", "ib_mbm_out_dim", "ib_mbm_query_dim",
    "auto_align_ib_out_dim", "_locked_config", "csv_filename", "total_time_sec", "final_student_acc",
    "last_synergy_acc", "last_synergy_acc_pct", "kd_gate_on", "optimizer", "hydra_method", "cur_stage",
    "effective_teacher_lr", "effective_teacher_wd", "num_classes",
})  # fmt: skip
_UNLOCKED_STARTS = ("student_ep", "teacher_ep", "epoch", "csv_")


def cast(value: Any) -> Any:
    """Return a value with the texts in it that are numbers or truth values turned into them, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): cast(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [cast(inner) for inner in value]
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else value


def sanitise(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cast configuration without what may change during a run: named keys and starts of the top level."""
    kept = {key: value for key, value in config.items() if key not in _UNLOCKED}
    cast_one: dict[str, Any] = cast({k: v for k, v in kept.items() if not k.startswith(_UNLOCKED_STARTS)})
    return cast_one


def locked_sha256(config: Mapping[str, Any]) -> str:
    """Return the sha256 of a configuration's locked part: JSON with sorted keys, default separators, ASCII.

    Source:
        Specification of the ASIB benchmark, 6.1, Lock.
    """
    return hashlib.sha256(json.dumps(sanitise(config), sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Changes:
    """Dotted keys of the locked part that differ; as a text, what a message says of them."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in found.items() if keys) or "no changes"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Return which locked keys came, went or have another value."""
    old, new = _flat(sanitise(before)), _flat(sanitise(after))
    differ = tuple(key for key in sorted(old.keys() & new.keys()) if _text(old[key]) != _text(new[key]))
    return Changes(tuple(sorted(new.keys() - old.keys())), tuple(sorted(old.keys() - new.keys())), differ)


def _text(value: Any) -> str:
    """Return what the hash sees: 1, 1.0 and true are three values."""
    return json.dumps(value, sort_keys=True)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        # An empty group is a value of its own: it would leave no key at all.
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat
