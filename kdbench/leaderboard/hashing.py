"""The hashes of thousands of specs: what they have in common is hashed once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

from kdbench.config.schema import Anchor, canonical_json
from kdbench.spec import RunSpec

_KEY = "seed"


@lru_cache(maxsize=1024)
def hash_of_anchor(text: str) -> str:
    """Return the hash of an anchor by its JSON, which thousands of runs share and takes a hundredth of the time."""
    return Anchor.model_validate_json(text).sha256


@dataclass(frozen=True)
class SpecOfRow:
    """The spec of runs that differ in their seed alone.

    Args:
        text: All of it but the seed, as JSON.
        spec: That of any of them.
    """

    text: str
    spec: RunSpec = field(compare=False)


def hash_of_row(row: SpecOfRow, seed: int) -> str:
    """Return the ``config_sha256`` of the run with that seed."""
    before, after = _around_the_seed(row)
    return hashlib.sha256(f'{before},"{_KEY}":{seed},{after}'.encode()).hexdigest()


@lru_cache(maxsize=1024)
def _around_the_seed(row: SpecOfRow) -> tuple[str, str]:
    """Return the canonical JSON of the configuration before and after its seed; its keys are sorted."""
    tree = row.spec.configuration()
    before = canonical_json({key: value for key, value in tree.items() if key < _KEY})
    after = canonical_json({key: value for key, value in tree.items() if key > _KEY})
    return before[:-1], after[1:]
