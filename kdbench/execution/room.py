"""How many runs one worker trains at a time, by the memory that there is for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.cohort_memory import Estimator
from kdbench.execution.grouping import Cohort, cohorts_of
from kdbench.memory import spoken_size
from kdbench.spec import RunSpec

FREE_SHARE = 0.7  # of free memory: on a CPU eight runs took up to 1.4 of their estimate, and others want to live, too


@dataclass(frozen=True)
class Room:
    """Memory for the workers, and the cohorts that fit it.

    Args:
        estimator: Estimates the memory of cohorts.
        budget: Bytes for each worker.
        origin: Where the budget comes from, in words.
        jobs: Workers at a time.
        lanes: Runs per worker that the user asks for; None = as many as fit.
    """

    estimator: Estimator
    budget: int
    origin: str
    jobs: int = 1
    lanes: int | None = None

    def cohorts(self, specs: Sequence[RunSpec]) -> list[Cohort]:
        """Return which runs are trained together."""
        return cohorts_of(specs, self.jobs, self._most)

    def described(self, specs: Sequence[RunSpec]) -> str:
        """Return in one line how many runs go together, and what memory they are estimated to need."""
        cohorts = self.cohorts(specs)
        count, need = max(map(len, cohorts)), max(map(self.estimator.cohort, cohorts))
        over = "; more than the budget: use fewer --jobs, or fewer --lanes" if need > self.budget else ""
        return (
            f"lanes: up to {count} run{'s' if count > 1 else ''} per worker, estimated {spoken_size(need)} of a budget "
            f"of {spoken_size(self.budget)} ({self.origin}){over}"
        )

    def _most(self, group: Cohort) -> int:
        return self.lanes or self.estimator.most_lanes(group, self.budget)
