"""The A-Step's loss guard: an epoch that got worse is undone and the learning rates are halved (2.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """The best epoch so far among those whose loss has the same terms.

    Args:
        best: Its mean loss.
        terms: Names of its terms; losses of other terms are not compared with it.
    """

    best: float = math.inf
    terms: frozenset[str] = frozenset()

    def worse(self, loss: float, terms: frozenset[str]) -> bool:
        """Return whether an epoch's mean loss exceeds the best one's of the same terms; one that is NaN does, too."""
        return terms == self.terms and not loss <= self.best

    def after(self, loss: float, terms: frozenset[str]) -> Guard:
        """Return the guard after an epoch: other terms make a new reference, a worse epoch leaves the old one."""
        if terms != self.terms:
            return Guard(loss if math.isfinite(loss) else math.inf, terms)
        return Guard(min(loss, self.best) if math.isfinite(loss) else self.best, terms)
