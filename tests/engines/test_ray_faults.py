"""Ray loses a node, and what attends a worker: it starts the job again by itself, and the run goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from commandline import Place, finish
from contract import ALONE, Held, attempts, check_equal
from ray_cluster import Cluster, parent
from slurm_cluster import until


def lost(on_ray: Held, lose: Callable[[int], None]) -> None:
    """Lose what a worker that stands still has above it, and wait until its run stands still again."""
    note = on_ray.acts / ALONE
    worker = int(note.read_text(encoding="utf-8"))
    note.unlink()
    lose(worker)
    until(lambda: not Path(f"/proc/{worker}").exists(), "the end of the worker")
    on_ray.await_standstill()


def test_what_is_lost_is_started_again_elsewhere(on_ray: Held, ray_cluster: Cluster, undisturbed: Place) -> None:
    """First what attends the worker is killed, then the node; the driver hears of neither."""
    command = on_ray.begin()
    lost(on_ray, lambda worker: os.kill(parent(worker), signal.SIGKILL))
    lost(on_ray, lambda worker: ray_cluster.lose_node(parent(parent(worker))))
    ray_cluster.add_node()
    (on_ray.acts / "hold").unlink()
    outcome = finish(command)
    assert outcome.code == 0, outcome
    assert attempts(on_ray.place, ALONE)[-1] == "ok"
    assert len(attempts(on_ray.place, ALONE)) == 3
    check_equal(on_ray.place, undisturbed, ALONE)
