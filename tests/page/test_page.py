"""The page as a file: whole, safe, small, and saying first what was compared."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser

import madeup
import pytest

from kdbench.leaderboard import build, columns, to_csv, to_html, to_latex, to_markdown
from kdbench.leaderboard.claim_files import ClaimFile
from kdbench.leaderboard.columns import Column, Group
from kdbench.leaderboard.details import Details
from kdbench.leaderboard.heads import Head
from kdbench.leaderboard.summary import compared, headline, statement

VOID = {"meta", "input", "link", "br"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script></style><svg onload=alert(1)>\u202e\x00",
]


class Page(HTMLParser):
    """Elements with their attributes and own text, in order; fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_data(self, data: str) -> None:
        if self.open:
            self.elements[self.open[-1]][2].append(data)

    def named(self, tag: str) -> list[tuple[dict[str, str], str]]:
        return [(given, "".join(text)) for name, given, text in self.elements if name == tag]


def pictures(page: str) -> list[ET.Element]:
    return [ET.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_table_has_every_number_with_its_seeds() -> None:
    page = Page(to_html(madeup.small()))
    heads = [text for given, text in page.named("th") if given.get("scope") == "col"]
    gains = ["vs alone", "p vs alone", "vs plain", "p vs plain"]
    costs = ["train s", "params", "agreement %", "forwards", "peak MiB", "FLOPs"]
    assert heads == ["method", "ok", "accuracy %", *gains, *costs]
    cells = [(text, given.get("data-s"), given.get("data-d", "")) for given, text in page.named("td")][12:24]
    assert cells[1] == ("72.17 ± 1.04", "72.167", "0: 71.00\n1: 72.50\n2: 73.00")
    assert cells[2] == ("+1.17 [+0.45, +1.88]", "1.1667", "0: +1.00\n1: +1.50\n2: +1.00\nn = 3, sd 0.29")
    assert cells[3] == ("0.040 (n=3)", "0.039608", "uncorrected 0.020\nnot to be claimed: 3 of 5 seeds")
    assert cells[4] == ("-", "", "")
    assert cells[0] == ("3/3", "3", "ok: seeds 0-2")
    assert cells[8][2] == "0: 87.10\n1: 87.25\n2: 87.30"


def test_a_seed_without_a_value_shows_its_status() -> None:
    page = Page(to_html(madeup.varied()))
    details = [given.get("data-d", "") for given, _ in page.named("td")]
    assert "0: 74.00\n1: 75.00\n2: diverged, counts as 1.00" in details
    assert "0: 73.00\n1: 73.00\n2: 73.60\n3: missing" in details
    assert "0: +3.00\n1: +2.00\n2: +1.60\n3: not in both\nn = 3, sd 0.72" in details


def test_names_from_plugins_stay_text() -> None:
    text = to_html(madeup.renamed(madeup.small(), HOSTILE))
    page = Page(text)
    count = Counter(name for name, _, _ in page.elements)
    assert (count["script"], count["style"], count["img"], count["b"]) == (1, 1, 0, 0)
    assert not [key for _, given, _ in page.elements for key in given if key.startswith("on")]
    rows = [shown for given, shown in page.named("th") if given.get("scope") == "row"]
    assert rows == [*HOSTILE[:2], "</script></style><svg onload=alert(1)>"]
    assert not set(text) & {"\u202e", "\x00"}
    for picture in pictures(text):  # well-formed, with the names in them
        assert not [node for node in picture.iter() if node.tag not in {"svg", "g", "path", "text", "title"}]


def test_the_page_asks_for_nothing_and_allows_only_its_own_script_and_style() -> None:
    page = Page(to_html(madeup.varied()))
    links = [given[key] for _, given, _ in page.elements for key in ("src", "href", "action", "srcset") if key in given]
    assert links
    assert all(re.fullmatch(r"#[ot]\d", link) for link in links)
    (policy,) = [given["content"] for given, _ in page.named("meta") if "http-equiv" in given]
    known = {key: page.named(key)[0][1] for key in ("style", "script")}
    hashes = {key: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for key, text in known.items()}
    rules = (f"{key}-src 'sha256-{value}'" for key, value in hashes.items())
    assert policy == "; ".join(["default-src 'none'", *rules])
    assert not [given for _, given, _ in page.elements if "style" in given]  # the policy would drop it
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|eval\(|innerHTML", known["style"] + known["script"])


def test_it_begins_with_what_was_compared_and_what_that_supports() -> None:
    text = to_html(madeup.small())
    board = madeup.small()
    assert compared(board) == (
        "3 methods (alone, plain, fancy); 1 pair (duo); 1 dataset (toy); 1 protocol (proto-v1); seeds 0-2. "
        "9 of 9 planned runs are ok."
    )
    assert headline(board.tables[0]) == "No winner: nothing can be said, MDE 3.05 pt."
    assert statement(board.tables[0]) == (
        "Against a winner: 3 of 5 seeds that all methods have. Standard deviation of a paired difference 0.66 pt; a "
        "gain of 0.3 pt needs 49 seeds; a gain of 0.5 pt needs 20 seeds. "
        "Highest mean: fancy, 73.20 % over 3 seeds; +1.03 [-1.05, +3.12] points over plain (interval for this "
        "comparison alone). Being first by mean is no win."
    )
    parts = ("<h1>", "3 methods (", "<strong>No winner", "Against a winner", "Highest mean", "<main>", "<table", "<svg")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_all_pairs_come_before_each_of_them() -> None:
    text = to_html(madeup.varied())
    parts = ('<a href="#o1">', '<a href="#t1">', '<section id="o1"', "no winner on these pairs", 'id="t1"', 'id="t3"')
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_diverged_method_is_not_called_the_highest() -> None:
    (table,) = build([*madeup.arm("alone", 70.0), *madeup.arm("wild", 99.0, None)], madeup.BASELINES).tables
    assert statement(table).endswith("Highest mean: alone, 70.00 % over 1 seed. Being first by mean is no win.")
    (table,) = build(madeup.arm("wild", None, None), madeup.BASELINES).tables
    assert statement(table) == "No method has a stable result yet."


def test_landmarks_and_headings_for_those_who_hear_the_page() -> None:
    page = Page(to_html(madeup.varied()))
    count = Counter(name for name, _, _ in page.elements)
    assert [count[name] for name in ("h1", "header", "nav", "main", "footer")] == [1] * 5
    assert count["h2"] == count["table"] == 4  # three tables, and all pairs together
    headings = [int(name[1]) for name, _, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    ids = {given["id"] for _, given, _ in page.elements if "id" in given}
    assert {given["aria-labelledby"] for _, given, _ in page.elements if "aria-labelledby" in given} <= ids
    assert all(given.get("aria-label") for given, _ in page.named("svg"))
    assert [given["for"] for given, _ in page.named("label")] == ["words"]
    assert page.named("html")[0][0]["lang"] == "en"


def test_any_order_of_runs_gives_the_same_bytes() -> None:
    cells = [*madeup.arm("alone", 70.0, 71.0, curve=True), *madeup.arm("plain", 71.0, None), madeup.cell("m", 0, 72.0)]
    orders = itertools.islice(itertools.permutations(cells), 0, 120, 17)
    pages = {(to_html(board), to_latex(board)) for order in orders for board in [build(order, madeup.BASELINES)]}
    assert len(pages) == 1


def test_fifty_methods_and_twenty_pairs_stay_below_two_megabytes() -> None:
    board = madeup.large(methods=50, pairs=20)
    text = to_html(board)
    assert text.count('<th scope="row"') == 1000
    assert text.count("<svg") == 20 * 6  # two gains, the gap, two costs, the curves
    assert len(text.encode()) < 2_000_000


def test_a_new_column_appears_in_every_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def group() -> Group:
        behind = Details(((0, "0.25"),), ("so",))
        column = Column(Head("p | q"), lambda _: "0.5 & more", lambda _: 0.5, lambda _: behind)
        return Group((column,), lambda quote: (f"p: of {quote('a|b')}.",), lambda _: {"p": 0.5})

    monkeypatch.setattr(columns, "_cost", group)
    board = madeup.small()
    markdown, page, latex = to_markdown(board), to_html(board), to_latex(board)
    assert r"| p \| q |" in re.sub(" +", " ", markdown)
    assert r"- p: of a\|b." in markdown
    assert '<td data-s="0.5" data-d="0: 0.25\nso">0.5 &amp; more</td>' in page
    assert "<li>p: of a|b.</li>" in page
    assert r"& 0.5 \& more" in latex
    assert r"p: of a\textbar{}b." in latex
    assert to_csv(board).splitlines()[0].split(",")[21] == "p"


def claims(**changes: object) -> ClaimFile:
    return ClaimFile.model_validate(
        {
            "name": "Paper",
            "source": {"title": "A <i>paper</i> & more_of it", "url": "https://example.org/p"},
            "anchor": "proto",
            "anchor_sha256": madeup.ANCHOR.sha256,
            "epochs": madeup.EPOCHS,
            "dataset": "toy",
            "epoch_rule": "last",
            "rows": [{"pair": "duo", "teacher": 79.5, "accuracies": {"fancy": 73.5}}],
        }
        | changes
    )


def test_published_accuracies_have_a_table_of_their_own() -> None:
    cells = [*madeup.arm("alone", 70.0, 71.0, 72.0), *madeup.arm("fancy", 73.0, 73.0, 73.6)]
    board = build(cells, madeup.BASELINES, [claims()])
    text, latex = to_html(board), to_latex(board)
    assert '<h3 id="t1-c">Claimed and reproduced</h3>' in text
    assert "A &lt;i&gt;paper&lt;/i&gt; &amp; more_of it, https://example.org/p" in text
    page = Page(text)
    cells_of_it = [shown for _, shown in page.named("td")][-8:]
    assert cells_of_it == ["73.50", "Paper", "last", "n/a", "73.20 [72.34, 74.06]", "3", "-0.30", "within"]
    assert [given.get("class") for given, _ in page.named("table")] == ["board", None]  # no sorting, no filter
    row = r"fancy & 73.50 & Paper & last & n/a & 73.20 {[}72.34, 74.06{]} & 3 & $-$0.30 & within \\"
    assert row in latex
    assert r"\label{tab:claimed-1}" in latex
    assert r"A \textless{}i\textgreater{}paper\textless{}/i\textgreater{} \& more\_of it" in latex


def test_withheld_claims_are_said_and_have_no_table() -> None:
    board = build(madeup.arm("fancy", 73.0), madeup.BASELINES, [claims(anchor_sha256="0" * 64)])
    (reason,) = board.tables[0].claims.withheld
    assert any(f"but {reason}: none of them is shown." in text for _, text in Page(to_html(board)).named("li"))
    assert to_html(board).count("<table") == 1
    assert f"but {reason}: none" in to_latex(board)
    assert to_latex(board).count(r"\begin{table}") == 2  # results and costs
