"""kdbench plan and run --dry-run: what would be done, and everything that is wrong with a command at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commandline import Place, failure, installed, kdbench, snapshot, write_plugin

from kdbench.seal import unsealed
from kdbench.training.runtime import PhaseTime, RunTime
from kdbench.training.work import Work

SMOKE = ("--pair", "tiny", "--anchor", "fair_baseline_smoke", "--per-class", 20)
PICKY = """
import kdbench
from kdbench.methods.vanilla_kd import VanillaKD

class Picky(VanillaKD):
    name = "picky"
    baseline = False

    @classmethod
    def supports(cls, pair):
        return f"needs as many stages in the student as pixels ({pair.image})"

class Broken(VanillaKD):
    name = "broken"
    baseline = False

    @classmethod
    def supports(cls, pair):
        raise KeyError("stage")

@kdbench.hookimpl
def kdbench_methods():
    return [Picky, Broken]
"""


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Time stands still: a run takes 5 minutes, 2 more with a teacher, and a worker's start 6. Says what was asked."""
    measured = []

    def measure(work: Work, _device: torch.device) -> RunTime:
        measured.append((work.spec.student, work.method.name))
        return RunTime((PhaseTime("main", 240.0, 60.0 + 120.0 * len(work.spec.teachers)),))

    monkeypatch.setattr("kdbench.training.forecast.time_run", measure)
    monkeypatch.setattr("kdbench.execution.walltime.start_seconds", lambda: 360.0)
    monkeypatch.setattr("kdbench.training.environment.Machine.base_memory", lambda _self: 3 << 29)
    monkeypatch.setattr("kdbench.training.devices.free_memory", lambda _device: 10 << 30)
    return measured


def test_plan_shows_cells_missing_teachers_time_and_memory(asked: list[tuple[str, str]]) -> None:
    words = ("--method", "student,vanilla_kd", *SMOKE, "--seed-list", "0,3", "--threads", 1, "--device", "cpu")
    outcome = kdbench("plan", *words)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["pair", "dataset", "method", "options", "seeds", "state", "time/run", "memory"]
    assert [line.split() for line in lines[2:4]] == [
        ["tiny", "digits-20pc", "student", "0,3", "2", "to", "do", "5", "min", "1.5", "GiB"],
        ["tiny", "digits-20pc", "vanilla_kd", "0,3", "2", "to", "do", "7", "min", "1.5", "GiB"],
    ]
    name = "resnet14_w8-fair_baseline_smoke-v1-seed0"
    assert lines[4] == f"teacher missing: {name} for digits-20pc (trained first, 5 min)"
    assert lines[5].startswith("4 runs, 4 to do: 1,440 student images, ")
    assert lines[5].endswith(" PFLOP of training, at most 1.5 GiB per run")
    assert lines[6] == (
        "lanes: up to 2 runs per worker, estimated 1.5 GiB of a budget of 7.0 GiB (70 % of what is free)"
    )
    # A worker for the teacher; one for each seed, whose two runs share 3 minutes of batches and teacher passes.
    times = "45 min = 11 min for missing teachers + 34 min for runs"
    assert lines[7:] == [
        f"time on cpu with 1 job of 1 thread: {times}",
        "teacher cache on tiny: student: live, the shared teachers are not asked",
        "teacher cache on tiny: vanilla_kd: live, the anchor mixes images, so no input comes twice",
    ]
    # Once each, for all four runs.
    assert sorted(asked) == [
        ("resnet14_w8", "supervised"), ("resnet8_w4", "student"), ("resnet8_w4", "vanilla_kd"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--jobs", 2),
            "2 jobs of 1 thread: 28 min = 11 min for missing teachers + 17 min for runs",
        ),
        (
            ("--lanes", 1),
            "1 job of 1 thread: 59 min = 11 min for missing teachers + 48 min for runs",
        ),
    ],
)
def test_the_time_of_a_plan_is_that_of_its_workers(words: tuple[object, ...], line: str) -> None:
    cells = ("--method", "student,vanilla_kd", *SMOKE, "--seed-list", "0,3", "--threads", 1, "--device", "cpu")
    outcome = kdbench("plan", *cells, *words)
    assert outcome.out.splitlines()[7] == f"time on cpu with {line}"
    assert kdbench("run", "--dry-run", *cells, *words) == outcome
    inline = kdbench("run", "--dry-run", *cells, "--executor", "inline").out.splitlines()[7]
    assert inline.endswith(": 27 min = 5 min for missing teachers + 22 min for runs"), "no worker has to start"


