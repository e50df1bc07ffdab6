"""JSON files that know the checksum of their own content: a flipped bit in a number leaves a valid number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

SEAL = "seal"


def sealed(model: BaseModel) -> str:
    """Return a model as the text of a JSON file with a seal, the sha256 of everything else in it."""
    tree = json.loads(model.model_dump_json())
    return json.dumps({**tree, SEAL: _digest(tree)}, indent=2, ensure_ascii=False) + "\n"


def unsealed(tree: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return what a file says without its seal, and whether that fits; a file without one is older, and fits.

    Args:
        tree: The parsed file.
    """
    said = {key: value for key, value in tree.items() if key != SEAL}
    return said, SEAL not in tree or tree[SEAL] == _digest(said)


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
