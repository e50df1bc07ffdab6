"""The page in a real browser: what a person does with it, and what is then to be seen."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import madeup
import pytest

from kdbench.leaderboard import to_html

ACTIONS = Path(__file__).with_name("actions.js").read_text(encoding="utf-8")
WIDTHS = """
(() => {
  const result = document.createElement("pre");
  result.id = "result";
  const table = document.querySelector(".scroll");
  const body = getComputedStyle(document.body);
  result.textContent = JSON.stringify({
    window: innerWidth, page: document.documentElement.scrollWidth, box: table.clientWidth, table: table.scrollWidth,
    first: getComputedStyle(table.querySelector("tbody th")).position, text: body.color, ground: body.backgroundColor,
  });
  document.body.append(result);
})();
"""


def run(chromium: str, folder: Path, page: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page from disk, without network, and let it come to rest."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    words = [
        chromium,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
        *options,
        (folder / "page.html").as_uri(),
    ]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)


def visit(chromium: str, folder: Path, page: str, script: str, *options: str) -> Any:
    """Return what a script, allowed by the page's policy like its own, finds out after the page's has run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "script-src '"
    assert policy in page
    page = page.replace(policy, f"script-src 'sha256-{digest}' '", 1)
    page = page.replace("</body>", f"<script>{script}</script></body>")
    done = run(chromium, folder, page, "--dump-dom", *options)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def seen(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What all the actions led to."""
    return visit(chromium, tmp_path_factory.mktemp("browser"), to_html(madeup.varied()), ACTIONS)


def test_sorting_by_number_and_by_name_and_back(seen: Any) -> None:
    assert seen["given"] == ["alone", "plain", "fancy", "wild"]
    assert seen["accuracy"] == [
        {"order": ["fancy", "plain", "alone", "wild"], "sort": "descending"},
        {"order": ["wild", "alone", "plain", "fancy"], "sort": "ascending"},
        {"order": seen["given"], "sort": None},
    ]
    assert [turn["order"] for turn in seen["method"]] == [sorted(seen["given"]), sorted(seen["given"], reverse=True)]
    assert [turn["sort"] for turn in seen["method"]] == ["ascending", "descending"]
    # A baseline has no gain over itself: it comes last, whatever the direction.
    assert seen["gain"] == {"order": ["fancy", "plain", "wild", "alone"], "sort": "descending"}
    assert seen["old"] is None


def test_filtering_by_method_pair_and_division(seen: Any) -> None:
    found = [(each["rows"], each["sections"], each["said"], each["nothing"]) for each in seen["filters"]]
    assert found == [
        (1, ["t1"], "1 of 7 rows", False),
        (2, ["t3"], "2 of 7 rows", False),
        (1, ["t3"], "1 of 7 rows", False),
        (1, ["t2"], "1 of 7 rows", False),
        (0, [], "0 of 7 rows", True),
        (7, ["t1", "t2", "t3"], "", False),
    ]


def test_seeds_on_hover_and_on_tap(seen: Any) -> None:
    lines = ["seed 0: 74.00", "seed 1: 75.00", "seed 2: diverged, counts as 1.00"]
    assert seen["touched"]  # a finger shows nothing before it taps
    for shown in (seen["over"], seen["tap"]):
        assert not shown["hidden"]
        assert shown["lines"][1:] == lines
        assert shown["lines"][0].startswith("accuracy %: 50.00 ± 42.44 (unstable 1/3")
    assert seen["out"]
    assert seen["stays"] == seen["tap"]["lines"][0]  # while it is pinned, the pointer changes nothing
    assert seen["again"]


def test_a_name_shows_its_whole_row_and_escape_closes_it(seen: Any) -> None:
    lines = seen["whole"]["lines"]
    assert [line.partition(":")[0] for line in lines if not line.startswith("seed")] == [
        *("method", "version 1, dist 1.0", "beta = 2.0", "ok", "accuracy %", "vs alone", "n = 3, sd 0.72"),
        *("p vs alone", "uncorrected 0.034", "not to be claimed", "vs plain", "n = 3, sd 0.84"),
        *("p vs plain", "uncorrected 0.166", "not to be claimed", "train s", "mean", "params"),
        *("agreement %", "forwards", "peak MiB", "FLOPs"),
    ]
    assert "seed 3: missing" in lines
    assert seen["escaped"]


def test_theme_button(seen: Any) -> None:
    assert [name for name, _ in seen["themes"]] == ["light", "dark", ""]
    assert seen["themes"][1][1] == "Theme: dark"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_never_wider_than_the_window(chromium: str, tmp_path: Path, width: int) -> None:
    found = visit(chromium, tmp_path, to_html(madeup.varied()), WIDTHS, f"--window-size={width},900")
    assert found["page"] <= found["window"]
    assert found["first"] == "sticky"
    if width == 390:
        assert found["table"] > found["box"]  # it scrolls in a box of its own
    assert found["text"] != found["ground"]


@pytest.mark.parametrize("width", [1280, 390])
def test_screenshot(chromium: str, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    run(chromium, tmp_path, to_html(madeup.varied()), f"--screenshot={picture}", f"--window-size={width},1400")
    data = picture.read_bytes()
    assert struct.unpack(">II", data[16:24]) == (width, 1400)
    assert len(data) > 20_000  # a blank page is much smaller


def test_hostile_names_run_nothing(chromium: str, tmp_path: Path) -> None:
    names = ["<script>document.title='owned'</script>", "<img src=x onerror=document.title='owned'>", '"><b>x']
    page = to_html(madeup.renamed(madeup.small(), names))
    script = WIDTHS.replace("window: innerWidth", "title: document.title, window: innerWidth")
    assert "owned" not in visit(chromium, tmp_path, page, script)["title"]


def test_on_paper_the_seeds_stand_below_their_numbers(chromium: str, tmp_path: Path) -> None:
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("needs pdftotext")
    run(chromium, tmp_path, to_html(madeup.varied()), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    words = [reader, "-raw", str(tmp_path / "page.pdf"), "-"]  # cell by cell, however lines are broken
    text = " ".join(subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    assert "2: diverged, counts as 1.00" in text
    assert "Environment: machine box" in text  # notes are open
