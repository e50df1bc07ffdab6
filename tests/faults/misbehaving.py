"""Methods that misbehave: their own run fails and says so, or is refused; the one beside it ends as ever."""

from __future__ import annotations

import json
from collections.abc import Iterator

from board import Place, Workshop, guarded
from engine import ForkExecutor
from table import EQUAL, Row

from kdbench.execution import driver
from kdbench.execution.driver import carry_out

# How each ends: refused when it is planned, a failed run, a diverged one, or one that harms nobody.
REFUSED, FAILED, DIVERGED, HARMLESS = "refused before anything is trained", "infra_failed", "diverged", "ok"
ENDS = {
    "raises in init": REFUSED,
    "raises": FAILED,
    "raises in after_step": FAILED,
    "raises in after_epoch": FAILED,
    "raises in evaluation": FAILED,
    "raises in state_dict": FAILED,
    "wrong shape": FAILED,
    "detached": FAILED,
    "not finite": DIVERGED,
    "changes its options": FAILED,
    "changes the batch": FAILED,
    "changes the teacher's features": FAILED,
    "memory": FAILED,
    "exits": FAILED,
    "vanishes": FAILED,
    "crashes": FAILED,
    "hangs": FAILED,
    "floods": HARMLESS,
    "reseeds": HARMLESS,
}
NAMES = {
    "memory": "runs out of memory in one lane of two",
    "exits": "sys.exit(0)",
    "vanishes": "os._exit(0)",
    "crashes": "segmentation fault",
    "hangs": "hangs (killed after a limit)",
    "floods": "floods standard output",
    "reseeds": "reseeds the global generators",
    "detached": "loss without a gradient",
    "wrong shape": "loss of the wrong shape",
}
BESIDE = "vanilla_kd"
LIMIT_S = 20.0
PLUGIN_AT_FAULT = 3


def plugins(shop: Workshop, acts: list[str]) -> Iterator[Row]:
    """Put each misbehaving method on a board with a good one."""
    driver.MAX_ATTEMPTS = 2
    for act in acts:
        row = Row(f"plugin: {NAMES.get(act, act)}")
        place = shop.place((BESIDE, "bad"), (f"bad.act={act}",), taught=True)
        outcome, problem = _run(place, act)
        said = outcome if outcome == REFUSED else f"{outcome}; the method beside it {EQUAL}"
        row.add(said, problem or _beside(shop, place, act))
        yield row


def _run(place: Place, act: str) -> tuple[str, str]:
    try:
        engine = ForkExecutor(place, patience=LIMIT_S if act == "hangs" else 0.0)
        guarded(lambda: carry_out(place.order, engine))
    except SystemExit as end:
        return REFUSED, "" if ENDS[act] == REFUSED and end.code == PLUGIN_AT_FAULT else f"exit {end.code}"
    record = json.loads((place.folder("bad").path / "record.json").read_text(encoding="utf-8"))
    if record["status"] != ENDS[act]:
        return "", f"{record['status']}: {record['reason']}"
    if record["status"] != HARMLESS and not record["reason"]:
        return "", "the record gives no reason"
    return str(record["status"]), ""


def _beside(shop: Workshop, place: Place, act: str) -> str:
    if ENDS[act] == REFUSED:
        return ""
    # What a shared teacher costs each depends on the company.
    return place.problems(shop.expected, (BESIDE,), but=("teacher_forwards",), tables=False)
