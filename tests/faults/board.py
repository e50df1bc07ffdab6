"""The work that faults disturb: one small board, teacher and all, and whether it ended as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import methods
import scipy.stats  # noqa: F401  # once, here: every child writes tables
from children import Child, Ended

from kdbench.artefacts import WEIGHTS as TEACHER_WEIGHTS
from kdbench.cli import main
from kdbench.cli.main import State
from kdbench.cli.run_one import inline_worker
from kdbench.errors import KdbenchError
from kdbench.execution.driver import Order, carry_out
from kdbench.execution.grouping import groups_of
from kdbench.execution.inline import InlineExecutor
from kdbench.execution.jobs import Settings
from kdbench.files import TEMPORARY
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import load
from kdbench.store import PREDICTIONS, WEIGHTS, RunFolder, RunStore
from kdbench.training.attempts import ATTEMPTS
from kdbench.training.teacher_cache import CachePlace
from kdbench.training.teachers import recipes_of

ANCHOR = str(Path(__file__).with_name("board.yaml"))
METHODS = ("student", "vanilla_kd")
# The commit, for files may be edited meanwhile; and how much of what teachers say was there from before a fault.
TIMES = ("images_per_second", "peak_memory_bytes", "commit", "teacher_forwards", "teacher_cached")
FORMATS = "md,json,csv"


@cache
def state() -> State:
    """Return the command line's state with the plugins of the campaign loaded."""
    known = State()
    known._registry = load(extra=[methods])
    return known


@cache
def plan_of(names: tuple[str, ...], settings: tuple[str, ...] = ()) -> Plan:
    """Return the plan of a board of methods."""
    return make_plan(Request(names, ("tiny",), (0,), ANCHOR, per_class=20, settings=settings), state().registry())


