"""A real SLURM on this machine, for tests: one controller, two nodes of one core, two partitions of which one preempts.

Nothing outside its folder is touched, all daemons listen on 127.0.0.1 alone, and they end with the fixture.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PATIENCE_S = 150.0  # a machine that does other work, too, takes long
CONF = """
ClusterName=kdbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
JobRequeue=1
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=32000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=32000
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10
"""


def why_not() -> str:
    """Return why no cluster can be had here, or nothing."""
    if missing := [name for name in DAEMONS if shutil.which(name) is None]:
        return f"no {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "needs root"


def until(done: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


@dataclass
class Cluster:
    """The daemons and what is asked of them.

    Args:
        folder: Their files; a short path, since there is a socket in it.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        port, first, second = _free_ports(3)
        text = CONF.format(host=socket.gethostname(), folder=self.folder, port=port, first=first, second=second)
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        munge = [
            f"--{name}={self.folder}/munge.{name.partition('-')[0]}" for name in ("pid-file", "log-file", "seed-file")
        ]
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.sock", *munge
        )
        until((self.folder / "munge.sock").exists, "munged")
        self._daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Start a node and wait until it is idle."""
        self._daemon("slurmd", "-D", "-N", node, name=node)
        until(
            lambda: self.ask("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%t").split()[:1] == ["idle"],
            node,
        )

    def lose_node(self, node: str) -> None:
        """Kill a node with all that runs on it, as a power cut would, and let the controller know."""
        slurmd = self.daemons.pop(node)
        for process in [*_descendants(slurmd.pid), *self._steps(node)]:
            _kill(process)
        slurmd.wait()
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def stop(self) -> None:
        """End all jobs and all daemons."""
        self.ask("scancel", "--user=root", "--signal=KILL", "--full")
        self.ask("scancel", "--user=root")
        for node in ("n1", "n2"):
            if node in self.daemons:
                for process in self._steps(node):
                    _kill(process)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *words: str) -> str:
        """Run a command of SLURM and return what it prints, be it only that it failed."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False)
        return done.stdout

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return state and node of each job in the queue."""
        rows = [
            line.split("|") for line in self.ask("squeue", "--noheader", "--array", "--format=%i|%T|%N").splitlines()
        ]
        return {job: (state, node) for job, state, node in rows}

    def hurry(self) -> None:
        """Let jobs that were queued again start now; SLURM makes them wait for two minutes."""
        for job, (state, _) in self.jobs().items():
            if state == "PENDING":
                self.ask("scontrol", "update", f"jobid={job}", "StartTime=now")

    def _daemon(self, *words: str, name: str = "") -> None:
        with (self.folder / f"{name or words[0]}.said").open("wb") as said:
            self.daemons[name or words[0]] = subprocess.Popen(
                words, stdout=said, stderr=said, env={**os.environ, **self.environment}, start_new_session=True
            )

    def _steps(self, node: str) -> list[int]:
        """Return the processes of jobs on a node: their parents have left slurmd."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                values = path.read_bytes().split(b"\0")
            except OSError:
                continue
            ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
            if ours in values and f"SLURMD_NODENAME={node}".encode() in values:
                found.append(int(path.parent.name))
        return [step for process in found for step in (*_ancestors(process), process)]


def _ancestors(process: int) -> list[int]:
    """Return the slurmstepds above a process."""
    found = []
    while process > 1:
        fields = _stat(process)
        if fields is None:
            break
        if fields[0].startswith("slurmstepd"):
            found.append(process)
        process = int(fields[2])
    return found


def _descendants(process: int) -> list[int]:
    children = [
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if (found := _stat(int(path.name))) and int(found[2]) == process
    ]
    return [process, *(grandchild for child in children for grandchild in _descendants(child))]


def _stat(process: int) -> tuple[str, str, str] | None:
    """Return name, state and parent of a process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return name, state, parent


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