def test_plan_without_measuring(asked: list[tuple[str, str]]) -> None:
    words = ("--method", "student,vanilla_kd", *SMOKE, "--seeds", 1, "--no-measure")
    lines = kdbench("plan", *words).out.splitlines()
    assert [line.split()[-3:] for line in lines[2:4]] == [["-", "1.5", "GiB"]] * 2
    assert lines[4].endswith(" for digits-20pc (trained first)")
    assert len(lines) == 9
    assert asked == []
    assert kdbench("run", "--dry-run", *words).out.splitlines() == lines


def test_what_is_beyond_the_budget_is_marked(asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the cheapest run is measured then. Its step is 297,408 operations, a teacher's pass 829,056 more."""
    monkeypatch.setattr("kdbench.training.forecast.BUDGET", 0.0)
    lines = kdbench("plan", "--method", "student,vanilla_kd", *SMOKE, "--seeds", 1).out.splitlines()
    assert asked == [("resnet8_w4", "student")]
    assert lines[2].split()[-4:-2] == ["5", "min"]
    assert lines[3].split()[-4:-2] == ["~19", "min"]  # 300 * 1,126,464 / 297,408 seconds
    assert lines[4].endswith("(trained first, ~42 min)")  # 300 * 3 * 829,056 / 297,408 seconds
    assert ": ~" in lines[7]


def test_a_long_command_says_what_it_is_expected_to_take(
    asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--method", "student", *SMOKE, "--seeds", 1, "--threads", 1, "--device", "cpu", "--executor", "inline")
    short = kdbench("run", *words)
    assert short.code == 0, short
    assert "expected time" not in short.out
    assert asked == [], "it is over before measuring would pay off"
    monkeypatch.setattr("kdbench.cli.expecting.LEAST", 0.0)
    again = kdbench("run", *words)
    assert again.out.splitlines() == short.out.splitlines()[-1:], "nothing is left to do"
    unmeasured = kdbench("run", *words, "--no-measure", "--out", "second")
    assert (asked, "expected time" in unmeasured.out) == ([], False)
    long = kdbench("run", *words, "--out", "third").out.splitlines()
    assert long[1] == "expected time on cpu with 1 job of 1 thread: 5 min"
    assert asked == [("resnet8_w4", "student")]
    epochs = [line for line in long if ": loss " in line]
    assert len(epochs) == 2
    assert all(line.endswith(" s left") for line in epochs), "corrected: half of the 5 minutes passed at once"


LANES = ("plan", "--method", "student,vanilla_kd,dkd", *SMOKE, "--seeds", 1, "--no-measure", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "up to 3 runs per worker, estimated 1.5 GiB of a budget of 7.0 GiB (70 % of what is free)"),
        (("--lanes", "auto", "--jobs", 2), "up to 2 runs per worker, estimated 1.5 GiB of a budget of 3.5 GiB (70 % of "
                                           "what is free / 2 workers)"),
        (("--lanes", 1), "up to 1 run per worker, estimated 1.5 GiB of a budget of 7.0 GiB (70 % of what is free)"),
        (("--memory", 3), "up to 3 runs per worker, estimated 1.5 GiB of a budget of 3.0 GiB (--memory 3)"),
        (("--jobs", 8), "up to 1 run per worker, estimated 1.5 GiB of a budget of 896 MiB (70 % of what is free / 8 "
                        "workers); more than the budget: use fewer --jobs, or fewer --lanes"),
    ],
)  # fmt: skip
def test_plan_says_how_many_runs_go_together(words: tuple[object, ...], told: str) -> None:
    assert f"lanes: {told}" in kdbench(*LANES, *words).out.splitlines()


