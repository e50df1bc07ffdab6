"""A real SLURM preempts, kills and loses nodes, while no command of ours watches."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import Place, finish, kdbench, start
from contract import ALONE, Engine, Held, acts, attempts, check_equal, kill
from slurm_cluster import Cluster, until


@pytest.fixture
def alone(cluster: Cluster, tmp_path: Path) -> Held:
    """Return a run that stands still on a node, whose command has been killed."""
    words = ("--executor", "slurm", "--device", "cpu", "--executor-option", "poll=0.2")
    with acts(tmp_path / "acts"):
        held = Held(Place(tmp_path), Engine("slurm", words), tmp_path / "acts")
        kill(held.begin())
        yield held
        (tmp_path / "acts" / "hold").unlink(missing_ok=True)


def running(cluster: Cluster) -> tuple[str, str]:
    """Return our only running job, and its node."""
    ((job, node),) = [(job, node) for job, (state, node) in cluster.jobs().items() if state == "RUNNING"]
    return job, node


def queued_again(cluster: Cluster) -> bool:
    return any(state == "PENDING" for state, _ in cluster.jobs().values())


def stands_still_again(alone: Held, cluster: Cluster) -> None:
    (alone.acts / ALONE).unlink()
    cluster.hurry()
    alone.await_standstill()


def test_a_cluster_takes_back_its_node_in_three_ways_and_nobody_is_there(
    alone: Held, cluster: Cluster, undisturbed: Place
) -> None:
    told_of_the_end(alone, cluster)
    preempted(alone, cluster)
    lost = running(cluster)[1]
    cluster.lose_node(lost)
    try:
        until(lambda: queued_again(cluster), "what follows the loss of a node")
        stands_still_again(alone, cluster)
        assert running(cluster)[1] != lost
        outcome = alone.go_on()
    finally:
        cluster.start_node(lost)
    assert outcome.code == 0, outcome
    assert attempts(alone.place, ALONE) == ["Interrupted", "Interrupted", "killed", "ok"]
    check_equal(alone.place, undisturbed, ALONE)


def told_of_the_end(alone: Held, cluster: Cluster) -> None:
    """Do what a preemption does on clusters that send SIGTERM alone: some time later, the job is ended and queued."""
    job, _ = running(cluster)
    cluster.ask("scancel", "--signal=TERM", job)
    until(lambda: not alone.folder.held(), "the worker to save")
    assert running(cluster)[0] == job, "it would count as finished"
    cluster.ask("scontrol", "requeue", job)
    until(lambda: queued_again(cluster), "the queue")
    stands_still_again(alone, cluster)


def preempted(alone: Held, cluster: Cluster) -> None:
    """Let another job take its node; the worker is told with SIGUSR2, as before a time limit."""
    _, node = running(cluster)
    urgent = cluster.ask(
        "sbatch", "--parsable", "--partition=high", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 1"
    )
    until(lambda: queued_again(cluster) and urgent.strip() not in cluster.jobs(), "the preemption")
    stands_still_again(alone, cluster)


def test_what_somebody_cancels_is_not_put_back(cluster: Cluster, tmp_path: Path) -> None:
    words = ("--executor", "slurm", "--device", "cpu", "--executor-option", "poll=0.2")
    with acts(tmp_path / "acts"):
        held = Held(Place(tmp_path), Engine("slurm", words), tmp_path / "acts")
        command = held.begin()
        cluster.ask("scancel", *cluster.jobs())
        ended = finish(command)
    assert ended.code == 4, ended
    assert "has ended (CANCELLED)" in ended.err
    assert "start the same command again to go on" in ended.err
    assert not cluster.jobs()
    with acts(tmp_path / "acts"):
        outcome = held.go_on()
    assert outcome.code == 0, outcome
    assert attempts(held.place, ALONE) == ["Interrupted", "ok"], "it had saved"


def test_what_is_cancelled_in_the_queue_leaves_it(cluster: Cluster, tmp_path: Path) -> None:
    with acts(tmp_path / "acts"):
        held = Held(Place(tmp_path), Engine("slurm", ()), tmp_path / "acts")
        (held.acts / "hold").touch()
        words = ("--lanes", 1, "--jobs", 1, "--threads", 1, "--executor", "slurm", "--device", "cpu")
        command = start("run", *held.place.cells(ALONE, 2), *words, "--executor-option", "poll=0.2")
        held.await_standstill(command)
        assert queued_again(cluster)
        waiting = held.place.folder(ALONE, 1)
        kdbench("cancel", held.place.runs, waiting.relative_to(held.place.runs))
        until(lambda: not queued_again(cluster), "the end of what was cancelled")
        assert len(cluster.jobs()) == 1, "the other one goes on"
        (held.acts / "hold").unlink()
        outcome = finish(command)
    assert outcome.code == 75, outcome
    assert "CANCELLED" not in outcome.err
    assert not (waiting / "attempts.json").exists()
