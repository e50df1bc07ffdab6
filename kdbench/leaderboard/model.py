"""What a leaderboard holds: frozen values, all outputs are views of them. Accuracies in percent, gains in points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

from pydantic import JsonValue

from kdbench.leaderboard.claim_files import ClaimSource, EpochRule
from kdbench.leaderboard.hashing import SpecOfRow, hash_of_anchor, hash_of_row
from kdbench.leaderboard.judgement import Judgement, Overview
from kdbench.records import PARTS, Cost, Record, TeacherUsed
from kdbench.spec import DatasetRef, DeclaredDeviation, RunSpec
from kdbench.stats import Interval, PairedDifference, Summary, within_image_noise

CellStatus = Literal["ok", "diverged", "infra_failed", "missing", "skipped"]
STATUSES: tuple[CellStatus, ...] = ("ok", "diverged", "infra_failed", "missing", "skipped")
Division = Literal["closed", "open"]
Curve = tuple[tuple[int, float], ...]  # the student's epochs, from 1, each with its test accuracy in percent
Verdict = Literal["within", "above", "below", "cannot tell"]


Part = Callable[[Cost], float]
# Further costs of a row, by their names in records and outputs.
SPENT: dict[str, Part] = {
    "student_forwards": lambda cost: cost.student_forwards,
    "teacher_forwards": lambda cost: cost.teacher_forwards,
    "peak_memory_bytes": lambda cost: cost.peak_memory_bytes,
    "deployed_flops": lambda cost: cost.deployed_flops,
}


@dataclass(frozen=True)
class Cell:
    """One planned run.

    Args:
        spec: What was planned.
        record: What came of it; None = not finished.
        path: Where it was read, for messages.
        curve: Test accuracy over the student's epochs, for plots; empty where nobody asked for it.
        conflicts: Names of the files with other results of the run, which contradict the record.
    """

    spec: RunSpec
    record: Record | None = None
    path: str = ""
    curve: Curve = ()
    conflicts: tuple[str, ...] = ()

    @cached_property
    def config_sha256(self) -> str:
        """The spec's hash, once; runs that differ in their seed alone share what takes a while."""
        return hash_of_row(self.of_row, self.spec.seed)

    @cached_property
    def anchor_sha256(self) -> str:
        """The hash of the spec's anchor, once."""
        return hash_of_anchor(self.of_row)

    @cached_property
    def of_row(self) -> SpecOfRow:
        """What the spec has in common with the other seeds of its row."""
        return SpecOfRow(self.spec.model_dump_json(exclude={"seed"}), self.spec)

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
        cost: What the run cost; None unless ok.
        conflicts: Names of the files with other results of the run, which contradict this one.
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
    cost: Cost | None = None
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gain:
    """A row's paired difference to one baseline, and what may be claimed of it.

    Args:
        baseline: Method name.
        difference: Row minus baseline over the common seeds; None for the baseline's own row.
        show_n: Whether the number of common seeds differs from what either row planned.
        p_holm: Two-sided p of the paired t test after Holm over the table's comparisons with this baseline, or None.
        p_pooled: The same from the pooled error of the whole table; None where the table has none to give.
        star: Whether p_holm is below alpha and may be claimed.
        unclaimed: Why nothing may be claimed whatever p is; empty if something may.
        se_test: Crossed standard error over seeds and test images, in points; None where answers are not known.
        equal: Whether the gain is shown to be practically none (two one-sided tests), where that may be claimed.
    """

    baseline: str
    difference: PairedDifference | None
    show_n: bool = False
    p_holm: float | None = None
    p_pooled: float | None = None
    star: bool = False
    unclaimed: str = ""
    se_test: float | None = None
    equal: bool = False

    @property
    def dagger(self) -> bool:
        """Whether a gain that is significant over seeds is within the noise of the test images."""
        mean = self.difference.mean if self.difference else None
        return self.star and mean is not None and self.se_test is not None and within_image_noise(mean, self.se_test)


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
        bold: Whether the row is in the set of those not shown worse than the best.
        ties: Letters of its tie groups; empty where nothing may be said.
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
    bold: bool = False
    ties: str = ""

    def mean_cost(self, part: Part) -> float | None:
        """Return the mean of one part of the costs over the ok runs; None without one."""
        known = [part(outcome.cost) for outcome in self.outcomes if outcome.cost]
        return fmean(known) if known else None

    @property
    def parts(self) -> dict[str, float]:
        """Mean seconds of each part of the time over the ok runs; empty where a run did not meter them."""
        metered = [outcome.cost.parts for outcome in self.outcomes if outcome.cost]
        known = metered if all(metered) else []
        return {part: fmean(each[part] for each in known) for part in PARTS if known}

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

    @cached_property
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
        judgement: What the table's numbers support.
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
    judgement: Judgement = Judgement()

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
        ranks: Ranks over all pairs, where all tables are of one protocol and some methods have every pair.
        overviews: One per protocol with more than one pair.
    """

    tables: tuple[Table, ...]
    ranks: MeanRanks | None = None
    overviews: tuple[Overview, ...] = ()
