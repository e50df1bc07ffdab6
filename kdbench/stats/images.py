"""Uncertainty from the test images: of one accuracy, of one run against another, and of seeds and images together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.describing import Interval
from kdbench.stats.values import finite

NORMAL_95 = 1.96


@dataclass(frozen=True)
class Level:
    """Accuracy of one model in percent: uncertainty of a level, never of a difference on the same images.

    Args:
        accuracy: 100 k / N.
        interval: Wilson's interval, in percent.
        se: Binomial standard error sqrt(p (1 - p) / N), in points.
    """

    accuracy: float
    interval: Interval
    se: float


@dataclass(frozen=True)
class McNemar:
    """One run against another on the same images: a diagnostic of these two runs, never pooled over seeds.

    Args:
        first_only: Images that only the first has right, b.
        second_only: Images that only the second has right, c.
        p_exact: Two-sided binomial p; 1 without a disagreement.
        chi2: (b - c)^2 / (b + c), and its p with one degree of freedom; None without a disagreement.
        chi2_corrected: (|b - c| - 1)^2 / (b + c), and its p.
        difference: 100 (b - c) / N, in points; None without the number of images.
        se: Its standard error from the images, 100 sqrt(((b + c) / N - ((b - c) / N)^2) / N).
    """

    first_only: int
    second_only: int
    p_exact: float
    chi2: float | None
    p_chi2: float | None
    chi2_corrected: float | None
    p_corrected: float | None
    difference: float | None
    se: float | None


@dataclass(frozen=True)
class CrossedError:
    """Standard errors of a mean difference over crossed seeds and images, as shares; times 100 they are points.

    Args:
        mean: Mean of the n x N differences.
        ms_seed: Mean square of the seeds.
        ms_image: Mean square of the images.
        ms_residual: Mean square of the rest.
        se_seeds: Seeds random, images fixed: what the t test over seeds uses.
        se_images: Images random, seeds fixed.
        se_crossed: Both random: the claim about the distribution that the images come from.
    """

    mean: float
    ms_seed: float
    ms_image: float
    ms_residual: float
    se_seeds: float
    se_images: float
    se_crossed: float


def wilson(correct: int, images: int, confidence: float = 0.95) -> Level:
    """Return the accuracy of k correct out of N images with Wilson's interval, in percent.

    Raises:
        ValueError: If not 0 <= k <= N with N >= 1.

    Source:
        Section 6: at 10k images the standard error is .46 (70 %) to .22 (95 %) points.
    """
    from scipy.stats import norm

    if not 0 <= correct <= images or images < 1:
        raise ValueError(f"accuracy - {correct} of {images} images - 0 <= k <= N and N >= 1 - correct the counts")
    z = float(norm.ppf((1 + confidence) / 2))
    share = correct / images
    scale = 1 + z * z / images
    centre = (share + z * z / (2 * images)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    # At k = 0 and k = N an end is the border itself; rounding must not put it beyond.
    low = 0.0 if correct == 0 else 100 * max(0.0, centre - half)
    high = 100.0 if correct == images else 100 * min(1.0, centre + half)
    se = 100 * math.sqrt(share * (1 - share) / images)
    return Level(100 * share, Interval(low, high, confidence), se)


def mcnemar(first_only: int, second_only: int, images: int | None = None) -> McNemar:
    """Compare one run with another by the images on which exactly one of them is right.

    Raises:
        ValueError: If a count is negative, or they exceed the images.

    Source:
        Section 6: with 20 % disagreement at 10k images it needs about 1.25 points.
    """
    b, c = first_only, second_only
    if min(b, c) < 0 or (images is not None and (images < 1 or b + c > images)):
        raise ValueError(f"McNemar - counts {b} and {c} of {images} images - 0 <= b + c <= N - correct the counts")
    from scipy.stats import binom, chi2

    n = b + c
    p_exact = min(1.0, 2 * float(binom.cdf(min(b, c), n, 0.5))) if n else 1.0
    plain = (b - c) ** 2 / n if n else None
    corrected = max(abs(b - c) - 1, 0) ** 2 / n if n else None
    difference = 100 * (b - c) / images if images else None
    se = 100 * math.sqrt((n / images - ((b - c) / images) ** 2) / images) if images else None
    p_plain, p_corrected = (None if x is None else float(chi2.sf(x, 1)) for x in (plain, corrected))
    return McNemar(b, c, p_exact, plain, p_plain, corrected, p_corrected, difference, se)


def disagreement_se(disagreement: float, images: int) -> float:
    """Return the standard error in points of one run's difference to another, 100 sqrt(disagreement / N).

    Args:
        disagreement: Share of images on which exactly one run is right, in [0, 1].
        images: Number of test images.

    Source:
        Section 6.
    """
    if not 0 <= disagreement <= 1 or images < 1:
        raise ValueError(
            f"disagreement - {disagreement} of {images} images - a share in [0, 1] and N >= 1 - correct it"
        )
    return 100 * math.sqrt(disagreement / images)


def crossed_error(differences: ArrayLike) -> CrossedError:
    """Return the standard errors of a gain over n seeds and N images, from two-way mean squares.

    se_crossed = sqrt(max(MS_seed + MS_image - MS_rest, MS_seed, MS_image) / (n N)).

    Args:
        differences: (n, N): correct by A minus correct by B, each -1, 0 or 1.

    Raises:
        ValueError: For fewer than two seeds or images, or another shape.

    Source:
        Section 6, SE_test.
    """
    values = finite(differences, "differences")
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(
            f"crossed error - shape {values.shape} - (seeds, images) with two of each - store the answers of every run"
        )
    seeds, images = values.shape
    mean = float(values.mean())
    of_seeds, of_images = values.mean(axis=1) - mean, values.mean(axis=0) - mean
    ms_seed = images * float(np.square(of_seeds).sum()) / (seeds - 1)
    ms_image = seeds * float(np.square(of_images).sum()) / (images - 1)
    residual = values - mean - of_seeds[:, None] - of_images
    ms_rest = float(np.square(residual).sum()) / ((seeds - 1) * (images - 1))
    both = max(ms_seed + ms_image - ms_rest, ms_seed, ms_image)
    errors = (math.sqrt(square / (seeds * images)) for square in (ms_seed, ms_image, both))
    return CrossedError(mean, ms_seed, ms_image, ms_rest, *errors)


def crossed_error_over_pairs(errors: Mapping[str, Sequence[float]]) -> float:
    """Return the crossed standard error of a mean gain over pairs, in the unit of the errors.

    Pairs on one dataset are answered on the same images, so their errors are taken to be fully dependent and add
    up, which is the most that they can; those of different datasets are independent: with P pairs,
    sqrt(sum over datasets of (sum of se)^2) / P.

    Args:
        errors: Of each dataset, the crossed standard error of the gain on each of its pairs.

    Raises:
        ValueError: Without a pair.

    Source:
        Section 6, SE_test, for the mean of section 4 (A).
    """
    count = sum(map(len, errors.values()))
    if not count:
        raise ValueError("crossed error - no pair - at least one is needed - give the errors of the pairs")
    return math.sqrt(math.fsum(math.fsum(each) ** 2 for each in errors.values())) / count


def within_image_noise(gain: float, se_crossed: float) -> bool:
    """Return whether a gain that is significant over seeds is too small for these images: it gets a dagger.

    Args:
        gain: In the unit of the error, e.g. points.
        se_crossed: Its crossed standard error.

    Source:
        Section 6: |gain| < 1.96 se_crossed.
    """
    return abs(gain) < NORMAL_95 * se_crossed
