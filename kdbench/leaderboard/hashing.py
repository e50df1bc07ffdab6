"""The hashes of thousands of specs: what they have in common is put into words, and hashed, once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from kdbench.config.schema import Anchor, canonical_json
from kdbench.spec import RUNTIME_VARIABLE, RunSpec

_ANCHOR, _SEED = "anchor", "seed"


@dataclass(frozen=True)
class SpecOfRow:
    """The spec of runs that differ in their seed alone.

    Args:
        text: All of it but the seed, as JSON.
        spec: That of any of them.
    """

    text: str
    spec: RunSpec = field(compare=False)


@dataclass(frozen=True)
class _Common:
    """What the hashes of a row's runs have in common.

    Args:
        before: The canonical JSON of the configuration before its seed; its keys are sorted.
        after: The same after its seed.
        anchor_sha256: Hash of the anchor.
    """

    before: str
    after: str
    anchor_sha256: str


def hash_of_row(row: SpecOfRow, seed: int) -> str:
    """Return the ``config_sha256`` of the run with that seed."""
    common = _common(row)
    return _sha256(f'{common.before},"{_SEED}":{seed},{common.after}')


def hash_of_anchor(row: SpecOfRow) -> str:
    """Return the hash of the anchor of a row's runs."""
    return _common(row).anchor_sha256


@lru_cache(maxsize=1024)
def _common(row: SpecOfRow) -> _Common:
    anchor = _canonical_anchor(row.spec.anchor.model_dump_json())
    tree = row.spec.hashed({**RUNTIME_VARIABLE, _ANCHOR: True, _SEED: True})
    parts = (
        _inner({key: value for key, value in tree.items() if key < _ANCHOR}),
        f'"{_ANCHOR}":{anchor}',
        _inner({key: value for key, value in tree.items() if _ANCHOR < key < _SEED}),
    )
    after = _inner({key: value for key, value in tree.items() if key > _SEED})
    return _Common("{" + ",".join(filter(None, parts)), after + "}", _sha256(anchor))


def _inner(tree: dict[str, Any]) -> str:
    """Return the canonical JSON of a tree without its braces."""
    return canonical_json(tree)[1:-1]


@lru_cache(maxsize=256)
def _canonical_anchor(text: str) -> str:
    """Return what the hash of an anchor covers, by its JSON: thousands of rows share it."""
    return canonical_json(Anchor.model_validate_json(text).hashed({"description": True}))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
