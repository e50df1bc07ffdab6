"""What has been published of a pair, as ``kdbench show`` prints it."""

from __future__ import annotations

from tabulate import tabulate

from kdbench.leaderboard.claim_files import ClaimedPair, ClaimFile, claims_of, shipped_claims
from kdbench.leaderboard.claims_text import NEVER


def claims_page(pair: str) -> list[str]:
    """Return the lines: a table of methods by source, and where each source prints them; none without claims."""
    found = claims_of(pair, shipped_claims())
    if not found:
        return []
    methods = dict.fromkeys(method for _, claimed in found for method in claimed.accuracies)
    rows = [(method, *(_percent(claimed.accuracies.get(method)) for _, claimed in found)) for method in methods]
    headers = ("claimed %", *(file.name for file, _ in found))
    table = tabulate(rows, headers, disable_numparse=True, stralign="right", colalign=("left",))
    return [table, *(line for file, claimed in found for line in _source(file, claimed)), NEVER]


def _source(file: ClaimFile, claimed: ClaimedPair) -> list[str]:
    teacher = "" if claimed.teacher is None else f", teacher {_percent(claimed.teacher)} %"
    note = f"; {claimed.note}" if claimed.note else ""
    return [
        f"{file.name}: {file.source.title}, {file.source.url}",
        f"  anchor {file.anchor}, {file.epochs} epochs, {file.dataset}; epoch {file.epoch_rule}{teacher}{note}",
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
