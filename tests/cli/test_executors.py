"""--executor: any registered engine by its name, strangers' too, and what is wrong is said before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import Place, failure, installed, kdbench, write_plugin

GUEST = '''
"""An engine of a stranger, as an adapter of Dask would be: a pool runs the command of each job."""

import subprocess
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import kdbench
from kdbench.engine import Engine, ResourceOptions
from kdbench.execution.events import Event
from kdbench.execution.jobs import Ended, Job
from kdbench.execution.seam import Opening


class PoolOptions(ResourceOptions):
    """Options of the engine."""

    log: str = "pool.log"


class PoolExecutor:
    """Runs jobs in a pool."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.pool = ThreadPoolExecutor(opening.jobs)
        self.jobs: dict[Future[subprocess.CompletedProcess[str]], Job] = {}

    def submit(self, job: Job) -> None:
        needs = self.opening.options.over(self.opening.needs(job))
        with Path(self.opening.options.log).open("a") as log:
            print(job.name, needs.gpus, needs.cpus, needs.memory // 2**30, needs.seconds, file=log)
        words = job.command(self.opening.settings, self.opening.settings.devices[0])
        future = self.pool.submit(subprocess.run, words, capture_output=True, text=True, check=False)
        self.jobs[future] = job

    def knows(self, job: Job) -> bool:
        return False

    @property
    def running(self) -> int:
        return len(self.jobs)

    def wait(self, seconds: float | None = None) -> Ended | None:
        ended = wait(self.jobs, seconds, FIRST_COMPLETED).done
        if not ended:
            return None
        done = ended.pop()
        job, result = self.jobs.pop(done), done.result()
        for line in result.stdout.splitlines():
            if event := Event.from_line(line):
                self.opening.on_event(event)
        return Ended(job, result.returncode, result.stderr)

    def cancel(self) -> None:
        for future in self.jobs:
            future.cancel()

    def close(self) -> None:
        self.pool.shutdown()
        with Path(self.opening.options.log).open("a") as log:
            print("closed", file=log)


@kdbench.hookimpl
def kdbench_executors() -> list[Engine]:
    return [
        Engine("pool", "a pool of threads", PoolExecutor, PoolOptions, where="cluster", jobs=3),
        Engine("needy", "what is not there", PoolExecutor, packages=("not_there",), requirement="guest[all]"),
    ]
'''


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin(tmp_path_factory.mktemp("site"), "guest_engine", GUEST)


def words(place: Place, *more: object) -> list[object]:
    return ["run", *place.cells("student,vanilla_kd", 1), *more]


def test_a_strangers_engine_makes_the_same_runs(finished: Place, guest: Path, tmp_path: Path) -> None:
    place = Place(tmp_path).with_teachers_of(finished)
    how = ("--executor", "pool", "--executor-option", "time=7", "--executor-option", "log=said", "--lanes", 1)
    with installed(guest):
        outcome = kdbench(*words(place, *how, "--threads", 1, "--device", "cpu"))
    assert outcome.code == 0, outcome
    for method in ("student", "vanilla_kd"):
        assert f"tiny/{method}/seed0: " in outcome.out
        for name in ("student.safetensors", "predictions.npz", "spec.json"):
            mine, other = place.folder(method) / name, finished.folder(method) / name
            assert mine.read_bytes() == other.read_bytes(), (method, name)
    *jobs, closed = Path("said").read_text().splitlines()
    assert closed == "closed"
    assert [line.split()[1].split("/")[3] for line in jobs] == ["student", "vanilla_kd"]
    for line in jobs:
        gpus, cpus, memory, seconds = line.split()[2:]
        assert (gpus, cpus, seconds) == ("0", "1", "420.0"), "one thread, and the option's 7 minutes"
        assert 2 <= int(memory) <= 8


def test_engines_are_listed_and_shown(guest: Path) -> None:
    with installed(guest):
        listed = kdbench("list", "executors").out.splitlines()
        shown, needy = kdbench("show", "pool").out, kdbench("show", "needy").out
    rows = {line.split()[0]: line for line in listed[2:]}
    assert {"inline", "local", "slurm", "pool", "needy"} <= set(rows)
    assert "not_there" in rows["needy"]
    assert rows["pool"].split()[-2:] == ["yes", "guest_engine"]
    assert shown.startswith("executor pool (guest_engine 1.0): a pool of threads\n")
    assert "wall time of a job in minutes" in shown
    assert "not installed: not_there; pip install 'guest[all]'" in needy
    slurm = kdbench("show", "slurm").out
    assert "partition" in slurm
    assert "seconds between two looks at the queue" in slurm


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["--executor", "loc"], "unknown executor 'loc'. Did you mean 'local'? All: kdbench list executors"),
        (
            ["--executor", "needy"],
            "--executor needy: needs not_there, which is not installed; pip install 'guest[all]'",
        ),
        (
            ["--executor", "pool", "--device", "auto"],
            "--device auto: workers of this executor run on other machines, each with devices of its own; say which "
            "kind: --device cpu or --device cuda",
        ),
        (
            ["--executor-option", "time=3"],
            "--executor-option of 'local': time: unknown key. Allowed: ",
        ),
        (["--executor", "pool", "--executor-option", "cpus"], "--executor-option cpus: not of the form KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(how: list[str], message: str, guest: Path, tmp_path: Path) -> None:
    place = Place(tmp_path)
    with installed(guest):
        said = failure(*words(place, *how))
    assert said.startswith(message)
    assert not place.runs.exists()


def test_no_gpu_has_to_be_here_for_workers_elsewhere_to_have_one(guest: Path, tmp_path: Path) -> None:
    place = Place(tmp_path)
    with installed(guest):
        outcome = kdbench(
            *words(place, "--executor", "pool", "--device", "cuda", "--dry-run", "--executor-option", "cpus=6")
        )
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines()[-1] == (
        "each job asks for at most 1 GPUs, 6 cores, 3.0 GiB and 30 minutes; --executor-option says otherwise"
    )
    assert "of a budget of 16.0 GiB (unless --memory says what a device has)" in outcome.out
    assert "time on" not in outcome.out, "nothing can be measured here"


@pytest.mark.parametrize("name", ["--max-concurrent", "--jobs"])
def test_max_concurrent_is_another_name_of_jobs(name: str, tmp_path: Path) -> None:
    cells = words(Place(tmp_path), "--device", "cpu", "--threads", 1, "--dry-run", "--no-measure")
    assert "of what is free / 3 workers)" in kdbench(*cells, name, 3).out


def test_slurm_is_looked_for_before_anything_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.engine.Engine.missing", lambda _self: "")
    monkeypatch.setattr("shutil.which", lambda _name: None)
    said = failure(*words(Place(tmp_path), "--executor", "slurm", "--device", "cpu", "--threads", 1))
    assert said.startswith(
        "--executor slurm: sbatch, squeue, scancel, scontrol not found; start kdbench on a login node"
    )
    assert not list(tmp_path.rglob("spec.json"))
