"""The same command on each engine, and whether their boards are equal: ``python tests/engines/same_boards.py [SEEDS]``.

Prints a line per engine and ends with 1 if one of them made another board. Equal means: every run's weights,
predictions and spec byte for byte, and all that the board says but times.
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
TIMES = {"train_seconds", "seconds_by_part", "images_per_second", "peak_memory_bytes"}


@contextlib.contextmanager
def slurm() -> Iterator[list[str]]:
    """Start a SLURM of two nodes, and yield the words that use it."""
    with tempfile.TemporaryDirectory(prefix="kdslurm") as folder:
        cluster = slurm_cluster.Cluster(Path(folder))
        os.environ |= cluster.environment
        cluster.start()
        try:
            yield ["--executor", "slurm", "--executor-option", "poll=0.5"]
        finally:
            cluster.stop()


@contextlib.contextmanager
def ray() -> Iterator[list[str]]:
    """Start a Ray of two nodes in a network of its own, and yield the words that use it."""
    with tempfile.TemporaryDirectory(prefix="kdray") as folder:
        cluster = ray_cluster.Cluster(Path(folder))
        os.environ |= cluster.environment
        cluster.start()
        try:
            with cluster.inside():
                yield ["--executor", "ray", "--executor-option", f"address={cluster.address}"]
        finally:
            cluster.stop()


ENGINES = {
    "local": lambda: contextlib.nullcontext(["--executor", "local"]),
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
    return {**hashes, "board": timeless(json.loads((board / "leaderboard.json").read_text(encoding="utf-8")))}


def timeless(tree: Any) -> Any:
    """Return what a board says but times."""
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in TIMES}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[str, dict[str, Any]] = {}
    for name, engine in ENGINES.items():
        with tempfile.TemporaryDirectory() as folder, engine() as words:
            started = time.monotonic()
            found[name] = made(Path(folder), seeds, words)
        first = next(iter(found.values()))
        other = sorted(key for key in {**first, **found[name]} if first.get(key) != found[name].get(key))
        said = f"DIFFERENT in {', '.join(other)}" if other else f"{len(first)} files and tables equal"
        print(f"{name}: {time.monotonic() - started:.0f} s, {said}", flush=True)
    sys.exit(any(tree != first for tree in found.values()))


if __name__ == "__main__":
    main()
