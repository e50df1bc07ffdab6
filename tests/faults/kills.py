"""SIGKILL at random moments: half of them whenever it happens, half where few have hit so far."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator

from board import Place, Workshop
from children import ELSEWHERE, KNOWN
from table import EQUAL, Row

KILLS_A_BOARD = 12  # then it may finish, so that there is an end to compare
INSIDE_S = 0.004
TEACHER = "teacher training"
VISITS = {"training": 20, "evaluation": 3, "checkpointing": 2}  # how often a start comes there at least, if it is early


def kills(shop: Workshop, count: int, *, everywhere: bool) -> Iterator[Row]:
    """Kill makers of boards so often, or until each place was hit, and yield one row per place where that was."""
    draws, hits = random.Random(0), Counter(dict.fromkeys((*KNOWN, ELSEWHERE), 0))
    rows = {name: Row(f"SIGKILL in {name}") for name in hits}
    while sum(hits.values()) < count or (everywhere and min(hits[name] for name in KNOWN) == 0):
        place, here, torn = shop.place(), Counter[str](), ""
        while sum(here.values()) < KILLS_A_BOARD and (where := _kill(place, draws, hits + here, shop.seconds)):
            here[where] += 1
            torn = torn or _torn(place)
        ended = place.finish()
        problem = torn or (ended.said[-300:] if ended.code else place.problems(shop.expected))
        for name, times in here.items():
            rows[name].add(EQUAL, problem, times)
        hits += here
    yield from rows.values()


def _kill(place: Place, draws: random.Random, hits: Counter[str], most: float) -> str:
    """Start a maker and kill it within ``most`` seconds; return where it was, or nothing if it was done before."""
    child = place.start()
    if draws.random() < 0.5:
        taught = (place.teacher / "teacher.json").exists()
        open_to_it = [name for name in KNOWN if not (taught and name == TEACHER)]
        rarest = min(open_to_it, key=lambda name: (hits[name], draws.random()))
        alive = child.reach(rarest, visits=draws.randint(1, VISITS.get(rarest, 1)))
        time.sleep(draws.random() * INSIDE_S)
    else:
        alive = child.reach(None)
        time.sleep(draws.random() * most)
    child.signal(signal.SIGKILL)
    ended = child.wait()
    if ended.code not in {0, -signal.SIGKILL}:
        raise RuntimeError(f"a maker ended with {ended.code}: {ended.said[-1000:]}")
    return child.where.now() if alive and ended.code else ""


def _torn(place: Place) -> str:
    """Return which file is neither old nor new."""
    for path in [*place.settings.store.rglob("*.json"), *(place.root / "board").glob("*.json")]:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"torn: {path.name}"
    return ""
