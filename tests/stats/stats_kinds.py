"""One adapter per kind of reference case: from a case's inputs and options to what the package answers.

Where a case lists what a library would wrongly say, the library itself is asked.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from kdbench import stats

Case = Mapping[str, Any]
Adapter = Callable[[Case, Case, Case], dict[str, Any]]
KINDS: dict[str, Adapter] = {}
BOOTSTRAPS = 200_000


def kind(function: Adapter) -> Adapter:
    KINDS[function.__name__.rstrip("_")] = function
    return function


def differences(inputs: Case) -> np.ndarray:
    if "d" in inputs:
        return np.asarray(inputs["d"], dtype=float)
    return np.asarray(inputs["a"], dtype=float) - np.asarray(inputs["b"], dtype=float)


def digits(options: Case) -> int:
    return int(options.get("round_diffs_to", 6))


def ends(interval: stats.Interval | None) -> dict[str, float | None]:
    return {"low": interval.low if interval else None, "high": interval.high if interval else None}


def limits(interval: stats.Interval | None) -> dict[str, float | None]:
    return {f"ci_{name}": value for name, value in ends(interval).items()}


def by_seed(scores: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    return {name: dict(enumerate(values)) for name, values in scores.items()}


def square(names: Any, matrix: np.ndarray) -> dict[str, dict[str, float]]:
    return {a: {b: float(matrix[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}


def confidence(options: Case) -> float:
    return float(options.get("confidence", 0.95))


def alpha(inputs: Case, options: Case) -> float:
    return float(options.get("alpha", inputs.get("alpha", 0.05)))


@kind
def describe(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.describe(inputs["x"], confidence(options))
    return {
        "n": x.n,
        "mean": x.mean,
        "std": x.std,
        "sem": x.sem,
        "median": x.median,
        "min": x.low,
        "max": x.high,
        **limits(x.interval),
    }


@kind
def paired_t(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    d = differences(inputs).tolist()
    x = stats.paired_t(d, confidence(options), options.get("alternative", "two-sided"))
    return {
        "n": x.n,
        "mean_diff": x.mean,
        "std_diff": x.std,
        "t": x.t,
        "df": x.df,
        "p": x.p,
        "dz": x.dz,
        **limits(x.interval),
    }


@kind
def degenerate(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    from scipy.stats import ttest_rel

    d = differences(inputs)
    x = stats.paired_t(d.tolist())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        library = ttest_rel(d, np.zeros_like(d))
        identical = ttest_rel(d, d)
    reason = f"{x.reason} of paired differences" if x.reason == "zero variance" else x.reason
    return {
        "scipy_raw_t": float(library.statistic),
        "scipy_raw_p": float(library.pvalue),
        "identical_arms_p": float(identical.pvalue),
        "report_p": x.p,
        "report_t": x.t,
        "report_ci": x.interval,
        "mean_diff": x.mean,
        "reason": reason,
    }


@kind
def wilcoxon(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    from scipy.stats import wilcoxon as library

    d = np.round(differences(inputs), digits(options))
    x = stats.wilcoxon(d, options.get("zero_method", "wilcox"), digits(options))
    found = {
        "statistic": x.statistic,
        "p_two_sided": x.p_two_sided,
        "p_greater": x.p_greater,
        "p_less": stats.wilcoxon(-d, options.get("zero_method", "wilcox"), digits(options)).p_greater,
        "floor": x.floor,
    }
    if "p_asymptotic_wrong" in expected:
        found["p_asymptotic_wrong"] = float(library(d, method="asymptotic").pvalue)
    return found


@kind
def wilcoxon_ties(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    found = wilcoxon(inputs, options, expected)
    for zeros in ("wilcox", "pratt", "zsplit"):
        found[zeros] = wilcoxon(inputs, {**options, "zero_method": zeros}, {})
    return found


@kind
def signflip(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.sign_flip(differences(inputs), digits(options))
    less = stats.sign_flip(-differences(inputs), digits(options)).p_greater
    return {
        "mean": x.statistic,
        "statistic": x.statistic,
        "p_two_sided": x.p_two_sided,
        "p_greater": x.p_greater,
        "p_less": less,
        "floor": x.floor,
    }


@kind
def signflip_stratified(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.stratified_sign_flip(inputs["d_by_pair"], digits(options))
    turned = [[-value for value in part] for part in inputs["d_by_pair"]]
    return {
        "p_less": stats.stratified_sign_flip(turned, digits(options)).p_greater,
        "mean": x.statistic,
        "statistic": x.statistic,
        "p_two_sided": x.p_two_sided,
        "p_greater": x.p_greater,
        "floor": x.floor,
    }


@kind
def stratified_t(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.stratified_t(inputs["d_by_pair"], confidence(options))
    return {
        "estimate": x.estimate,
        "se": x.se,
        "t": x.t,
        "df": x.df,
        "p_two_sided": x.p,
        **limits(x.interval),
    }


@kind
def min_p(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    floors = [stats.attainable(n, alpha(inputs, options)) for n in inputs["n"]]
    return {
        "table": [
            {
                "n": x.n,
                "one_sided": x.one_sided,
                "two_sided": x.two_sided,
                "max_bonferroni_family_two_sided": x.family_two_sided,
                "max_bonferroni_family_one_sided": x.family_one_sided,
            }
            for x in floors
        ]
    }


@kind
def multiplicity(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    found = {}
    for correction in ("holm", "hochberg", "bonferroni", "bh"):
        adjusted = stats.adjust(inputs["p"], correction)
        rejected = [p is not None and p <= alpha(inputs, options) for p in adjusted]
        found[correction] = {"p_adj": list(adjusted), "reject": rejected}
    return found


@kind
def bootstrap_ci(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    d, level = differences(inputs).tolist(), confidence(options)
    resamples = max(BOOTSTRAPS, int(options.get("n_resamples_at_least", 0)))
    x = stats.bootstrap_mean(d, level, resamples)
    return {
        "percentile": ends(x.percentile),
        "bca": ends(x.bca),
        "basic": ends(x.basic),
        "t": ends(stats.t_interval(d, level)),
    }


@kind
def friedman(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    scores = inputs["scores"]
    x = stats.friedman(scores)
    found = {
        "chi2_tie_corrected": x.chi2,
        "p_chi2": x.p_chi2,
        "kendall_W": x.kendall_w,
        "iman_davenport_F": x.f,
        "F_df": list(x.f_df),
        "p_F": x.p_f,
        "mean_ranks": dict(zip(x.methods, x.mean_ranks, strict=True)),
        "nemenyi_p": square(x.methods, stats.nemenyi_p(scores)),
    }
    for key in expected:
        if level := re.fullmatch(r"cd_(\d+)", key):
            found[key] = stats.critical_difference(len(scores), x.pairs, int(level[1]) / 10 ** len(level[1]))
    return found


@kind
def nemenyi_cd(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in expected:
        if level := re.fullmatch(r"(q|cd)(\d+)", key):
            a = int(level[2]) / 10 ** len(level[2])
            quantiles = {str(k): stats.nemenyi_q(k, a) for k in inputs["k"]}
            differ = {str(n): {str(k): stats.critical_difference(k, n, a) for k in inputs["k"]} for n in inputs["N"]}
            found[key] = quantiles if level[1] == "q" else differ
    return found


@kind
def blocked_tukey(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    level, scores = alpha(inputs, options), by_seed(inputs["scores"])
    x = stats.blocked_anova(stats.complete_blocks(scores))
    chosen = stats.bold_set(scores, alpha=level, least=2)
    hsd = stats.honest_difference(x, level)
    close = [name for name, mean in zip(x.methods, x.means, strict=True) if mean >= x.means.max() - hsd]
    # The case asks for Tukey's rule alone, the guard is an option of ours.
    bold = list(chosen.bold) if options.get("variance_guard") else close
    return {
        "means": dict(zip(x.methods, x.means.tolist(), strict=True)),
        "mse_resid": x.mse,
        "df_resid": x.df,
        "F": x.f,
        "p_F": x.p,
        "q_crit": stats.studentized_range(len(x.methods), x.df, level),
        "hsd": hsd,
        "pairwise_p": square(x.methods, stats.tukey_p(x)),
        "best": chosen.best,
        "bold": sorted(bold, key=expected["bold"].index) if set(bold) == set(expected.get("bold", ())) else bold,
        "guard_ratio": x.guard_ratio,
    }


@kind
def iqm(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    table = np.asarray(inputs["scores_runs_by_pairs"], dtype=float)
    # As in the library of the case: mean and median over pairs of the mean over runs.
    means = table.mean(axis=0)
    return {"iqm": stats.iqm(table), "mean": float(means.mean()), "median": float(np.median(means))}


@kind
def prob_improvement(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    return {"pi": stats.unpaired_improvement(inputs["x"], inputs["y"])}


@kind
def stratified_bootstrap(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    table = np.asarray(inputs["scores_runs_by_pairs"], dtype=float)
    resamples = max(BOOTSTRAPS, int(options.get("n_resamples_at_least", 0)))
    x = stats.stratified_bootstrap(list(table.T), confidence(options), resamples)
    return {"mean": ends(x.mean), "iqm": ends(x.iqm)}


@kind
def bayes_signed_rank(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    d = np.asarray(inputs["y"], dtype=float) - np.asarray(inputs["x"], dtype=float)
    draws = max(BOOTSTRAPS, int(options.get("nsamples", 0)))
    rope = inputs.get("rope", options.get("rope", 0.0))
    # The library of the case compares floats as they come, unless the case says otherwise.
    x = stats.bayes_signed_rank(d, rope, draws, digits=options.get("round_diffs_to"))
    return {"p_left": x.below, "p_rope": x.inside, "p_right": x.above}


@kind
def bayes_t(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.t_posterior(differences(inputs).tolist(), inputs.get("rope", options.get("rope", 0.0)))
    return {"p_below": x.below, "p_rope": x.inside, "p_above": x.above}


@kind
def aso(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    level = options.get("confidence_level", confidence(options))
    x = stats.stochastic_order(inputs["a"], inputs["b"], level)
    return {"violation_ratio": x.violation_ratio, "eps_min": x.eps_min}


@kind
def mcnemar(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    table = inputs.get("table_rows_A_right_wrong_cols_B_right_wrong")
    b, c = (table[0][1], table[1][0]) if table else (inputs["b"], inputs["c"])
    images = inputs.get("n_images", sum(map(sum, table)) if table else None)
    x = stats.mcnemar(b, c, images)
    return {
        "p_exact": x.p_exact,
        "chi2_cc": x.chi2_corrected,
        "p_cc": x.p_corrected,
        "chi2": x.chi2,
        "p_chi2": x.p_chi2,
        "diff_percent": x.difference,
        "se_diff_percent": x.se,
    }


@kind
def wilson(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.wilson(inputs["k"], inputs["N"], confidence(options))
    return {
        "acc_percent": x.accuracy,
        "low_percent": x.interval.low,
        "high_percent": x.interval.high,
        "se_percent": x.se,
    }


@kind
def crossed_se(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.crossed_error(inputs["D_seeds_by_images"])
    return {
        "mean": x.mean,
        "MS_seed": x.ms_seed,
        "MS_image": x.ms_image,
        "MS_resid": x.ms_residual,
        "se_seeds_only": x.se_seeds,
        "se_images_only": x.se_images,
        "se_crossed": x.se_crossed,
    }


def planned(text: str, level: float) -> dict[str, float]:
    """Read "delta=0.3 sd=0.2 n=5 alpha=0.005556"; a level that is a step of Holm's is printed with six decimals."""
    given = {name: float(value) for name, value in re.findall(r"(\w+)=(\S+)", text)}
    printed = re.search(r"alpha=(\S+)", text)
    if printed is None:
        return {**given, "alpha": level}
    family = max(1, round(level / given["alpha"]))
    decimals = len(printed[1].partition(".")[2])
    return {**given, "alpha": level / family if f"{level / family:.{decimals}f}" == printed[1] else given["alpha"]}


