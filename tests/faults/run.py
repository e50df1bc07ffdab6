"""The fault campaign: everything that may go wrong with a board, done to it, and what came of it.

python tests/faults/run.py            all of it, some minutes
python tests/faults/run.py --short    each kind once or a few times, for the tests
python tests/faults/run.py --write    all of it, and the table goes into docs/reliability.md

Exit 1 if anything was lost: an end state that differs from the undisturbed one without a record that says what failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from board import Workshop
from company import company
from damage import damages
from disks import disks
from kills import kills
from misbehaving import ENDS, plugins
from stops import stops
from table import Row, to_markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
START, END = "<!-- faults:start -->", "<!-- faults:end -->"
PARTS = ("kills", "stops", "disks", "damages", "company", "plugins")
QUICK = ("raises in state_dict", "exits", "vanishes", "memory")


def campaign(shop: Workshop, only: str, *, short: bool) -> Iterator[Row]:
    """Yield the rows of all faults, or of one part."""
    parts = {
        "kills": lambda: kills(shop, 10 if short else 140, everywhere=not short),
        "stops": lambda: stops(shop, 0 if short else 6),
        "disks": lambda: disks(shop, 1 if short else 3),
        "damages": lambda: damages(shop, 1 if short else 6),
        "company": lambda: company(shop, 1 if short else 4),
        "plugins": lambda: plugins(shop, list(QUICK if short else ENDS)),
    }
    for name in [only] if only else parts:
        yield from parts[name]()


def main() -> int:
    """Run it, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="each kind once or a few times")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.name}")
    parser.add_argument("--only", choices=PARTS, default="", help="one part; not for the document")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shop, started, rows = Workshop(), time.monotonic(), []
    try:
        for row in campaign(shop, options.only, short=options.short):
            rows.append(row)
            print(f"{time.monotonic() - started:6.0f} s  {row.fault}: {row.times}", *row.lost, sep="\n    ", flush=True)
    finally:
        shop.close()
    table = to_markdown(rows)
    print(table)
    if options.write and not options.only:
        text = DOCUMENT.read_text(encoding="utf-8")
        before, rest = text.split(START)
        DOCUMENT.write_text(f"{before}{START}\n{table}{END}{rest.split(END)[1]}", encoding="utf-8")
    return 1 if any(row.lost for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
