"""Keys that came after the first published records leave every published hash alone, and count once they are used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from kdbench.config.schema import ADDED, Anchor, Section, canonical_sha256
from kdbench.spec import RunSpec

LEADERBOARDS = Path(__file__).parents[2] / "leaderboards"
RECORDS = sorted(LEADERBOARDS.rglob("record.json"))


class Inner(Section):
    old: float = 1.0
    new: Annotated[int, ADDED] = Field(3, ge=0)


class Outer(Section):
    inner: Inner = Inner()
    later: Annotated[Inner, ADDED] = Inner(old=2.0)
    words: str = ""


def test_the_hashed_tree_by_hand() -> None:
    assert Outer().hashed() == {"inner": {"old": 1.0}, "words": ""}
    assert Outer(inner=Inner(new=3)).hashed() == Outer().hashed()
    assert Outer(inner=Inner(old=5, new=4)).hashed()["inner"] == {"old": 5.0, "new": 4}
    # Of an added section that is used, only what differs and what was in it from its start.
    assert Outer(later=Inner(old=9)).hashed()["later"] == {"old": 9.0}
    assert Outer(later=Inner(new=0)).hashed()["later"] == {"old": 1.0, "new": 0}
    assert Outer().hashed({"words": True, "inner": {"old": True}}) == {"inner": {}}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: "/".join(path.parts[-4:-1]))
def test_published_hashes_hold(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    spec = RunSpec.model_validate_json(path.with_name("spec.json").read_text(encoding="utf-8"))
    assert spec.anchor.sha256 == record["anchor_sha256"]
    assert spec.config_sha256 == record["config_sha256"]


def test_there_are_published_records() -> None:
    assert len(RECORDS) >= 12


def _added(section: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _added(value, (*path, name))
        elif ADDED in field.metadata:
            yield (*path, name)


def _other(value: object, key: str) -> Any:
    if value is None:
        return "bf16" if key.endswith("precision") else 2.5
    if isinstance(value, str):
        return {"exact": "half", "sync": "local"}[value]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2 + 0.1  # type: ignore[operator]


def test_each_added_key_counts_when_it_is_used(spec: RunSpec) -> None:
    plain = spec.anchor
    hashes = {plain.sha256: ("nothing",)}
    for path in _added(plain):
        tree = plain.model_dump()
        node = tree
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = _other(node[path[-1]], path[-1])
        changed = Anchor.model_validate(tree)
        assert spec.model_copy(update={"anchor": changed}).config_sha256 != spec.config_sha256
        assert hashes.setdefault(changed.sha256, path) == path
    assert len(hashes) >= 10


def test_without_added_keys_the_hash_is_that_of_the_whole(spec: RunSpec) -> None:
    """The definition of before: the canonical JSON of everything but the description."""
    tree = spec.anchor.model_dump(mode="json", exclude={"description", "stopping", "pretrained"})
    for section, name in (path for path in _added(spec.anchor) if len(path) == 2 and path[0] != "stopping"):
        del tree[section][name]
    assert canonical_sha256(tree) == spec.anchor.sha256