@kind
def power(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    level = alpha(inputs, options)
    found: dict[str, Any] = {"power": {}}
    for text in inputs["cases"]:
        given = planned(text, level)
        found["power"][text] = stats.power(given["delta"], given["sd"], int(given["n"]), given["alpha"])
    for key in expected:
        if target := re.fullmatch(r"n_for_(\d+)", key):
            # Which gains are asked for is part of the question.
            asked = {text: planned(text, level) for text in expected[key]}
            found[key] = {
                text: stats.seeds_needed(x["delta"], x["sd"], x["alpha"], target=int(target[1]) / 100)
                for text, x in asked.items()
            }
    return found


@kind
def borda(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.borda(inputs["scores"])
    columns = {"mean_rank": x.mean_rank, "borda": x.points, "place": x.place}
    return {name: dict(zip(x.methods, values, strict=True)) for name, values in columns.items()}


@kind
def effect_size(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    a, b = inputs["a"], inputs["b"]
    delta = stats.cliffs_delta(a, b)
    found = {"hedges_g": stats.hedges_g(a, b), "cliffs_delta": delta, "cliffs_delta_abs": abs(delta)}
    if len(a) == len(b):
        found["dz"] = stats.paired_t(differences(inputs).tolist()).dz
    return found


@kind
def welch_t(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.welch_t(inputs["a"], inputs["b"])
    return {"mean_diff": x.difference, "t": x.t, "df": x.df, "p_two_sided": x.p}


@kind
def pairwise_wilcoxon_holm(inputs: Case, options: Case, expected: Case) -> dict[str, Any]:
    x = stats.pairwise_wilcoxon(inputs["scores"], options.get("zero_method", "wilcox"), digits(options))
    assert x.names == tuple(combinations(inputs["scores"], 2))
    names = ["|".join(pair) for pair in x.names]
    return {
        "p_raw": dict(zip(names, x.p, strict=True)),
        "p_holm": dict(zip(names, x.p_holm, strict=True)),
    }


def tight(case: Case, key: str) -> float:
    """Return a bound on the tolerance that the description of a kind sets beside its number."""
    return 1e-9 if case["kind"] == "bootstrap_ci" and key == "t" else math.inf
