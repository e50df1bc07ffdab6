"""kdbench merge: stores of several machines become one, each result once; what contradicts or is damaged is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, failure, kdbench, snapshot

from kdbench.artefacts import sha256_of
from kdbench.seal import unsealed

CELLS = Path("proto-v3/digits-20pc/tiny")
WEIGHTS = "student.safetensors"


@pytest.fixture
def halves(finished: Place) -> tuple[Path, Path]:
    """Return two stores: seed 0 of all methods, and seed 1."""
    for name, seed in (("one", 0), ("two", 1)):
        shutil.copytree(finished.runs, name, ignore=shutil.ignore_patterns(f"seed{1 - seed}"))
    return Path("one"), Path("two")


def run_in(store: Path, method: str = "dkd", seed: int = 0) -> Path:
    return store / CELLS / method / f"seed{seed}"


def change(path: Path, alter: Callable[[Any], None]) -> None:
    tree, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    alter(tree)
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def contents(store: Path) -> dict[str, bytes]:
    return {name: data for name, (_, data) in snapshot(store).items()}


def merged(*words: object) -> str:
    outcome = kdbench("merge", *words)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def test_two_halves_give_the_whole_and_the_same_board(halves: tuple[Path, Path], finished: Place) -> None:
    before = [snapshot(store) for store in halves]
    out = merged(*halves, "--out", "all")
    assert out.splitlines()[0] == f"copied {CELLS}/dkd/seed0 from {run_in(halves[0])}"
    assert out.splitlines()[-1] == "all: 6 copied, 0 there already, 0 damaged"
    assert contents(Path("all")) == contents(finished.runs)
    assert [snapshot(store) for store in halves] == before
    assert kdbench("leaderboard", "all").out == kdbench("leaderboard", finished.runs).out


def test_again_changes_nothing(halves: tuple[Path, Path]) -> None:
    merged(*halves, "--out", "all")
    before = snapshot(Path("all"))
    assert merged(*halves, "--out", "all").splitlines()[-1] == "all: 0 copied, 6 there already, 0 damaged"
    assert merged("all", halves[0], "--out", "all").splitlines()[-1] == "all: 0 copied, 3 there already, 0 damaged"
    assert snapshot(Path("all")) == before


def test_a_dry_run_writes_nothing(halves: tuple[Path, Path]) -> None:
    out = merged(*halves, "--out", "all", "--dry-run")
    assert out.splitlines()[0].startswith(f"would copy {CELLS}/dkd/seed0 from ")
    assert out.splitlines()[-1] == "all: 6 to copy, 0 there already, 0 damaged"
    assert not Path("all").exists()


def test_an_equal_result_is_taken_once_and_with_its_weights(halves: tuple[Path, Path], finished: Place) -> None:
    """The same run made on another machine: elsewhere, later and slower; and published, so without weights."""
    there = run_in(halves[1])
    shutil.copytree(run_in(halves[0]), there)
    change(there / "record.json", lambda tree: tree["environment"].update(machine="slow"))
    change(there / "record.json", lambda tree: tree["cost"].update(train_seconds=99.0))
    change(there / "record.json", lambda tree: tree["dataset_ref"].update(name="digits of mine"))
    change(there / "spec.json", lambda tree: tree["dataset"].update(name="digits of mine"))
    (run_in(halves[0]) / WEIGHTS).unlink()
    out = merged(*halves, "--out", "all")
    assert f"copied {CELLS}/dkd/seed0 from {there}" in out
    assert f"{run_in(halves[0])}: has the same result as the one taken" in out
    assert contents(run_in(Path("all")))[WEIGHTS] == contents(finished.folder("dkd"))[WEIGHTS]


def test_another_result_of_the_same_run_is_refused(halves: tuple[Path, Path]) -> None:
    there = run_in(halves[1])
    shutil.copytree(run_in(halves[0]), there)
    nll = json.loads((run_in(halves[0]) / "record.json").read_text())["nll"]
    other = run_in(halves[0], "student") / WEIGHTS
    shutil.copy(other, there / WEIGHTS)
    change(there / "record.json", lambda tree: tree.update(nll=0.125, weights_sha256=sha256_of(other)))
    assert failure("merge", *halves, "--out", "all") == (
        f"{there}: has another result of run {CELLS}/dkd/seed0 than {run_in(halves[0])} (different: nll {nll} and "
        f"0.125; {WEIGHTS}); a seed counts once: find out which one to keep, and remove the other"
    )
    assert not Path("all").exists()


def test_another_configuration_is_refused(halves: tuple[Path, Path]) -> None:
    there = run_in(halves[1])
    shutil.copytree(run_in(halves[0]), there)
    for path in there.iterdir():
        if path.name != "spec.json":
            path.unlink()
    change(there / "spec.json", lambda tree: tree["options"].update(beta=3.0))
    assert merged(*halves, "--out", "all").splitlines()[-1].startswith("all: 6 copied")  # only planned there
    message = failure("merge", *halves, "--out", "other", "--with-unfinished")
    beta = json.loads((run_in(halves[0]) / "spec.json").read_text())["options"]["beta"]
    assert message == (
        f"{there}: holds another configuration of run {CELLS}/dkd/seed0 than {run_in(halves[0])} (beta {beta} there, "
        "3.0 here); leave one of the stores out, or make its run again as a --variant"
    )
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spec.json", "spec.json: not JSON"),
        ("record.json", "record.json: not JSON"),
        ("predictions.npz", "predictions.npz: not predictions of kdbench"),
        ("epochs.jsonl", "epochs.jsonl: line 1 is no report of an epoch"),
        (WEIGHTS, f"{WEIGHTS}: not the weights of a run"),
    ],
)
def test_damaged_runs_are_left_out_and_named(halves: tuple[Path, Path], name: str, message: str) -> None:
    path = run_in(halves[0]) / name
    path.write_bytes(path.read_bytes()[:100])
    outcome = kdbench("merge", *halves, "--out", "all")
    assert outcome.code == 2
    assert outcome.out.splitlines()[-1] == "all: 5 copied, 0 there already, 1 damaged"
    assert str(path.parent) in outcome.problems[0]
    assert message in outcome.problems[0]
    assert outcome.problems[0].endswith("; left out: copy the run again from where it was made")
    assert not run_in(Path("all")).exists()
    assert run_in(Path("all"), seed=1).exists()


def test_a_flipped_bit_in_the_weights_is_found(halves: tuple[Path, Path]) -> None:
    """The file is as long as its header says, and every number in it is a number."""
    path = run_in(halves[0]) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    outcome = kdbench("merge", *halves, "--out", "all")
    assert outcome.code == 2
    assert f"{path}: damaged: its sha256 is " in outcome.problems[0]
    assert not run_in(Path("all")).exists()


def test_a_record_that_is_not_its_specs(halves: tuple[Path, Path]) -> None:
    change(run_in(halves[0]) / "record.json", lambda tree: tree.update(config_sha256="0" * 64))
    outcome = kdbench("merge", *halves, "--out", "all")
    assert outcome.code == 2
    assert "config_sha256 is 000000000000 in the record" in outcome.problems[0]


def test_unfinished_runs_are_named_and_give_way(halves: tuple[Path, Path], finished: Place) -> None:
    """A machine that planned everything and did half of it, merged into with the other half."""
    planned = run_in(halves[0], seed=1)
    planned.mkdir()
    shutil.copy(run_in(halves[1], seed=1) / "spec.json", planned)
    (planned / "checkpoint").mkdir()
    (planned / "checkpoint" / "p00.pt").write_bytes(b"superseded")
    alone = merged(halves[0], "--out", "half")
    assert f"{planned}: unfinished, left out" in alone
    assert alone.splitlines()[-1] == "half: 3 copied, 0 there already, 0 damaged"
    out = merged(halves[1], "--out", halves[0])
    assert out.splitlines()[-1] == "one: 3 copied, 0 there already, 0 damaged"
    assert contents(halves[0]) == contents(finished.runs)


def test_unfinished_runs_may_come_along_with_their_checkpoints(halves: tuple[Path, Path]) -> None:
    folder = run_in(halves[0])
    (folder / "record.json").unlink()
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "p00.pt").write_bytes(b"state")
    (folder / "run.lock").touch()  # left behind by a kill
    (folder / ".tmp-1-record.json").write_text("half")
    out = merged(*halves, "--out", "all", "--with-unfinished")
    assert out.splitlines()[-1] == "all: 6 copied, 0 there already, 0 damaged"
    names = set(contents(run_in(Path("all"))))
    assert "checkpoint/p00.pt" in names
    assert not names & {"run.lock", ".tmp-1-record.json"}
    again = merged(*halves, "--out", "all", "--with-unfinished")
    assert again.splitlines()[-1] == "all: 0 copied, 6 there already, 0 damaged"


def test_a_failure_gives_way_to_a_result(halves: tuple[Path, Path]) -> None:
    failed = run_in(halves[0], seed=1)
    shutil.copytree(run_in(halves[1], seed=1), failed)
    fail = {"status": "infra_failed", "reason": "out of memory", "accuracy": None}
    change(failed / "record.json", lambda tree: tree.update(fail))
    out = merged(*halves, "--out", "all")
    assert f"{failed}: failed, and gives way" in out
    assert "copied" in out
    merged(halves[1], "--out", halves[0])
    assert json.loads((failed / "record.json").read_text())["status"] == "ok"
    assert json.loads((failed / "record.json.failed").read_text())["reason"] == "out of memory"


def test_a_failure_alone_is_copied_so_that_it_is_counted(halves: tuple[Path, Path]) -> None:
    fail = {"status": "infra_failed", "reason": "out of memory", "accuracy": None}
    change(run_in(halves[0]) / "record.json", lambda tree: tree.update(fail))
    assert merged(*halves, "--out", "all").splitlines()[-1] == "all: 6 copied, 0 there already, 0 damaged"


def test_a_part_of_a_store_and_a_single_run(halves: tuple[Path, Path]) -> None:
    merged(halves[0] / CELLS / "dkd", run_in(halves[1], "student", 1), "--out", "all")
    found = sorted(path.parent.relative_to("all") for path in Path("all").rglob("spec.json"))
    assert found == [CELLS / "dkd/seed0", CELLS / "student/seed1"]


def test_a_run_that_lies_at_another_runs_place(halves: tuple[Path, Path]) -> None:
    run_in(halves[0]).rename(run_in(halves[0], seed=5))
    outcome = kdbench("merge", *halves, "--out", "all")
    assert outcome.code == 2
    assert f"is the spec of run {CELLS}/dkd/seed0, which does not belong there" in outcome.problems[0]


def test_folders_that_cannot_be_merged(halves: tuple[Path, Path]) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert failure("merge", folder, "--out", "all").startswith(f"{folder}: no runs there")
    assert "lies inside the other" in failure("merge", "one", "--out", "one/sub")
    assert "lies inside the other" in failure("merge", "one/proto-v3", "--out", "one")
    assert "Missing argument" in failure("merge", "--out", "all")
    assert "Missing option '--out'" in failure("merge", "one")
    merged("one", "--out", "all")
    part = kdbench("merge", "two", "--out", "all/proto-v3")
    assert "which does not belong there" in part.err
    assert part.code == 2


def test_a_foreign_folder_or_a_damaged_run_in_the_way(halves: tuple[Path, Path]) -> None:
    run_in(Path("all")).mkdir(parents=True)
    (run_in(Path("all")) / "notes.txt").write_text("mine")
    assert "exists and is no run of kdbench; remove it" in failure("merge", *halves, "--out", "all")
    (run_in(Path("all")) / "spec.json").write_text("{")
    message = failure("merge", *halves, "--out", "all")
    assert "the target's run is damaged: remove it, then one/" in message
    assert sorted(contents(Path("all"))) == [f"{CELLS}/dkd/seed0/notes.txt", f"{CELLS}/dkd/seed0/spec.json"]


def test_links_out_of_the_target_are_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    Path("all").mkdir()
    Path("all/proto-v3").symlink_to(tmp_path / "outside")
    assert "see that no link there leads elsewhere" in failure("merge", *halves, "--out", "all")
    assert list((tmp_path / "outside").iterdir()) == []
