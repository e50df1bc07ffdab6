"""kdbench plan and run --dry-run: what would be done, and everything that is wrong with a command at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import failure, installed, kdbench, write_plugin

from kdbench.config.schema import Anchor
from kdbench.training.speed import Work

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
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Time stands still: a training step takes a second per image, a forward pass half of one. Says what was asked."""
    measured = []

    def measure(work: Work, _anchor: Anchor, _device: torch.device) -> float:
        measured.append((work.backbone.name, work.trains))
        return 1.0 if work.trains else 0.5

    monkeypatch.setattr("kdbench.training.forecast.measure", measure)
    monkeypatch.setattr("kdbench.training.environment.Machine.base_memory", lambda _self: 3 << 29)
    return measured


def test_plan_shows_cells_missing_teachers_time_and_memory(asked: list[tuple[str, bool]]) -> None:
    words = ("--method", "student,vanilla_kd", *SMOKE, "--seed-list", "0,3", "--threads", 1, "--device", "cpu")
    outcome = kdbench("plan", *words)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["pair", "dataset", "method", "options", "seeds", "state", "time/run", "memory"]
    # 2 epochs x 180 images: a tenth of 200 is held out. The teacher adds half of the time again.
    assert [line.split() for line in lines[2:4]] == [
        ["tiny", "digits-20pc", "student", "0,3", "2", "to", "do", "6", "min", "1.5", "GiB"],
        ["tiny", "digits-20pc", "vanilla_kd", "0,3", "2", "to", "do", "9", "min", "1.5", "GiB"],
    ]
    # Its training is not measured: three times 180 seconds of forward passes.
    name = "resnet14_w8-fair_baseline_smoke-v1-seed0"
    assert lines[4] == f"teacher missing: {name} for digits-20pc (trained first, ~9 min)"
    assert lines[5].startswith("4 runs, 4 to do: 1,440 student images, ")
    assert lines[5].endswith(" PFLOP of training, at most 1.5 GiB per run")
    assert lines[6] == (
        "time one after another (cpu, 1 thread): 30 min for runs + ~9 min for missing teachers; less where runs of a "
        "seed share their teachers' passes"
    )
    assert lines[7:] == [
        "teacher cache on tiny: student: live, the shared teachers are not asked",
        "teacher cache on tiny: vanilla_kd: live, the anchor mixes images, so no input comes twice",
    ]
    assert sorted(asked) == [("resnet14_w8", False), ("resnet8_w4", True)]  # once each, for all four runs


def test_plan_without_measuring(asked: list[tuple[str, bool]]) -> None:
    words = ("--method", "student,vanilla_kd", *SMOKE, "--seeds", 1, "--no-measure")
    lines = kdbench("plan", *words).out.splitlines()
    assert [line.split()[-3:] for line in lines[2:4]] == [["-", "1.5", "GiB"]] * 2
    assert lines[4].endswith(" for digits-20pc (trained first)")
    assert len(lines) == 8
    assert asked == []
    assert kdbench("run", "--dry-run", *words).out.splitlines() == lines


def test_what_is_beyond_the_budget_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the cheapest network is measured then. A second is 297,408 operations, the teacher needs 829,056."""
    monkeypatch.setattr("kdbench.training.forecast.BUDGET", 0.0)
    lines = kdbench("plan", "--method", "student,vanilla_kd", *SMOKE, "--seeds", 1).out.splitlines()
    assert lines[2].split()[-4:-2] == ["6", "min"]
    assert lines[3].split()[-4:-2] == ["~23", "min"]  # 360 * (1 + 2.788) seconds
    assert " ~29 min for runs + ~50 min for missing teachers" in lines[6]  # 360 * 3 * 2.788 seconds


def test_dry_run_is_plan_and_writes_nothing() -> None:
    words = ("--method", "student,dkd", *SMOKE, "--seeds", 1, "--set", "dkd.beta=3.5")
    dry = kdbench("run", "--dry-run", *words)
    assert dry == kdbench("plan", *words)
    assert "alpha=1, beta=3.5, warmup=0.0833333" in dry.out
    assert list(Path().iterdir()) == []


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