def test_memory_is_what_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs fit in 1537 MiB, of which the process has 1536 already."""
    monkeypatch.setattr("kdbench.execution.room.FREE_SHARE", 1.0)
    counts = []
    for free in (1 << 40, 3 << 29):
        monkeypatch.setattr("kdbench.training.devices.free_memory", lambda _device, free=free: free)
        counts.append(next(line for line in kdbench(*LANES).out.splitlines() if line.startswith("lanes: "))[:22])
    assert counts == ["lanes: up to 3 runs pe", "lanes: up to 1 run per"]


def test_a_budget_that_no_run_fits_or_no_device_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.training.devices.memory_of", lambda _device: 16 << 30)
    assert failure(*LANES, "--memory", 17) == "--memory 17: more GiB than a device has (16.0 GiB); lower it"
    assert failure(*LANES, "--memory", 4, "--jobs", 4).startswith(
        "--memory 4: leaves 1.0 GiB for each worker, run fair_baseline_smoke-v1/digits-20pc/tiny/"
    )
    said = failure("run", *LANES[1:-3], "--memory", 1)
    assert said.endswith("/seed0 alone is estimated to need 1.5 GiB; give more, or use fewer --jobs")
    assert list(Path().iterdir()) == []


def test_dry_run_is_plan_and_writes_nothing() -> None:
    words = ("--method", "student,dkd", *SMOKE, "--seeds", 1, "--set", "dkd.beta=3.5")
    dry = kdbench("run", "--dry-run", *words)
    assert dry == kdbench("plan", *words)
    assert "alpha=1, beta=3.5, warmup=0.0833333" in dry.out
    assert list(Path().iterdir()) == []


def test_dry_run_says_what_the_command_would_do_with_failed_and_damaged_runs(finished: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    shutil.copytree(finished.runs, place.runs)
    shutil.copytree(finished.teachers, place.teachers)
    record = place.folder("student") / "record.json"
    tree, _ = unsealed(json.loads(record.read_text(encoding="utf-8")))
    record.write_text(json.dumps({**tree, "status": "infra_failed", "accuracy": None}), encoding="utf-8")
    (place.folder("student", 1) / "record.json").write_text("{", encoding="utf-8")
    before = snapshot(tmp_path)
    words = ("run", *place.cells("student", 2), "--dry-run", "--no-measure")
    assert "1 infra_failed, 1 to do (damaged record)" in kdbench(*words).out
    again = kdbench(*words, "--retry-failed").out
    assert "1 to do again, 1 to do (damaged record)" in again
    assert "2 runs, 2 to do: " in again
    assert snapshot(tmp_path) == before


def test_a_damaged_teacher_is_a_missing_one(finished: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    shutil.copytree(finished.teachers, place.teachers)
    (weights,) = place.teachers.rglob("weights.safetensors")
    words = ("run", *place.cells("vanilla_kd", 1), "--dry-run", "--no-measure")
    assert "teacher missing" not in kdbench(*words, "--no-train-teachers").out
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "teacher missing: resnet14_w8-proto-v3-seed0 for digits-20pc (trained first)" in kdbench(*words).out
    said = failure(*words, "--no-train-teachers")
    assert said.startswith(
        "teachers missing: resnet14_w8-proto-v3-seed0 for digits-20pc; leave out --no-train-teachers"
    )


def test_a_list_may_come_in_pieces() -> None:
    words = ("--anchor", "fair_baseline_smoke", "--per-class", 20, "--no-measure")
    pieces = ("--method", "student", "--method", "dkd", "--pair", "tiny", "--seed-list", 3, "--seed-list", 5)
    assert kdbench("plan", *pieces, *words) == kdbench(
        "plan", "--method", "student,dkd", "--pair", "tiny", "--seed-list", "3,5", *words
    )


def test_default_is_five_seeds() -> None:
    assert " 0,1,2,3,4  5 to do" in kdbench("plan", "--method", "student", *SMOKE).out


def test_cells_that_do_not_fit_are_skipped_with_their_reason(tmp_path: Path) -> None:
    with installed(write_plugin(tmp_path / "site", "picky_methods", PICKY)):
        outcome = kdbench("plan", "--method", "student,picky,broken", *SMOKE, "--seeds", 1)
        assert "1 runs, 1 to do" in outcome.out
        assert "skipped picky on tiny: needs as many stages in the student as pixels (1x8x8)" in outcome.out
        assert "skipped broken on tiny: its supports() failed: KeyError: 'stage'" in outcome.out
        assert failure("run", "--method", "picky", *SMOKE) == (
            "nothing to run: picky on tiny: needs as many stages in the student as pixels (1x8x8)"
        )
        assert "skipped picky" in kdbench("plan", "--method", "all", *SMOKE).out


def test_all_problems_at_once() -> None:
    message = failure(
        "run", "--method", "student,vanila_kd,dkdd", "--pair", "tinny,tiny", "--anchor", "fair_baseline_smok",
        "--seed-list", "1,1", "--set", "student.alpha", "--set", "dkd.beta=2", "--set", "dkdd.beta=2",
        "--device", "tpu",
    )  # fmt: skip
    assert message.splitlines() == [
        "--seeds: [1, 1]: give at least one seed, each >= 0 and only once",
        "unknown anchor 'fair_baseline_smok'. Did you mean 'fair_baseline_smoke'? All: kdbench list anchors",
        "--method: unknown method 'vanila_kd'. Did you mean 'vanilla_kd'? All: kdbench list methods",
        "--method: unknown method 'dkdd'. Did you mean 'dkd'? All: kdbench list methods",
        "--pair: unknown pair 'tinny'. Did you mean 'tiny'? All: kdbench list pairs",
        "--set student.alpha: not of the form METHOD.OPTION=VALUE",
        "--set dkd.beta=2: method 'dkd' is not in this command; add it to --method",
        "--set dkdd.beta=2: unknown method 'dkdd'. Did you mean 'dkd'? All: kdbench list methods",
        "--device tpu: no such device; allowed: auto, cpu, cuda, cuda:N",
    ]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("setting", ["dkd.tau=3", "loss.tau=3", "anchor.loss.tau=3"])
def test_a_locked_key_names_both_values_and_the_anchors_file(setting: str) -> None:
    message = failure("plan", "--method", "dkd", *SMOKE, "--set", setting)
    assert message.startswith(f"--set {setting}: loss.tau is 3, but anchor fair_baseline_smoke-v1")
    assert "fair_baseline_smoke.yaml" in message
    assert "locks it at 4.0" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "dkd.betta=2"], "--set dkd.betta=2: method 'dkd' has no option 'betta'. Did you mean 'beta'?"),
        (["--set", "dkd.beta=-1"], "beta is -1: input should be greater than or equal to 0"),
        (["--set", "dkd.beta=much"], "beta is 'much': input should be a valid number"),
        (["--set", "dkd.beta=[1"], "--set dkd.beta=[1: the value is not a YAML scalar or list"),
        (["--set", "dkd.beta="], "--set dkd.beta=: not of the form METHOD.OPTION=VALUE"),
        (["--set", "schedule.epochs=1"], "schedule.epochs is 1, but anchor fair_baseline_smoke-v1"),
        (["--seeds", 2, "--seed-list", "0,1"], "--seeds and --seed-list exclude each other; give one"),
        (["--seed-list", "0,one"], "--seed-list 0,one: not a list of integers such as 0,3,7"),
        (["--seed-list", "3000000000"], "3000000000"),
        (["--seed-list", "0,-1"], "--seeds: [0, -1]: give at least one seed, each >= 0 and only once"),
        (["--seed-list", ""], "--seeds: []: give at least one seed"),
        (["--seeds", 0], "Invalid value for '--seeds'"),
        (["--device", "cuda:97"], "--device cuda:97: this machine has"),
        (["--device", "cuda:-1"], "--device cuda:-1: no such device"),
        (["--device", "cpu,cpu"], "--device cpu,cpu: names a device twice; name each once, and let --jobs share them"),
        (["--lanes", "some"], "Invalid value for '--lanes': 'some' is not a valid integer range."),
        (["--lanes", 0], "Invalid value for '--lanes': 0 is not in the range x>=1."),
        (["--memory", 0], "Invalid value for '--memory': 0.0 is not in the range x>0."),
        (["--jobs", 0], "Invalid value for '--jobs' / '--max-concurrent': 0 is not in the range x>=1."),
        (["--device", "mps"], "--device mps: not supported; allowed: auto, cpu, cuda, cuda:N"),
        (["--per-class", 0], "Invalid value for '--per-class': 0 is not in the range x>=1."),
        (["--per-class", 120], "--per-class 120: dataset 'digits' has 1198 training images in 10 classes, at most 119"),
        (["--dataset", "npz:no/such.npz"], "npz:no/such.npz: no such file"),
        (["--dataset", "npz"], "dataset 'npz': needs a path; write npz:PATH"),
        (["--dataset", "digits:x"], "dataset 'digits:x': 'digits' takes no path; write digits"),
        (["--dataset", "digit"], "unknown dataset 'digit'. Did you mean 'digits'? All: kdbench list datasets"),
        (["--anchor", "mine.yaml"], "mine.yaml: cannot be read (No such file or directory); check the path"),
        (["--teacher", "a,b"], "--teacher: 2 given, pair 'tiny' has 1: resnet14_w8"),
        (["--teacher", "nobody"], "teacher 'nobody' for dataset 'digits-20pc': not in teachers."),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_one_problem(command: str, words: list[object], message: str) -> None:
    assert message in failure(command, "--method", "dkd", *SMOKE, *words)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("words", [["--method", ",", "--pair", "tiny"], ["--method", "student", "--pair", ""]])
def test_an_empty_list_is_no_plan(words: list[str]) -> None:
    message = failure("plan", *words)
    assert message != "nothing to run: "
    assert ("--method" if "," in words else "--pair") in message


def test_a_student_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.cli.planning.memory_of", lambda _device: 2**20)
    message = failure("run", "--method", "student,dkd", *SMOKE, "--seeds", 3)
    assert len(message.splitlines()) == 1
    assert message.startswith("pair 'tiny': training student 'resnet8_w4' beside 'resnet14_w8' needs at least ")
    assert message.endswith(
        " GiB, this device has 0.0; choose a smaller pair, an anchor with step.accumulate, or another --device"
    )
    monkeypatch.setattr("kdbench.cli.planning.memory_of", lambda _device: 2**30)
    assert kdbench("run", "--method", "student", *SMOKE, "--dry-run").code == 0
