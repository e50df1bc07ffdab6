"""What a leaderboard holds: frozen values, all outputs are views of them. Accuracies in percent, gains in points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from kdbench.leaderboard.claim_files import ClaimSource, EpochRule
from kdbench.records import Record, TeacherUsed
from kdbench.spec import DatasetRef, DeclaredDeviation, RunSpec
from kdbench.stats import Interval, PairedDifference, Summary

CellStatus = Literal["ok", "diverged", "infra_failed", "missing", "skipped"]
STATUSES: tuple[CellStatus, ...] = ("ok", "diverged", "infra_failed", "missing", "skipped")
Division = Literal["closed", "open"]
Curve = tuple[tuple[int, float], ...]  # the student's epochs, from 1, each with its test accuracy in percent
Verdict = Literal["within", "above", "below", "cannot tell"]


@dataclass(frozen=True)
class Cell:
    """One planned run.

    Args:
        spec: What was planned.
        record: What came of it; None = not finished.
        path: Where it was read, for messages.
        curve: Test accuracy over the student's epochs, for plots; empty where nobody asked for it.
    """

    spec: RunSpec
    record: Record | None = None
    path: str = ""
    curve: Curve = ()

    @property
    def status(self) -> CellStatus:
        """The record's status; a planned run without a record is ``missing``."""
        return "missing" if self.record is None else self.record.status

    @property
    def label(self) -> str:
        """How messages name this run."""
        return self.path or self.spec.run_id


@dataclass(frozen=True)
class Outcome:
    """What one seed contributes to its row.

    Args:
        accuracy: Last-epoch test accuracy; None unless ok.
        score: What enters the mean: the accuracy, chance (100 / classes) if diverged, None otherwise.
        reason: Why a run is not ok, as its record says.
        train_seconds: Time in training steps; None unless ok.
        deployed_parameters: Scalars of the deployed module; None unless ok.
        agreement: Agreement with the teacher in percent; None unless ok, or without a teacher.
        curve: Test accuracy over the student's epochs; empty where nobody asked for it.
    """

    seed: int
    status: CellStatus
    accuracy: float | None
    score: float | None
    reason: str
    run_id: str
    config_sha256: str
    train_seconds: float | None = None
    deployed_parameters: int | None = None
    agreement: float | None = None
    curve: Curve = ()


@dataclass(frozen=True)
class Gain:
    """A row's paired difference to one baseline.

    Args:
        baseline: Method name.
        difference: Row minus baseline over the common seeds; None for the baseline's own row.
        show_n: Whether the number of common seeds differs from what either row planned.
    """

    baseline: str
    difference: PairedDifference | None
    show_n: bool = False


@dataclass(frozen=True)
class Row:
    """One method of a table, or one of its variants.

    Args:
        method: ``method``, or ``method@variant``.
        outcomes: One per planned seed, by seed.
        scored: Mean and std of all scores, diverged runs at chance (intent to treat); None without a score.
        ok_only: The same of the ok runs alone.
        gains: One per baseline of the table.
        train_seconds: Mean over the ok runs.
        deployed_parameters: Distinct values over the ok runs, ascending; normally one.
        agreement: Mean over the ok runs of the agreement with the teacher in percent.
        safe_seeds: Seeds whose runs had their safe retry, ascending.
        distilled: Whether the method learns from teachers.
    """

    method: str
    method_version: int
    plugins: tuple[str, ...]
    options: dict[str, JsonValue]
    deviations: tuple[DeclaredDeviation, ...]
    outcomes: tuple[Outcome, ...]
    scored: Summary | None
    ok_only: Summary | None
    gains: tuple[Gain, ...]
    train_seconds: float | None
    deployed_parameters: tuple[int, ...]
    agreement: float | None
    safe_seeds: tuple[int, ...] = ()
    distilled: bool = True

    def count(self, status: CellStatus) -> int:
        """Return how many planned runs have a status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def planned(self) -> int:
        """Number of planned runs."""
        return len(self.outcomes)

    @property
    def unstable(self) -> bool:
        """Whether any run diverged."""
        return self.count("diverged") > 0

    @property
    def scores(self) -> dict[int, float]:
        """Score of each seed that has one."""
        return {outcome.seed: outcome.score for outcome in self.outcomes if outcome.score is not None}


@dataclass(frozen=True)
class Claim:
    """A published accuracy of a row's method, with ours beside it; it is never ranked, tested or averaged.

    Args:
        method: Of the row.
        by: Short name of the source.
        epoch_rule: Which epoch the source's accuracy is of.
        runs: Runs the source averaged; None = it does not say.
        accuracy: What it claims, in percent.
        teacher: Accuracy of its teacher in percent; None = it does not say.
        note: What a reader must know of this value.
        n: Number of our scores.
        mean: Their mean in percent; None without a score.
        interval: 95 % t interval of our mean, or None.
        verdict: Where our interval lies: the claim is ``within`` it, or all of it is ``above`` or ``below`` the claim.
        reason: Why there is no verdict; empty if there is one.
    """

    method: str
    by: str
    source: ClaimSource
    epoch_rule: EpochRule
    runs: int | None
    accuracy: float
    teacher: float | None
    note: str
    n: int
    mean: float | None
    interval: Interval | None
    verdict: Verdict
    reason: str

    @property
    def difference(self) -> float | None:
        """Ours minus theirs in percentage points; None without a score."""
        return None if self.mean is None else self.mean - self.accuracy


@dataclass(frozen=True)
class Claims:
    """What has been published of a table's rows.

    Args:
        shown: In the order of the rows.
        withheld: Why claims that there are for its pair and methods are not shown.
    """

    shown: tuple[Claim, ...] = ()
    withheld: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.shown or self.withheld)


@dataclass(frozen=True)
class Table:
    """The rows of one anchor, dataset, pair and division, with where they come from.

    Args:
        epochs: Epochs of the anchor; the last one is scored.
        baselines: Baselines whose gain is shown, in column order.
        absent_baselines: Baselines that were not among the closed runs.
        teachers: Distinct teachers of the distilled rows.
        environment: Distinct values of each property of the environments.
        claims: What others have published of its rows.
    """

    anchor: str
    anchor_sha256: str
    epochs: int
    dataset: DatasetRef
    pair: str
    student_backbone: str
    teachers: tuple[TeacherUsed, ...]
    division: Division
    baselines: tuple[str, ...]
    absent_baselines: tuple[str, ...]
    rows: tuple[Row, ...]
    environment: dict[str, tuple[str, ...]]
    claims: Claims = Claims()

    @property
    def title(self) -> str:
        """What tells the table from the others of its board."""
        return f"{self.dataset.label}, {self.pair}, {self.anchor}, {self.division} division"

    @property
    def seeds(self) -> tuple[int, ...]:
        """All planned seeds, ascending."""
        return tuple(sorted({outcome.seed for row in self.rows for outcome in row.outcomes}))


@dataclass(frozen=True)
class MeanRanks:
    """Ranks of methods over pairs.

    Args:
        pairs: Number of pairs, each with every method.
        ranks: Each method with its mean rank; 1 is best.
        together: Sets of methods that the test does not tell apart, none of them within another.
        test: What was tested, and at which level.
    """

    pairs: int
    ranks: tuple[tuple[str, float], ...]
    together: tuple[tuple[str, ...], ...]
    test: str


@dataclass(frozen=True)
class Leaderboard:
    """All tables, by anchor, dataset, pair and division.

    Args:
        tables: At least one.
        ranks: Ranks over all pairs, where somebody computed them.
    """

    tables: tuple[Table, ...]
    ranks: MeanRanks | None = None
