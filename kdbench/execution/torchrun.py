"""One command as several processes, each with a device of its own: torchrun's agent, with kdbench's signals and exits.

The agent starts nobody again (``max_restarts=0``): one mechanism retries, and it is the driver's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence

from kdbench.execution.worker import STOP_SIGNALS, follow_parent
from kdbench.training.team.exchange import PeerLost

STOPPED = 75
GRACE_SECONDS = 300  # from a stop signal to the kill: a step, a look at the validation split, and a checkpoint


def launch(arguments: Sequence[str], count: int) -> int:
    """Run ``kdbench`` with some arguments in ``count`` processes, as torchrun would, and return its exit code.

    Args:
        arguments: Of the command.
        count: Number of processes.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _prepare()
    failures: list[int] = []
    with tempfile.TemporaryDirectory(prefix="kdbench-torchrun-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "kdbench", *arguments)
        except SignalException:
            return STOPPED  # it was passed on, and whoever could has saved
        except ChildFailedError as error:
            failures = [failure.exitcode for _, failure in sorted(error.failures.items())]
    return _end_as(failures) if failures else 0


def _prepare() -> None:
    """Set what the agent and its children find in this process."""
    logging.disable(logging.ERROR)  # the agent's: its children say themselves what happened
    os.environ["KDBENCH_PARENT"], parent = str(os.getpid()), os.environ.get("KDBENCH_PARENT")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine
    follow_parent(parent, signal.SIGTERM)
    for number in STOP_SIGNALS:  # the agent passes on SIGTERM in every version of torch, and others in some
        signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_as(codes: Sequence[int]) -> int:
    """Return the exit code of what went wrong, or end by the signal that ended a child.

    Args:
        codes: Of the children that failed, in the order of their ranks. Those that only lost another one tell nothing.
    """
    told = [code for code in codes if code != PeerLost.exit_code] or list(codes)
    if told[0] < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-told[0], signal.SIG_DFL)
        os.kill(os.getpid(), -told[0])
    return told[0]
