"""RunSpec: what its hash covers, where its run lives, and that it comes back from disk as it went."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from kdbench.spec import DatasetRef, DeclaredDeviation, PluginRef, RunSpec


def test_run_id_and_label(spec: RunSpec) -> None:
    assert spec.run_id == "fair_baseline_smoke-v1/digits/tiny/dkd/seed3"
    subset = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"per_class": 5})})
    assert subset.run_id == "fair_baseline_smoke-v1/digits-5pc/tiny/dkd/seed3"


def test_round_trip(spec: RunSpec) -> None:
    back = RunSpec.model_validate_json(spec.model_dump_json())
    assert back == spec
    assert back.config_sha256 == spec.config_sha256


@pytest.mark.parametrize(
    "update",
    [
        {"dataset": DatasetRef(name="npz:/elsewhere/x.npz", slug="x", fingerprint="f1")},
        {"plugin": PluginRef(distribution="kdbench", version="9.9", file_sha256="cd")},
        {"anchor": "description"},
    ],
)
def test_hash_leaves_out_where_and_by_whom(spec: RunSpec, update: dict[str, object]) -> None:
    if update == {"anchor": "description"}:
        update = {"anchor": spec.anchor.model_copy(update={"description": "other words"})}
    changed = spec.model_copy(update=update)
    assert changed != spec
    assert changed.config_sha256 == spec.config_sha256


@pytest.mark.parametrize(
    "update",
    [
        {"method": "kd"},
        {"method_version": 2},
        {"plugin": PluginRef(distribution="fork", version="0.1.0", file_sha256="ab")},
        {"options": {"alpha": 1.0, "beta": 2.5}},
        {"deviations": (DeclaredDeviation(key="loss.tau", value=2.0, reason="r"),)},
        {"pair": "other"},
        {"student": "resnet8"},
        {"teachers": ("resnet20",)},
        {"dataset": DatasetRef(name="digits", slug="digits", fingerprint="f2")},
        {"dataset": DatasetRef(name="digits", slug="digits", fingerprint="f1", per_class=5)},
        {"seed": 4},
    ],
)
def test_hash_covers_all_that_can_change_a_result(spec: RunSpec, update: dict[str, object]) -> None:
    assert spec.model_copy(update=update).config_sha256 != spec.config_sha256


@pytest.mark.parametrize(
    ("section", "update"),
    [("loss", {"tau": 3.0}), ("schedule", {"epochs": 3}), ("data", {"batch_size": 64}), ("step", {"accumulate": 2})],
)
def test_hash_covers_the_protocol(spec: RunSpec, section: str, update: dict[str, object]) -> None:
    inner = getattr(spec.anchor, section).model_copy(update=update)
    anchor = spec.anchor.model_copy(update={section: inner})
    assert spec.model_copy(update={"anchor": anchor}).config_sha256 != spec.config_sha256


def test_division(spec: RunSpec) -> None:
    assert spec.division == "closed"
    deviation = DeclaredDeviation(key="loss.tau", value=2.0, reason="r")
    assert spec.model_copy(update={"deviations": (deviation,)}).division == "open"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a b", "-x", "a\0", "a\n", "\uff41", "x" * 65]
)
@pytest.mark.parametrize("field", ["method", "pair"])
def test_names_are_names(spec: RunSpec, field: str, name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        RunSpec.model_validate({**spec.model_dump(), field: name})
    with pytest.raises(ValidationError, match="should match pattern"):
        DatasetRef(name="x", slug=name, fingerprint="f")


@pytest.mark.parametrize(
    "update",
    [{"seed": -1}, {"seed": 2**31}, {"seed": True}, {"schema_version": 2}, {"colour": "red"}, {"options": {"a": {1}}}],
)
def test_wrong_values(spec: RunSpec, update: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RunSpec.model_validate({**spec.model_dump(), **update})


def test_frozen(spec: RunSpec) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 5  # type: ignore[misc]


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks_are_refused(spec: RunSpec, number: float) -> None:
    """A damaged spec.json may have them; without this its hash could not be made."""
    tree = spec.model_dump(mode="json")
    with pytest.raises(ValidationError, match="finite"):
        RunSpec.model_validate({**tree, "options": {"beta": [number]}})
