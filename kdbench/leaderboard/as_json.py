"""The leaderboard as JSON: every seed's value and every number behind the tables."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import JsonValue

from kdbench.leaderboard.claims_text import NEVER
from kdbench.leaderboard.json_text import json_text
from kdbench.leaderboard.judged_text import verdict
from kdbench.leaderboard.model import SPENT, Claim, Gain, Leaderboard, Outcome, Row, Table
from kdbench.stats import Interval, Summary

SCHEMA_VERSION = 1
Tree = dict[str, JsonValue]


def to_json(board: Leaderboard) -> str:
    """Return the board as ASCII JSON; what is unknown or not finite is null, other numbers have ten digits."""
    tree: Tree = {"schema_version": SCHEMA_VERSION, "tables": [_table(table) for table in board.tables]}
    if board.overviews:
        tree["overviews"] = [asdict(view) for view in board.overviews]
    if board.ranks:
        tree["mean_ranks"] = asdict(board.ranks)
    return json_text(tree) + "\n"


def _table(table: Table) -> Tree:
    return {
        "anchor": {"label": table.anchor, "sha256": table.anchor_sha256, "epochs": table.epochs},
        "dataset": {**table.dataset.model_dump(mode="json"), "label": table.dataset.label},
        "pair": table.pair,
        "student_backbone": table.student_backbone,
        "division": table.division,
        "score": "last epoch, test top-1 in percent",
        "seeds": list(table.seeds),
        "teachers": [teacher.model_dump(mode="json") for teacher in table.teachers],
        "environment": {key: list(values) for key, values in table.environment.items()},
        "baselines": list(table.baselines),
        "absent_baselines": list(table.absent_baselines),
        "judgement": _judgement(table),
        "rows": [_row(row) for row in table.rows],
        **_claims(table),
    }


def _judgement(table: Table) -> Tree:
    """Return what the table supports; families and advice by name and by gain."""
    tree: Tree = asdict(table.judgement)
    decision = table.judgement.decision
    return tree | {
        "text": verdict(table),
        "winner": decision.winner,
        "reasons": list(decision.reasons),
        "families": dict(table.judgement.families),
        "advice": [{"gain": gain, "seeds": seeds} for gain, seeds in table.judgement.advice],
    }


def _claims(table: Table) -> Tree:
    """Return the section of published accuracies, outside of the rows; nothing where there are none."""
    if not table.claims:
        return {}
    shown: list[JsonValue] = [_claim(claim) for claim in table.claims.shown]
    return {"claimed_and_reproduced": {"note": NEVER, "withheld": list(table.claims.withheld), "claims": shown}}


def _claim(claim: Claim) -> Tree:
    return {
        "method": claim.method,
        "claimed": claim.accuracy,
        "by": claim.by,
        "source": claim.source.model_dump(mode="json"),
        "epoch_rule": claim.epoch_rule,
        "runs": claim.runs,
        "teacher": claim.teacher,
        "note": claim.note,
        "ours": {
            "n": claim.n,
            "mean": claim.mean,
            "interval": _interval(claim.interval),
        },
        "difference": claim.difference,
        "verdict": claim.verdict,
        "cannot_tell_because": claim.reason,
    }


def _row(row: Row) -> Tree:
    return {
        "method": row.method,
        "method_version": row.method_version,
        "plugins": list(row.plugins),
        "options": row.options,
        "deviations": [deviation.model_dump(mode="json") for deviation in row.deviations],
        "planned": row.planned,
        "ok": row.count("ok"),
        "unstable": row.unstable,
        "intent_to_treat": _summary(row.scored),
        "ok_only": _summary(row.ok_only),
        "bold": row.bold,
        "tie_group": row.ties,
        "gains": [_gain(gain) for gain in row.gains],
        "train_seconds": row.train_seconds,
        **({"seconds_by_part": dict(row.parts)} if row.parts else {}),
        "deployed_parameters": list(row.deployed_parameters),
        "agreement_with_teacher": row.agreement,
        **{key: row.mean_cost(part) for key, part in SPENT.items()},
        "runs": [of_run(outcome) for outcome in row.outcomes],
        **({"safe_mode_seeds": list(row.safe_seeds)} if row.safe_seeds else {}),
    }


def of_run(outcome: Outcome) -> Tree:
    """Return what a seed contributed to its row, in JSON types."""
    return {
        "seed": outcome.seed,
        "status": outcome.status,
        "accuracy": outcome.accuracy,
        "score": outcome.score,
        "reason": outcome.reason,
        "run_id": outcome.run_id,
        "config_sha256": outcome.config_sha256,
    }


# By hand: asdict copies deeply, and a board has thousands of them.
def _summary(summary: Summary | None) -> JsonValue:
    return None if summary is None else {"n": summary.n, "mean": summary.mean, "std": summary.std}


def _interval(interval: Interval | None) -> JsonValue:
    if interval is None:
        return None
    return {"low": interval.low, "high": interval.high, "confidence": interval.confidence}


def _gain(gain: Gain) -> Tree:
    # The uncorrected p-value stays out: it would only invite claims.
    difference = gain.difference
    if difference is None:
        return {"baseline": gain.baseline, "is_itself": True}
    return {
        "baseline": gain.baseline,
        "is_itself": False,
        "n": difference.n,
        "seeds": list(difference.seeds),
        "differences": list(difference.values),
        "mean": difference.mean,
        "std": difference.std,
        "interval": _interval(difference.interval),
        "no_interval_because": difference.reason,
        "p_holm": gain.p_holm,
        "p_pooled": gain.p_pooled,
        "star": gain.star,
        "dagger": gain.dagger,
        "equal": gain.equal,
        "se_test": gain.se_test,
        "unclaimed_because": gain.unclaimed,
    }
