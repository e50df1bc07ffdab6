"""Stop signals: the step is finished, everything is saved, exit 75; the same command goes on to the same bits."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

from board import ANCHOR, Place, Workshop
from table import EQUAL, Row

from kdbench.cli import main
from kdbench.training.teachers import recipes_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
MOMENTS = ("training", "evaluation", "checkpointing")
STOPPED = 75


def stops(shop: Workshop, rounds: int) -> Iterator[Row]:
    """Stop workers by every signal at every kind of moment, so often each."""
    draws = random.Random(1)
    for number in SIGNALS:
        row = Row(f"{number.name} to a worker in {', '.join(MOMENTS)}, or at a teacher")
        for _ in range(rounds):
            place = shop.place(taught=True)
            place.register()
            for moment in MOMENTS:
                row.add(EQUAL, _stop(place, number, moment, draws.randint(1, 3)))
            if (ended := place.finish()).code or (problem := place.problems(shop.expected)):
                row.add("", ended.said[-300:] if ended.code else problem)
            row.add(EQUAL, _stop_teacher(shop, number, draws))
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
    child.reach("teacher training", 1)
    if not child.reach("training" if child.where.visits("training") else "teacher training", 1):
        return "the teacher was done before"
    # The steps of a teacher are not marked apart: any moment of its training will do.
    import time

    time.sleep(draws.random() * 0.3)
    child.signal(number)
    ended = child.wait()
    if ended.code not in {0, STOPPED}:
        return f"exit {ended.code}: {ended.said[-300:]}"
    ended = place.finish()
    return ended.said[-300:] if ended.code else place.problems(shop.expected)
