"""Files of claims: accuracies others have published, with their source and the epoch they are of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from kdbench.config.loading import read_yaml, validate
from kdbench.config.schema import Name, Section
from kdbench.errors import ConfigError

EpochRule = Literal["last", "best-test", "unknown"]
Percent = Annotated[float, Field(gt=0, le=100)]
_FOLDER = Path(__file__).parent / "claims"


class ClaimSource(Section):
    """Where the accuracies are printed."""

    title: str
    url: str
    code: str = Field("", description="repository@commit of the code behind them")


class ClaimedPair(Section):
    """What a source claims of one pair."""

    pair: Name
    teacher: Percent | None = Field(None, description="accuracy of the source's teacher; null = it does not say")
    accuracies: Annotated[dict[Name, Percent], Field(min_length=1)] = Field(description="accuracy by method, %")
    note: str = Field("", description="what a reader must know of this pair's values")


class ClaimFile(Section):
    """The keys of a file of claims: one source, one protocol."""

    name: Name
    source: ClaimSource
    anchor: Name = Field(description="anchor that states the protocol of the source")
    anchor_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="hash of that anchor")
    epochs: int = Field(ge=1, description="epochs of the student")
    dataset: Name = Field(description="dataset, all of its training images")
    epoch_rule: EpochRule = Field(description="the epoch whose accuracy is printed; best-test: the best on test images")
    runs: Annotated[int, Field(ge=1)] | None = Field(None, description="runs averaged; null = it does not say")
    rows: Annotated[tuple[ClaimedPair, ...], Field(min_length=1)]

    @field_validator("rows")
    @classmethod
    def _once_each(cls, rows: tuple[ClaimedPair, ...]) -> tuple[ClaimedPair, ...]:
        pairs = [row.pair for row in rows]
        if twice := sorted({pair for pair in pairs if pairs.count(pair) > 1}):
            raise ValueError(f"pair '{twice[0]}' appears twice; write its accuracies in one row")
        return rows

    def of_pair(self, pair: str) -> ClaimedPair | None:
        """Return what it claims of a pair, or None."""
        return next((row for row in self.rows if row.pair == pair), None)


def load_claims(path: Path) -> ClaimFile:
    """Return the claims of a file.

    Raises:
        ConfigError: If the file is wrong, with all that is wrong, or not named like its source.
    """
    file = validate(ClaimFile, read_yaml(path), str(path))
    if file.name != path.stem:
        raise ConfigError(f"{path}: name: is '{file.name}', must be '{path.stem}' like the file")
    return file


@cache
def shipped_claims() -> tuple[ClaimFile, ...]:
    """Return the claims that ship with kdbench, by name."""
    return tuple(load_claims(path) for path in sorted(_FOLDER.glob("*.yaml")))


def claims_of(pair: str, files: Iterable[ClaimFile]) -> list[tuple[ClaimFile, ClaimedPair]]:
    """Return every source that claims anything of a pair, and what."""
    return [(file, row) for file in files if (row := file.of_pair(pair))]
