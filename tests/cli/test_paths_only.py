"""Where only a path will do, a URL is refused: it would become a folder ``s3:`` in the one where the command runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import failure

URL = "s3://bucket/place"
CELLS = ["--method", "student", "--pair", "tiny"]


@pytest.mark.parametrize(
    ("words", "option", "what"),
    [
        (["leaderboard", "runs", "--out", URL], "--out", "folder"),
        (["leaderboard", "s3://bucket/runs", "--records", "--out", URL], "--out", "folder"),
        (["merge", "one", "two", "--out", URL], "--out", "folder"),
        (["merge", "one", URL, "--out", "all"], "STORES...", "folder"),
        (["verify", "board", "--rerun", "--out", URL], "--out", "folder"),
        (["verify", "board", "--rerun", "--data", URL], "--data", "folder"),
        *((["run", *CELLS, option, URL], option, "folder") for option in ("--data", "--cache")),
        *((["plan", *CELLS, option, URL], option, "folder") for option in ("--data", "--cache")),
        *((["ablate", "dkd", "--pair", "tiny", option, URL], option, "folder") for option in ("--data", "--cache")),
        (["run-one", "--store", "runs", "--run", "a", "--cache", URL], "--cache", "folder"),
        (["teacher", "train", "resnet8_w4", "--dataset", "digits", "--data", URL], "--data", "folder"),
        (["teacher", "cache", "t", "--dataset", "digits", "--cache", URL], "--cache", "folder"),
        (["teacher", "verify", "--data", URL], "--data", "folder"),
        (["teacher", "import", URL, "--dataset", "digits"], "FILE", "file"),
        (["teacher", "import", "n.pt", "--dataset", "digits", "--map", URL], "--map", "file"),
        (["asib-config", URL], "EXPERIMENT", "file"),
        (["asib-config", "mine.yaml", "--base", URL], "--base", "file"),
        (["asib-config", "mine.yaml", "--method-file", "file:///home/mine.yaml"], "--method-file", "file"),
    ],
)  # fmt: skip
def test_a_url_is_refused_and_nothing_is_made(words: list[str], option: str, what: str) -> None:
    url = next(word for word in reversed(words) if "://" in word)
    assert failure(*words) == (
        f"Invalid value for '{option}': '{url}' is a URL; only a {what} on a file system will do here: give its path"
    )
    assert list(Path.cwd().iterdir()) == []
