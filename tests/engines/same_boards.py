"""The same command on each engine, and whether their boards are equal: ``python tests/engines/same_boards.py [SEEDS]``.

Prints a line per engine and ends with 1 if one of them made another board. Equal means: every run's weights,
predictions and spec byte for byte, and all that the board says but times, memory and forwards of teachers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray_cluster
import slurm_cluster

COMMAND = ("--method", "student,vanilla_kd,dkd", "--pair", "tiny", "--anchor", "crd_short", "--threads", "1")
FILES = ("student.safetensors", "predictions.npz", "spec.json")
ABSENT = "(absent)"
# What a run happened to spend. Forwards of teachers too: of two processes that miss the same image in the cache of
# teachers' outputs at the same moment, both run the teacher on it, on one engine as on another.
SPENT = {"train_seconds", "seconds_by_part", "images_per_second", "peak_memory_bytes", "teacher_forwards"}


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[list[str]]:
    """Start a SLURM of two nodes, and yield the words that use it."""
    cluster = slurm_cluster.Cluster(folder)
    os.environ |= cluster.environment
    cluster.start()
    try:
        yield ["--executor", "slurm", "--executor-option", "poll=0.5"]
    finally:
        cluster.stop()


@contextlib.contextmanager
def ray(folder: Path) -> Iterator[list[str]]:
    """Start a Ray of two nodes in a network of its own, and yield the words that use it."""
    cluster = ray_cluster.Cluster(folder)
    os.environ |= cluster.environment
    cluster.start()
    try:
        with cluster.inside():
            yield ["--executor", "ray", "--executor-option", f"address={cluster.address}"]
    finally:
        cluster.stop()


ENGINES = {
    "local": lambda _folder: contextlib.nullcontext(["--executor", "local"]),
    "slurm, two nodes": slurm,
    "ray, two nodes": ray,
}


def kdbench(*words: object) -> None:
    """Run a command; its words are shown only if it fails."""
    command = [sys.executable, "-m", "kdbench", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"kdbench {words[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def made(root: Path, seeds: int, words: list[str]) -> dict[str, Any]:
    """Make the board and return what must be equal."""
    out, board = root / "runs", root / "board"
    where = ("--out", out, "--teachers", root / "teachers")
    kdbench("run", *COMMAND, "--seeds", seeds, "--device", "cpu", "--jobs", 2, *where, *words)
    kdbench("leaderboard", out, "--out", board, "--format", "json")
    runs = {path.parent for path in out.rglob("record.json")}
    hashes = {
        f"{run.relative_to(out)}/{name}": hashlib.sha256((run / name).read_bytes()).hexdigest()
        for run in runs
        for name in FILES
    }
    return hashes | dict(said(json.loads((board / "leaderboard.json").read_text(encoding="utf-8")), "board"))


def said(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield all that a board says but what was spent, each value with the place where it stands."""
    if not isinstance(tree, dict | list) or not tree:
        yield name, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key not in SPENT:
            yield from said(value, f"{name}.{key}")


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[str, dict[str, Any]] = {}
    different = 0
    for name, engine in ENGINES.items():
        with (
            tempfile.TemporaryDirectory(prefix="kd") as folder,
            tempfile.TemporaryDirectory(prefix="kd") as cluster,
            engine(Path(cluster)) as words,
        ):
            started = time.monotonic()
            found[name] = made(Path(folder), seeds, words)
        first = next(iter(found.values()))
        pairs = {key: (first.get(key, ABSENT), found[name].get(key, ABSENT)) for key in {**first, **found[name]}}
        other = {key: pair for key, pair in sorted(pairs.items()) if pair[0] != pair[1]}
        different += len(other)
        files = sum(not key.startswith("board.") for key in first)
        equal = f"{files} files and {len(first) - files} values of the board, {len(other)} of them different"
        print(f"{name}: {time.monotonic() - started:.0f} s, {equal}", flush=True)
        for key, (here, there) in other.items():
            print(f"  {key}: {here!r} and {there!r}", flush=True)
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
