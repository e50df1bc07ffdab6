"""A Ray cluster on this machine, for tests: a head that runs no jobs, and two nodes of one core.

All of it is in a network namespace with nothing but a loopback device, so that it listens to nobody else; commands are
started from inside, see :meth:`Cluster.inside`. As a script this is what runs there: it reads ``add`` (start a node)
and ``remove PID`` (kill the node of that raylet, at once) and answers with a line of JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import json
import secrets
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = {"object_store_memory": 80 * 2**20, "memory": 8 * 2**30}
SIOCSIFFLAGS, UP_AND_RUNNING = 0x8914, 0x1 | 0x40  # of Linux: sets flags of a network device
CLONE_NEWNET = 0x40000000
PATIENCE_S = 60.0


def why_not() -> str:
    """Return why no cluster can be had here, or nothing."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed (pip install 'kdbench[ray]')"
    if shutil.which("unshare") is None:
        return "no unshare (of util-linux)"
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        return "no right to make a network namespace (unshare --net)"
    return ""


class Cluster:
    """The cluster, from outside.

    Args:
        folder: Of its sockets and logs; a short path, since names of sockets must be short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(folder),
            "RAY_prestart_worker_first_driver": "0",  # workers that no job needs
        }

    def start(self) -> None:
        """Start the head and both nodes, with the environment of this process."""
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", sys.executable, __file__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.address = self._answer()["address"]
        self.add_node()
        self.add_node()

    def stop(self) -> None:
        """Stop all of it."""
        self.process.communicate(timeout=PATIENCE_S)  # the end of its input is its end

    def add_node(self) -> None:
        """Start a node that may run a job."""
        self._tell("add")

    def lose_node(self, raylet: int) -> None:
        """Kill a node by the id of its own process, which is the parent of its workers."""
        self._tell(f"remove {raylet}")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be in the namespace, and with all processes started meanwhile."""
        with Path("/proc/thread-self/ns/net").open() as before:
            with Path(f"/proc/{self.process.pid}/ns/net").open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def _tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "log").read_text(encoding="utf-8")
        return json.loads(line)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no way into the namespace")


def parent(process: int) -> int:
    """Return the id of a process's parent."""
    return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def _bring_up_loopback() -> None:
    """Do what ``ip link set lo up`` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", UP_AND_RUNNING))


def _serve() -> None:
    from ray.cluster_utils import Cluster as Nodes

    _bring_up_loopback()
    nodes = Nodes(initialize_head=True, head_node_args={**SIZES, "num_cpus": 0})
    print(json.dumps({"address": nodes.address}), flush=True)
    for line in sys.stdin:
        order, _, process = line.strip().partition(" ")
        if order == "add":
            nodes.add_node(**SIZES, num_cpus=1)
        else:
            (lost,) = [node for node in nodes.worker_nodes if _raylet(node) == int(process)]
            nodes.remove_node(lost, allow_graceful=False)
        print(json.dumps({"nodes": len(nodes.worker_nodes)}), flush=True)
    nodes.shutdown()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


if __name__ == "__main__":
    _serve()
