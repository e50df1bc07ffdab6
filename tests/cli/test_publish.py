"""Copies of records beside a board: enough to rebuild it, and nothing about where somebody keeps their data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commandline import Place, kdbench

from kdbench.seal import unsealed


def test_the_copies_rebuild_the_same_bytes(finished: Place) -> None:
    assert kdbench("leaderboard", finished.runs, "--out", "one", "--records").code == 0
    assert kdbench("leaderboard", "one/runs", "--out", "two").code == 0
    for name in ("leaderboard.md", "leaderboard.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    kept = {path.name for path in Path("one/runs").rglob("*") if path.is_file()}
    assert kept == {"spec.json", "record.json", "epochs.jsonl", "epochs.csv", "predictions.npz"}


def test_paths_of_datasets_are_not_published(finished: Place, tmp_path: Path) -> None:
    source = tmp_path / "somebody" / "runs"
    shutil.copytree(finished.runs, source)
    for path in source.rglob("*.json"):
        tree, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
        tree["dataset" if path.name == "spec.json" else "dataset_ref"]["name"] = "npz:/home/somebody/digits.npz"
        path.write_text(json.dumps(tree), encoding="utf-8")
    assert kdbench("leaderboard", source, "--out", "public", "--records").code == 0
    texts = [path.read_text(encoding="utf-8") for path in Path("public").rglob("*") if path.suffix in {".json", ".md"}]
    assert len(texts) > 4
    assert all("somebody" not in text for text in texts)
    assert "npz:digits.npz" in Path("public/leaderboard.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("given", ["one", "one/runs"])
def test_publishing_onto_its_own_folder_leaves_the_records_alone(finished: Place, given: str) -> None:
    assert kdbench("leaderboard", finished.runs, "--out", "one", "--records").code == 0
    for path in Path("one/runs").rglob("*.json"):  # as another version would have laid them out
        tree, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
        tree.pop("variant", None)
        path.write_text(json.dumps(tree, sort_keys=True), encoding="utf-8")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("one/runs").rglob("*.*")}
    assert kdbench("leaderboard", given, "--out", "one", "--records").code == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("one/runs").rglob("*.*")} == before
    assert not Path("one/runs/runs").exists()
    assert kdbench("verify", "one").code == 0
