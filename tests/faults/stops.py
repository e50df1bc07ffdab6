"""Stop signals: the step is finished, everything is saved, exit 75; the same command goes on to the same bits."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

from board import ANCHOR, Place, Workshop
from table import EQUAL, Row

from kdbench.cli import main
from kdbench.training.teachers import recipes_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
MOMENTS = ("training", "evaluation", "checkpointing")
STOPPED = 75


def stops(shop: Workshop, rounds: int) -> Iterator[Row]:
    """Stop workers by every signal at every kind of moment, so often each; 0 = by each signal at one of the moments."""
    draws = random.Random(1)
    for index, number in enumerate(SIGNALS):
        row = Row(f"{number.name} to a worker in {', '.join(MOMENTS)}, or at a teacher")
        for moments in [MOMENTS] * rounds or [MOMENTS[index : index + 1]]:
            if moments:
                place = shop.place(taught=True)
                place.register()
                stopped = [_stop(place, number, moment, draws.randint(1, 2)) for moment in moments]
                ended = place.finish()
                end = ended.said[-300:] if ended.code else place.problems(shop.expected)
                for problem in stopped:
                    row.add(f"exit {STOPPED}, then {EQUAL}", problem or end)
            if rounds or not moments:
                row.add(f"exit {STOPPED}, then {EQUAL}", _stop_teacher(shop, number, draws))
        yield row


def _stop(place: Place, number: int, moment: str, visits: int) -> str:
    child = place.start(place.run_one)
    if not child.reach(moment, visits):
        return f"ended before: {child.wait().said[-300:]}"
    child.signal(number)
    ended = child.wait()
    if ended.code != STOPPED:
        return f"exit {ended.code}: {ended.said[-300:]}"
    saved = all(list(place.folder(name).checkpoints.glob("*.pt")) for name in place.names)
    return "" if saved else "nothing was saved"


def _stop_teacher(shop: Workshop, number: int, draws: random.Random) -> str:
    place = shop.place()
    (recipe,) = recipes_of(place.specs)
    words = ["teacher", "train", recipe.backbone, "--dataset", "digits", "--per-class", "20", "--anchor", ANCHOR,
             "--teachers", str(place.settings.teachers), "--device", "cpu", "--threads", "1"]  # fmt: skip
    child = place.start(lambda: main(words))
    if not child.reach("teacher training"):
        return f"ended before: {child.wait().said[-300:]}"
    while not child.ended() and not list(place.teacher.rglob("*.pt")):  # it has begun, and is far from its end
        time.sleep(0.002)
    time.sleep(draws.random() * 0.05)
    child.signal(number)
    ended = child.wait()
    if ended.code != STOPPED:
        return f"exit {ended.code}: {ended.said[-300:]}"
    ended = place.finish()
    return ended.said[-300:] if ended.code else place.problems(shop.expected)
