"""Names of devices, what memory they have free, and how workers are spread over them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kdbench.cli.workers import Workers, room_for, workers_of
from kdbench.errors import ConfigError
from kdbench.execution.events import Event
from kdbench.execution.jobs import Job, Settings
from kdbench.execution.local import LocalExecutor, free_slot
from kdbench.plan import Plan
from kdbench.training.devices import free_memory, memory_of, resolve_devices

CPU = torch.device("cpu")


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let this machine have so many GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)


@pytest.mark.parametrize(
    ("names", "count", "expected"),
    [
        ("auto", 0, ("cpu",)),
        ("cpu", 4, ("cpu",)),
        ("auto", 4, ("cuda:0",)),
        ("cuda", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda:2", 3, ("cuda:2",)),
        ("cuda:1,cuda:0", 2, ("cuda:1", "cuda:0")),
        ("cuda:1, cuda", 2, ("cuda:1", "cuda:0")),
    ],
)
def test_names(names: str, count: int, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, count)
    assert tuple(map(str, resolve_devices(names))) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cpu,cpu", "--device cpu,cpu: names a device twice; name each once, and let --jobs share them"),
        ("cuda:1,cuda:1", "names a device twice"),
        ("cuda,cuda:0", "names a device twice"),
        ("cpu,cuda:0", "--device cpu,cuda:0: devices of two types, and results depend on the type"),
        ("cuda:0,cuda:2", "--device cuda:2: this machine has 2 CUDA devices"),
        ("cuda:0,", "no such device"),
        ("cuda:0,mps", "--device mps: not supported"),
    ],
)
def test_wrong_names(names: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    with pytest.raises(ConfigError, match=message):
        resolve_devices(names)


def test_gpus_on_a_machine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match="--device cuda: this machine has 0 CUDA devices"):
        resolve_devices("cuda")


# --- free memory ------------------------------------------------------------------------------------------------------


def system(root: Path, available: str = "", **group: str) -> Path:
    """Write what a system says of its memory."""
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 900 kB\n{available}\n", encoding="ascii")
    folder = root / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    for name, text in group.items():
        (folder / f"memory.{name}").write_text(text, encoding="ascii")
    return root


def test_free_memory_is_what_the_system_says(tmp_path: Path) -> None:
    assert free_memory(CPU, system(tmp_path, "MemAvailable:   600 kB")) == 600 * 1024


def test_a_container_may_allow_less_and_its_file_cache_is_free(tmp_path: Path) -> None:
    group = {"max": "500000\n", "current": "300000\n", "stat": "anon 1\ninactive_file 40000\nslab 3\n"}
    assert free_memory(CPU, system(tmp_path, "MemAvailable: 600 kB", **group)) == 240_000


@pytest.mark.parametrize("group", [{"max": "max\n", "current": "5\n"}, {"max": "500000\n"}, {"max": "", "current": ""}])
def test_a_container_without_a_limit(tmp_path: Path, group: dict[str, str]) -> None:
    assert free_memory(CPU, system(tmp_path, "MemAvailable: 600 kB", **group)) == 600 * 1024


def test_a_container_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    assert free_memory(CPU, system(tmp_path, "MemAvailable: 600 kB", max="5\n", current="7\n")) == 0


@pytest.mark.parametrize("text", ["", "MemAvailable:", "MemAvailable: much kB"])
def test_a_system_that_says_nothing_has_all_its_memory(tmp_path: Path, text: str) -> None:
    assert free_memory(CPU, system(tmp_path, text)) == memory_of(CPU)


def test_a_gpu_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 + device.index, 900))
    assert free_memory(torch.device("cuda", 1)) == 101


# --- slots ------------------------------------------------------------------------------------------------------------


def test_the_device_with_the_fewest_workers_is_next() -> None:
    assert free_slot(("a", "b"), []) == "a"
    assert free_slot(("a", "b"), ["a"]) == "b"
    assert free_slot(("a", "b"), ["a", "b", "b"]) == "a"


def test_workers_are_spread_over_the_devices_and_places_are_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that say where they were sent, and wait until they may end."""
    work = (
        "import json, sys, time; from pathlib import Path; name, device, threads = sys.argv[1:4]\n"
        "print(json.dumps({'kind': 'warning', 'data': {'message': f'{name} {device} {threads}'}}), flush=True)\n"
        "while not Path(name).exists(): time.sleep(0.01)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = Job.command

    def worker(self: Job, settings: Settings, device: str) -> list[str]:
        words = command(self, settings, device)
        given = dict(pairwise(words))
        return [words[0], "-c", work, self.name, given["--device"], given["--threads"]]

    monkeypatch.setattr(Job, "command", worker)
    said: list[str] = []

    def see(event: Event) -> None:
        said.append(event.data["message"])

    settings = Settings(tmp_path, tmp_path, tmp_path, ("cuda:0", "cuda:1"), 3)
    engine = LocalExecutor(settings, see)
    for name in ("a", "b", "c"):
        engine.submit(Job(name, ()))
    (tmp_path / "b").touch()
    assert engine.wait().job.name == "b"
    engine.submit(Job("d", ()))  # where b was
    for name in ("a", "c", "d"):
        (tmp_path / name).touch()
    assert sorted(engine.wait().job.name for _ in range(3)) == ["a", "c", "d"]
    assert sorted(said) == ["a cuda:0 3", "b cuda:1 3", "c cuda:0 3", "d cuda:1 3"]


def test_workers_share_the_cores_and_by_default_each_device_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 3)
    monkeypatch.setattr("kdbench.cli.workers.available_threads", lambda: 8)
    for device, threads, jobs, expected in (
        ("cpu", None, None, (1, 8)),
        ("cpu", None, 3, (3, 2)),
        ("cpu", None, 9, (9, 1)),
        ("cpu", 5, 3, (3, 5)),
        ("cuda", None, None, (3, 2)),
        ("cuda", None, 4, (4, 2)),
        ("cuda:0,cuda:1", None, 1, (1, 8)),
    ):
        workers = workers_of(device, threads, jobs, None, None)
        assert (workers.jobs, workers.threads) == expected, (device, jobs)


@pytest.mark.parametrize(("jobs", "share"), [(1, 700), (2, 700), (3, 350), (4, 350), (5, 233)])
def test_workers_of_one_device_share_its_memory(jobs: int, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices, of which the fuller one counts."""
    monkeypatch.setattr("kdbench.training.devices.free_memory", lambda device: 1000 + 500 * device.index)
    workers = Workers((torch.device("cuda:0"), torch.device("cuda:1")), jobs, 1, None, None)
    assert room_for(workers, Plan(()), None).budget == share
