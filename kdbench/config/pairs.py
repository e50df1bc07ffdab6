"""Pair files: a student, its teachers and the dataset they are usually trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field, model_validator

from kdbench.config.loading import read_yaml, validate
from kdbench.config.schema import Name, Section
from kdbench.errors import ProblemList, unknown
from kdbench.hooks import hookimpl
from kdbench.types import Pair

_HERE = Path(__file__).parent


class Names(Protocol):
    """Registered names: some, such as a library's models, are known only when they are asked for."""

    def __contains__(self, name: str, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...


class PairFile(Section):
    """The keys of a pair file."""

    name: Name
    student: str = Field(description="backbone of the student")
    teachers: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="backbones of the teachers")
    dataset: str = Field(description="dataset used unless the command names another")
    description: str = ""
    overlap_pct: Annotated[int, Field(strict=True, ge=0, le=100)] | None = Field(
        None, description="percentage of the classes that the two teachers have in common; the others are divided"
    )
    overlap_seed: Annotated[int, Field(strict=True, ge=0)] = Field(42, description="seed of the division")

    @model_validator(mode="after")
    def _two_share(self) -> PairFile:
        if self.overlap_pct is None and "overlap_seed" in self.model_fields_set:
            raise ValueError("overlap_seed: has no effect without overlap_pct; add overlap_pct, or remove it")
        if self.overlap_pct is not None and len(self.teachers) != 2:
            raise ValueError(
                f"overlap_pct: divides the classes between exactly two teachers, but there are {len(self.teachers)}; "
                "name two, or remove overlap_pct"
            )
        return self


def load_pair(path: Path, backbones: Names, datasets: Names) -> Pair:
    """Return the pair a file describes.

    Raises:
        ConfigError: If the file is wrong or names a backbone or dataset that is not registered.
    """
    file = validate(PairFile, read_yaml(path), str(path))
    named = [("student", file.student), *((f"teachers[{i}]", name) for i, name in enumerate(file.teachers))]
    problems = [
        unknown("backbone", name, backbones, where=f"{path}: {key}") for key, name in named if name not in backbones
    ]
    if file.dataset.partition(":")[0] not in datasets:
        problems.append(unknown("dataset", file.dataset, datasets, where=f"{path}: dataset"))
    if problems:
        raise ProblemList(problems)
    return Pair(
        file.name, file.student, file.teachers, file.dataset, file.description, file.overlap_pct, file.overlap_seed
    )


@hookimpl
def kdbench_pairs() -> list[Path]:
    """Register the pair files that ship with kdbench."""
    return sorted((_HERE / "pairs").glob("*.yaml"))


@hookimpl
def kdbench_anchors() -> list[Path]:
    """Register the anchor files that ship with kdbench."""
    return sorted((_HERE / "anchors").glob("*.yaml"))
