"""Planning: power of the paired t test, the smallest gain it can find, and the seeds that a gain needs."""

from __future__ import annotations

import math
from functools import lru_cache

POWER = 0.8
MOST_SEEDS = 1_000_000


def power(gain: float, std: float, n: int, alpha: float = 0.05, family: int = 1) -> float:
    """Return the probability that the two-sided paired t test finds a true gain.

    Noncentral t with n - 1 degrees of freedom and noncentrality |gain| / std sqrt(n).

    Args:
        gain: True mean difference, in points.
        std: Standard deviation of the per-seed differences, > 0, in points.
        n: Seeds, >= 2.
        alpha: Level of the family, in (0, 1).
        family: Comparisons corrected for; the first step of Holm tests at alpha / family.

    Source:
        Section 1.2.
    """
    _check(std=std, alpha=alpha, family=family)
    if n < 2:
        raise ValueError(f"power - {n} seeds - two are the least - plan more seeds")
    from scipy.stats import nct, t

    df = n - 1
    bound = float(t.isf(alpha / family / 2, df))
    shift = abs(gain) / std * math.sqrt(n)
    near = float(nct.sf(bound, df, shift))
    if math.isnan(near):  # so far out that the distribution is all on one side of the bound
        near = float(shift > bound)
    far = float(nct.cdf(-bound, df, shift))
    return near + (0.0 if math.isnan(far) else far)


@lru_cache(maxsize=1024)
def standardized_mde(n: int, alpha: float = 0.05, family: int = 1, target: float = POWER) -> float:
    """Return the smallest detectable gain in units of the std of the differences.

    Source:
        Section 1.2, second table.
    """
    _check_target(target)
    from scipy.optimize import brentq

    high = 1.0
    while power(high, 1.0, n, alpha, family) < target:
        high *= 2
    return float(brentq(lambda gain: power(gain, 1.0, n, alpha, family) - target, 0.0, high, xtol=1e-10))


def minimum_detectable(n: int, std: float, alpha: float = 0.05, family: int = 1, target: float = POWER) -> float:
    """Return the smallest true gain in points that the test finds with the target power.

    Args:
        n: Seeds, >= 2.
        std: Standard deviation of the per-seed differences, > 0, in points.
        alpha: Level of the family.
        family: Comparisons corrected for.
        target: Power, in (alpha, 1).

    Source:
        Section 1.2: print it beside every set that is not one method.
    """
    _check(std=std, alpha=alpha, family=family)
    return std * standardized_mde(n, alpha, family, target)


def seeds_needed(gain: float, std: float, alpha: float = 0.05, family: int = 1, target: float = POWER) -> int:
    """Return the fewest seeds, at least two, with which the test finds a gain with the target power.

    Raises:
        ValueError: For a gain of zero, which no number of seeds finds, or one that a million seeds do not find.

    Source:
        Section 1.2, first table.
    """
    _check_target(target)
    if not gain:
        raise ValueError("seeds needed - gain 0 - no number of seeds finds it - give the smallest gain of interest")
    high = 2
    while power(gain, std, high, alpha, family) < target:
        high *= 2
        if high > MOST_SEEDS:
            raise ValueError(f"seeds needed - gain {gain} at std {std} - more than {MOST_SEEDS} - give a larger gain")
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(gain, std, middle, alpha, family) >= target else (middle, high)
    return high


def _check(*, std: float, alpha: float, family: int) -> None:
    if not std > 0 or not 0 < alpha < 1 or family < 1:
        raise ValueError(
            f"power - std {std}, alpha {alpha}, family {family} - std > 0, 0 < alpha < 1, family >= 1 - correct it"
        )


def _check_target(target: float) -> None:
    if not 0 < target < 1:
        raise ValueError(f"power - target {target} - must lie in (0, 1) - .8 is usual")
