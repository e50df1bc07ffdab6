"""Files damaged on disk: found by checksum, set aside and kept, and made again or replaced by the one before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from board import Place, Workshop
from children import Ended
from table import EQUAL, Row

Damage = Callable[[bytes, random.Random], bytes]


def _flipped(data: bytes, draws: random.Random) -> bytes:
    """Flip one bit, of a letter or digit where it is text: white space says nothing."""
    while True:
        index = draws.randrange(len(data))
        if not (data[:1] == b"{" and not chr(data[index]).isalnum()):
            return data[:index] + bytes([data[index] ^ (1 << draws.randrange(8))]) + data[index + 1 :]


def _zeroed(data: bytes, draws: random.Random) -> bytes:
    size = min(4096, max(1, len(data) // 4))
    start = draws.randrange(len(data) - size)
    # A page that was zero before would be no damage.
    while not any(data[start : start + size]):
        start = draws.randrange(len(data) - size)
    return data[:start] + bytes(size) + data[start + size :]


DAMAGES: dict[str, Damage] = {
    "truncated": lambda data, draws: data[: draws.randrange(len(data))],
    "bit-flipped": _flipped,
    "zeroed": _zeroed,
}


def damages(shop: Workshop, rounds: int) -> Iterator[Row]:
    """Damage checkpoints, records and teachers in every way, so often each."""
    for how, damage in DAMAGES.items():
        draws = random.Random(how)
        for what, hit in PLACES.items():
            row = Row(f"{what} {how}")
            for number in range(rounds):
                kept = "" if what == "cache" else "; the damaged file is kept"
                row.add(f"{EQUAL}{kept}", hit(shop, damage, draws, number))
            yield row


def _spoil(path: Path, damage: Damage, draws: random.Random) -> bytes:
    data = damage(path.read_bytes(), draws)
    path.write_bytes(data)
    return data


def _checked(shop: Workshop, place: Place, ended: Ended, spoilt: dict[Path, bytes]) -> str:
    if ended.code:
        return f"exit {ended.code}: {ended.said[-300:]}"
    for path, data in spoilt.items():
        kept = [aside for aside in path.parent.glob(f"{path.name}.corrupt*") if aside.read_bytes() == data]
        if not kept:
            return f"{path.name} was not set aside"
    return place.problems(shop.expected)


def _checkpoint(shop: Workshop, damage: Damage, draws: random.Random, number: int) -> str:
    """Damage the newest checkpoint, and every third time all of them."""
    place = shop.place(taught=True)
    place.register()
    child = place.start(place.run_one)
    child.reach("training", visits=draws.randint(25, 45))
    child.signal(15)
    child.wait()
    checkpoints = sorted(place.folder().checkpoints.glob("*.pt"))
    if not checkpoints:
        return "there was no checkpoint"
    chosen = checkpoints if number % 3 == 2 else checkpoints[-1:]
    spoilt = {path: _spoil(path, damage, draws) for path in chosen}
    ended = place.finish()
    for path in spoilt:  # for the comparison below: that they are kept is asked first
        if ended.code == 0 and path.name not in (place.folder().path / "record.json").read_text(encoding="utf-8"):
            return "the record does not name what was set aside"
    return _checked(shop, place, ended, spoilt)


def _record(shop: Workshop, damage: Damage, draws: random.Random, number: int) -> str:
    place = shop.place(taught=True)
    if (ended := place.finish()).code:
        return f"exit {ended.code}: {ended.said[-300:]}"
    path = place.folder().path / "record.json"
    spoilt = {path: _spoil(path, damage, draws)}
    return _checked(shop, place, place.finish(), spoilt)


def _teacher(shop: Workshop, damage: Damage, draws: random.Random, number: int) -> str:
    """Damage weights, manifest or predictions of a teacher whose students are still to do."""
    place = shop.place(taught=True)
    path = place.teacher / ("weights.safetensors", "teacher.json", "predictions.npz")[number % 3]
    spoilt = {path: _spoil(path, damage, draws)}
    return _checked(shop, place, place.finish(), spoilt)


def _cache(shop: Workshop, damage: Damage, draws: random.Random, number: int) -> str:
    """Damage what teachers said, and train all runs again from it: no damaged entry may be believed."""
    place = shop.place(taught=True)
    if (ended := place.finish()).code:
        return f"exit {ended.code}: {ended.said[-300:]}"
    files = sorted(place.cache.rglob("*.entries"))
    if not files:
        return "nothing was cached"
    _spoil(files[0], damage, draws)
    shutil.rmtree(place.settings.store)
    ended = place.finish()
    return f"exit {ended.code}: {ended.said[-300:]}" if ended.code else place.problems(shop.expected)


PLACES = {"checkpoint": _checkpoint, "record": _record, "teacher": _teacher, "cache": _cache}