class Place:
    """A folder with the runs, teachers and tables of one board.

    Args:
        root: The folder.
        names: Methods on the board.
        settings: Options of theirs.
    """

    def __init__(self, root: Path, names: tuple[str, ...] = METHODS, settings: tuple[str, ...] = ()) -> None:
        self.root, self.names, self.options = root, names, settings

    @property
    def specs(self) -> tuple[Any, ...]:
        """The planned runs."""
        return plan_of(self.names, self.options).runs

    @property
    def settings(self) -> Settings:
        """Where and how."""
        cache = CachePlace(self.cache, 2**30)
        return Settings(self.root / "runs", self.root / "teachers", self.root / "data", ("cpu",), 1, cache=cache)

    @property
    def cache(self) -> Path:
        """Folder of what teachers said."""
        return self.root / "cache"

    @property
    def order(self) -> Order:
        """The plan and all that carries it out."""
        return Order(self.specs, ANCHOR, {"tiny": 10}, self.settings, groups_of)

    def folder(self, method: str = METHODS[-1]) -> RunFolder:
        """Return the folder of a run."""
        (spec,) = [spec for spec in self.specs if spec.method == method]
        return RunStore(self.settings.store).folder(spec.run_id)

    @property
    def teacher(self) -> Path:
        """Folder of the teacher."""
        (recipe,) = recipes_of(self.specs)
        return self.settings.teachers / recipe.dataset.label / recipe.name

    # --- in children -----------------------------------------------------------------------------------------

    def make(self) -> None:
        """Make what is missing of the board, in this process; exit as the command would."""
        engine = InlineExecutor(inline_worker(self.settings, lambda _event: None, state()))
        guarded(lambda: carry_out(self.order, engine))
        self.tables(self.root / "board")

    def tables(self, out: Path) -> None:
        """Write the tables."""
        words = ["leaderboard", str(self.settings.store), "--out", str(out), "--format", FORMATS]
        guarded(lambda: main(words))

    def run_one(self, *wanted: str) -> None:
        """Train planned runs as a worker does."""
        ids = [word for name in wanted or self.names for word in ("--run", self.run_id(name))]
        where = ["--teachers", self.settings.teachers, "--device", "cpu", "--threads", "1"]
        main(["run-one", "--store", str(self.settings.store), *ids, *map(str, where)])

    def run_id(self, method: str) -> str:
        """Return the id of a run."""
        (spec,) = [spec for spec in self.specs if spec.method == method]
        return str(spec.run_id)

    # --- from outside ----------------------------------------------------------------------------------------

    def start(self, work: Any = None) -> Child:
        """Start a child, by default one that makes the board."""
        return Child(work or self.make, self.root.parent / f"{self.root.name}-{os.urandom(3).hex()}.log")

    def finish(self, work: Any = None) -> Ended:
        """Start a child and wait for its end."""
        return self.start(work).wait()

    def register(self) -> None:
        """Plan the runs, for workers."""
        RunStore(self.settings.store).register(self.specs)

    def state(self, names: Sequence[str] = METHODS) -> dict[str, Any]:
        """Return everything that must be equal in the end: weights, predictions, records and epochs but their times."""
        found: dict[str, Any] = {
            f"teacher/{n}": (self.teacher / n).read_bytes() for n in (TEACHER_WEIGHTS, PREDICTIONS)
        }
        for name in names:
            folder = self.folder(name)
            for file in (WEIGHTS, PREDICTIONS):
                found[f"{name}/{file}"] = (folder.path / file).read_bytes()
            record = json.loads((folder.path / "record.json").read_text(encoding="utf-8"))
            for key in (
                "attempts",
                "started_at",
                "ended_at",
                "seal",
                "plugins_loaded",
            ):  # run-one loads no plugin of ours
                record.pop(key, None)
            found[f"{name}/record"] = without(record, TIMES)
            lines = (folder.path / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
            found[f"{name}/epochs"] = [without(json.loads(line), TIMES) for line in lines]
        return found

    def leftovers(self, names: Sequence[str]) -> list[str]:
        """Return what nobody will remove: temporary files, locks, checkpoints and attempts of finished runs."""
        inside = [path for name in names for path in self.folder(name).path.rglob("*")]
        left = [path for path in inside if path.suffix == ".pt" or path.name == ATTEMPTS]
        locks = [path for path in self.root.rglob("*.lock") if path.parent != self.cache]  # the cache keeps its own
        found = [*self.root.rglob(f"{TEMPORARY}*"), *locks, *left]
        return sorted(str(path.relative_to(self.root)) for path in found)

    def problems(
        self, expected: dict[str, Any], names: Sequence[str] = METHODS, but: Sequence[str] = (), *, tables: bool = True
    ) -> str:
        """Return what is not as if nothing had happened, but for some keys; empty = nothing."""
        try:
            found, expected = (without(tree, but) for tree in (self.state(names), expected))
        except (OSError, ValueError) as error:
            return f"not finished: {error}"
        wrong = [key for key, value in expected.items() if key in found and found[key] != value]
        if wrong or len(found) < len([key for key in expected if key.split("/")[0] in {*names, "teacher"}]):
            return f"differs: {', '.join(wrong) or 'files are missing'}"
        if left := self.leftovers(names):
            return f"left behind: {', '.join(left)}"
        return self._tables_differ() if tables else ""

    def _tables_differ(self) -> str:
        """Compare the tables that went through the faults with those that the same records give undisturbed."""
        again = self.root.parent / f"{self.root.name}-again"
        if (ended := self.finish(lambda: self.tables(again))).code:
            return f"no tables: {ended.said[-300:]}"
        names = sorted(path.name for path in again.iterdir())
        differ = [name for name in names if (self.root / "board" / name).read_bytes() != (again / name).read_bytes()]
        return f"tables differ: {', '.join(differ)}" if differ else ""


def guarded(work: Any) -> None:
    """Do something as the command line does it: errors become exit codes, success goes on."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        work()
    except KdbenchError as error:
        print(f"kdbench: {error}")
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        raise SystemExit(75) from None
    except SystemExit as end:
        if end.code:
            raise


def without(tree: Any, keys: Sequence[str]) -> Any:
    """Return nested values without some keys, and without what is named after seconds."""
    if isinstance(tree, dict):
        kept = {key: value for key, value in tree.items() if key not in keys and "seconds" not in key}
        return {key: without(value, keys) for key, value in kept.items()}
    return [without(item, keys) for item in tree] if isinstance(tree, list) else tree


class Workshop:
    """Fresh places, and the board that nothing disturbed."""

    def __init__(self) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="kdbench-faults-")
        self.root = Path(self._root.name)
        self._count = 0
        self.whole = self.place()
        started = time.monotonic()
        if (ended := self.whole.finish()).code:
            raise RuntimeError(f"the undisturbed board was not made:\n{ended.said}")
        self.seconds = time.monotonic() - started
        self.expected = self.whole.state()

    def place(self, names: tuple[str, ...] = METHODS, settings: tuple[str, ...] = (), *, taught: bool = False) -> Place:
        """Return a fresh place, on request with the teacher of the undisturbed one."""
        self._count += 1
        place = Place(self.root / f"place{self._count}", names, settings)
        place.root.mkdir()
        if taught:
            shutil.copytree(self.whole.settings.teachers, place.settings.teachers)
        return place

    def close(self) -> None:
        """Remove everything."""
        self._root.cleanup()
