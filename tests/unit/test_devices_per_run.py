"""Several devices per run: which ones each worker gets, what its command says, and how its processes' ends are told."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.cli.workers import Workers, workers_of
from kdbench.errors import ConfigError
from kdbench.execution import members
from kdbench.execution.jobs import Job, Settings, runs_job
from kdbench.execution.torchrun import _end_as

GPUS = tuple(torch.device("cuda", index) for index in range(5))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(GPUS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_each_worker_has_so_many_devices() -> None:
    assert Workers(GPUS, 2, 1, 1, None, per_run=2).places == ("cuda:0,cuda:1", "cuda:2,cuda:3")
    assert Workers(GPUS[:2], 2, 1, 1, None).places == ("cuda:0", "cuda:1")
    assert Workers((torch.device("cpu"),), 2, 1, 1, None, per_run=3).places == ("cpu",)


def test_workers_and_threads_by_default(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.cli.workers.available_threads", lambda: 12)
    several = workers_of("auto", None, None, None, None, per_run=2)
    assert (several.devices, several.jobs, several.threads, several.lanes) == (GPUS, 2, 3, 1)
    assert str(several) == "2 jobs of 2 devices with 3 threads"
    on_cpu = workers_of("cpu", None, None, None, None, per_run=4)
    assert (on_cpu.jobs, on_cpu.threads) == (1, 3)
    with pytest.raises(ConfigError, match=r"--devices-per-run 6: --device cuda is 5 GPUs; name more, or use fewer"):
        workers_of("cuda", None, None, None, None, per_run=6)


def test_members_have_the_first_devices_of_those_named(gpus: None) -> None:
    assert members.devices_of_team("cuda:3,cuda:1,cuda:0", 2) == (GPUS[3], GPUS[1])
    assert members.devices_of_team("auto", 3) == GPUS[:3]
    assert members.devices_of_team("cpu", 2) == (torch.device("cpu"),) * 2


def test_the_command_of_a_run_and_of_a_teacher() -> None:
    settings = Settings(Path("runs"), Path("teachers"), Path("data"), ("cuda:0,cuda:1",), 1, devices_per_run=2)
    run = runs_job(["a/b/c/d/seed0"], settings.store).command(settings, settings.devices[0])
    assert run[run.index("--device") + 1] == "cuda:0,cuda:1"
    assert run[run.index("--devices-per-run") + 1] == "2"
    teacher = Job("teacher", ("teacher", "train", "x")).command(settings, settings.devices[0])
    assert teacher[teacher.index("--device") + 1] == "cuda:0"
    assert "--devices-per-run" not in teacher


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([75, 75], 75), ([74, 65], 65), ([74], 74), ([2, 2], 2), ([74, -9], -9), ([-15, 74], -15)],
)
def test_the_end_of_a_team_is_that_of_whoever_did_not_just_lose_another(
    codes: list[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda _process, number: sent.append(number))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert _end_as(codes) == expected
    assert sent == ([-expected] if expected < 0 else [])


def test_the_leader_alone_says_what_all_find(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Any:
        with members.one_voice():
            raise ConfigError("no such dataset")

    with pytest.raises(ConfigError):
        find()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        find()
    assert end.value.code == 2
    with pytest.raises(members.Fallen), members.one_voice():
        raise members.Fallen("run x: on device 1 of 2: ValueError: no")
