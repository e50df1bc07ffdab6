"""docs/asib.md names files, tests, rows and keys that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kdbench.methods.asib.bridge import Bridge
from kdbench.methods.asib.method import ASIB
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.recommended import recommended
from kdbench.testing import METHOD_CHECKS
from kdbench.testing.bench import Bench

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "kdbench" / "methods" / "asib"
TEXT = (ROOT / "docs" / "asib.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split(" | ") for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_each_contradiction_has_its_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 56))
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_files_and_tests_of_a_row_exist(row: list[str]) -> None:
    where, shown = row[3], row[4]
    for name in quoted(where):
        if "." in name or "/" in name:
            assert (ROOT / name if name.startswith("kdbench/") else PACKAGE / name).exists(), name
    assert quoted(shown) or "no test" in shown or "golden" in shown
    source = ""
    for name in quoted(shown):
        path, _, test = name.partition("::")
        if path:
            file = ROOT / "tests" / (path if "/" in path else f"methods/asib/{path}")
            source = file.read_text(encoding="utf-8")
        assert not test or re.search(rf"^def {test}\(", source, re.MULTILINE), name


def test_every_file_of_the_package_is_named() -> None:
    section = TEXT.partition("### Which file has which formula\n")[2].partition("\n## ")[0]
    named = set(quoted(section))
    own = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "files.py", "metrics.py"}
    assert own <= named
    assert all((PACKAGE / name).exists() for name in named if re.fullmatch(r"[\w-]+\.py|\w+/", name))


def test_what_is_not_built_is_no_option_and_what_is_recommended_is_one() -> None:
    section = TEXT.partition("\n## Not built\n")[2].partition("\n## ")[0]
    keys = {key for key in quoted(section) if re.fullmatch(r"[a-z]\w+_\w+", key) and "." not in key}
    assert len(keys) > 15
    assert keys & set(ASIBOptions.model_fields) == set()
    assert set(recommended()) <= set(ASIBOptions.model_fields)


def test_another_bridge_is_put_in_as_shown() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)

    class Mine(Bridge):
        pass

    names: dict[str, Any] = {"MyBridge": Mine, "__name__": "page"}
    exec(compile(code, "docs/asib.md", "exec"), names)
    method = names["WiderASIB"]
    assert issubclass(method, ASIB)
    for check in ("name", "builds", "losses", "gradient", "resume"):
        METHOD_CHECKS[check](method)
    assert isinstance(Bench(method).build().bridge, Mine)
