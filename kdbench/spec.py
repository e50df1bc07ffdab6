"""RunSpec: everything one training depends on, frozen, hashed, and readable from disk without any plugin."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import from_json, to_json

from kdbench.config.schema import ADDED, Anchor, Name, Section, canonical_sha256

LARGEST_SEED = 2**31 - 1
# Where and by whom a run is made, not what it computes: these may differ between two equal runs.
RUNTIME_VARIABLE: dict[str, Any] = {
    "dataset": {"name": True, "slug": True},
    "teacher_datasets": {"name": True, "slug": True},
    "plugin": {"version": True, "file_sha256": True},
    "teacher_names": True,
}


VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VariantName = Annotated[str, Field(pattern=rf"^({VARIANT.pattern})?$")]


class PluginRef(Section):
    """Which installed package a method came from.

    Args:
        distribution: Distribution name, ``kdbench`` for built-ins.
        version: Its version.
        file_sha256: Hash of the file that defines it; of a package, of all its Python files.
    """

    distribution: str
    version: str
    file_sha256: str = ""


class DatasetRef(Section):
    """Which images a run sees.

    Args:
        name: As the user wrote it, e.g. ``npz:/data/cifar100.npz``.
        slug: As it stands in paths.
        fingerprint: Identifies the content.
        per_class: Training images kept per class; None = all.
    """

    name: str
    slug: Name
    fingerprint: str
    per_class: int | None = Field(None, ge=1)

    @property
    def label(self) -> str:
        """The slug, with the subset size where there is one: a path component."""
        return self.slug if self.per_class is None else f"{self.slug}-{self.per_class}pc"


class DeclaredDeviation(Section):
    """A deviation as it stands in spec and record."""

    key: str
    value: JsonValue
    reason: str


def _shared_anchor(value: object) -> object:
    """Return the one anchor that equal trees stand for: a store has thousands of specs of a few protocols."""
    try:
        return _anchor(to_json(value)) if isinstance(value, dict) else value
    except (TypeError, ValueError):
        return value  # the validation that follows says what is wrong with it


@lru_cache(maxsize=256)
def _anchor(text: bytes) -> Anchor:
    return Anchor.model_validate(from_json(text))


class RunSpec(Section):
    """One cell of a plan: one student, trained once."""

    model_config = ConfigDict(allow_inf_nan=False)  # JSON has no such numbers, and a hash is made of its JSON

    schema_version: Literal[1] = 1
    method: Name
    method_version: int
    variant: Annotated[VariantName, ADDED] = ""  # which of several configurations of the method; "" = the only one
    plugin: PluginRef
    options: dict[str, JsonValue]
    deviations: tuple[DeclaredDeviation, ...] = ()
    pair: Name
    student: str
    teachers: tuple[str, ...]
    teacher_names: tuple[str, ...] = ()  # artefacts asked for by name; empty = the anchor's own recipe
    # What each teacher is trained on; empty = the run's own dataset.
    teacher_datasets: Annotated[tuple[DatasetRef, ...], ADDED] = ()
    dataset: DatasetRef
    anchor: Annotated[Anchor, BeforeValidator(_shared_anchor)]
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]

    @property
    def division(self) -> Literal["closed", "open"]:
        """``open`` if the method changes anything the anchor says."""
        return "open" if self.deviations else "closed"

    @property
    def row(self) -> str:
        """``method``, or ``method@variant``: whose row of a table the run belongs to."""
        return f"{self.method}@{self.variant}" if self.variant else self.method

    @property
    def run_id(self) -> str:
        """Where the run lives in its store: anchor/dataset/pair/method[@variant]/seed."""
        return f"{self.anchor.label}/{self.dataset.label}/{self.pair}/{self.row}/seed{self.seed}"

    @property
    def taught_on(self) -> tuple[DatasetRef, ...]:
        """The dataset of each teacher, in their order."""
        return self.teacher_datasets or (self.dataset,) * len(self.teachers)

    def configuration(self) -> dict[str, Any]:
        """Return a copy of all that can change the result, as it is hashed."""
        return self.hashed({**RUNTIME_VARIABLE, "anchor": {"description": True}})

    @property
    def config_sha256(self) -> str:
        """Hash of all that can change the result; the teacher's weights are hashed in the record."""
        return canonical_sha256(self.configuration())
