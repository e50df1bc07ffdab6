"""The Ray engine: a task per job on a cluster of one's own. Ray itself is imported when a cluster is joined."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from kdbench.engine import Engine, ResourceOptions
from kdbench.execution.seam import Executor, Opening
from kdbench.hooks import hookimpl


class RayOptions(ResourceOptions):
    """What ``--executor-option`` may set."""

    address: str | None = Field(
        None,
        description="auto, HOST:PORT or ray://HOST:PORT; null = $RAY_ADDRESS, a cluster that this machine is part of, "
        "or else a new one of this machine alone",
    )
    time: None = Field(None, description="none: tasks of Ray have no end of their own")
    runtime_env: Path | None = Field(None, description="YAML file with Ray's runtime environment of the workers")
    max_retries: int = Field(
        10, ge=-1, description="times a job is started again after its node was lost; -1 = as often as it happens"
    )


def join(opening: Opening) -> Executor:
    """Return the executor of a cluster.

    Raises:
        ConfigError: If there is no cluster, or the file of the runtime environment cannot be used.
    """
    # Ray reads these when it is imported. A run that takes all memory of a node is the driver's to start again, in a
    # worker of its own; not Ray's, for ever.
    os.environ.setdefault("RAY_task_oom_retries", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from kdbench.execution.ray.executor import RayExecutor

    return RayExecutor(opening)


@hookimpl
def kdbench_executors() -> Iterable[Engine]:
    """Return the engine."""
    return (
        Engine(
            "ray",
            "tasks of a Ray cluster: several nodes, GPUs given out by Ray, lost nodes replaced",
            join,
            options_type=RayOptions,
            where="cluster",
            jobs=8,
            packages=("ray",),
            requirement="kdbench[ray]",
        ),
    )
