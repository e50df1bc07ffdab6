"""JSON files that know the checksum of their own content: a flipped bit in a number leaves a valid number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

SEAL = "seal"
_in_order = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def sealed(model: BaseModel) -> str:
    """Return a model as the text of a JSON file with a seal, the sha256 of everything else in it."""
    tree = json.loads(model.model_dump_json())
    return json.dumps({**tree, SEAL: _digest(tree)}, indent=2, ensure_ascii=False) + "\n"


def unsealed(tree: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return what a file says without its seal, and whether that fits; a file without one is older, and fits.

    Args:
        tree: The parsed file.
    """
    if SEAL not in tree:
        return tree, True
    said = dict(tree)
    seal = said.pop(SEAL)
    return said, seal == _digest(said)


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(_in_order(tree).encode()).hexdigest()
