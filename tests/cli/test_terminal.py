"""What files and workers say is shown; what a terminal would obey is not obeyed."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import failure

from kdbench.cli.progress import Reporter
from kdbench.errors import printable
from kdbench.execution.events import Event

CLEAR = "\x1b[2J"


def test_a_message_cannot_clear_the_screen() -> None:
    Path("mine.yaml").write_text(
        f'name: mine\n"{CLEAR}\u202e": 1\n'.replace("\x1b", "\\e").replace("\u202e", "\\u202e")
    )
    said = failure("run", "--method", "student", "--pair", "tiny", "--anchor", "mine.yaml")
    assert "?[2J?: unknown key" in said
    assert said.isascii()
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\nb"),
        ("\x1b[31m", "?[31m"),
        ("\r", "?"),
        ("\ud800", "?"),
        ("Grüße, 你好", "Grüße, 你好"),
        ("\x9b", "?"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_worker_cannot_either(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter([]).see(Event("warning", {"message": f"{CLEAR}careful"}))
    assert capsys.readouterr().out == "warning: ?[2Jcareful\n"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("epoch", {"run_id": "r", "phase": "main", "epoch": 0, "epochs": 1, "validation_accuracy": None,
                   "test_accuracy": None, "losses": [1], "images_per_second": 1.0}),
        ("phase", {"run_id": "r", "phase": "main", "losses": [], "weights": {}, "metrics": {}}),
        ("record", {"run_id": "r", "status": "ok", "accuracy": None}),
        ("progress", {"run_ids": []}),
        ("teacher", {}),
        ("nothing", {}),
    ],
)  # fmt: skip
def test_what_only_looks_like_an_event_is_not_shown(
    capsys: pytest.CaptureFixture[str], kind: str, data: dict[str, object]
) -> None:
    Reporter([]).see(Event(kind, data))  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""
