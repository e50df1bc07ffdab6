"""Boards as LaTeX: exact lines, nothing that breaks a document, and a real compiler where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import madeup
import pytest

from kdbench.leaderboard import to_latex
from kdbench.leaderboard.as_latex import quote

HOSTILE = [r"50%_of\all{$}", "[x]*&#~^", "über\u2013\u202e☃<|>\"'"]
ENGINES = ("pdflatex", "tectonic", "lualatex", "xelatex")


def body(text: str) -> list[str]:
    """Return the rows of the first table without their indentation."""
    inside = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    return [line.strip() for line in inside.strip().splitlines()]


def test_rows_exactly() -> None:
    text = to_latex(madeup.small())
    assert body(text) == [
        r"alone & 3/3 & 71.00 $\pm$ 1.00 & - & - & $-$1.17 {[}$-$1.88, $-$0.45{]} & 0.040 (n=3) & 142 & 10,527 & n/a & "
        r"1 + 1 & 0 & 1 \\",
        r"plain & 3/3 & 72.17 $\pm$ 1.04 & +1.17 {[}+0.45, +1.88{]} & 0.040 (n=3) & - & - & 147 & 10,532 & 87.2 & "
        r"1 + 1 & 0 & 1 \\",
        r"fancy & 3/3 & 73.20 $\pm$ 0.35 & +2.20 {[}+0.41, +3.99{]} & 0.040 (n=3) & +1.03 {[}$-$1.05, +3.12{]} & "
        r"0.166 (n=3) & 144 & 10,529 & 87.3 & 1 + 1 & 0 & 1 \\",
    ]
    gains = "vs alone & p vs alone & vs plain & p vs plain"
    costs = r"train s & params & agreement \% & forwards & peak MiB & FLOPs"
    assert rf"method & ok & accuracy \% & {gains} & {costs} \\" in text
    assert r"\begin{tabular}{llrrrrrrrrrrr}" in text


def test_the_caption_says_what_the_numbers_are_and_comments_where_they_come_from() -> None:
    text = to_latex(madeup.varied())
    captions = [line for line in text.splitlines() if line.startswith(r"  \caption")]
    assert len(captions) == 4
    assert captions[3].startswith(r"  \caption[All 2 pairs, proto-v1, closed division: On these pairs]")
    assert "no winner on these pairs" in captions[3]
    for caption in captions[:3]:
        assert r"mean $\pm$ standard deviation over seeds (ddof = 1)" in caption
        assert "Verdict: no winner: nothing can be said" in caption
    assert captions[0].startswith(r"  \caption[toy, duo, proto-v1, closed division]{toy, duo, proto-v1, closed")
    assert "unstable k/n" in captions[0]
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert "% wild: seed 2 diverged." in comments
    labels = [*(f"tab:leaderboard-{number}" for number in (1, 2, 3)), "tab:overview-these-1"]
    assert re.findall(r"\\label\{(.*)\}", text) == labels


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"a\b", r"a\textbackslash{}b"),
        ("50 % & $1 #2 x_y {z}", r"50 \% \& \$1 \#2 x\_y \{z\}"),
        ("[a]*", "{[}a{]}{*}"),
        ("~^<>|", r"\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"),
        ("Müller", "Müller"),
        ("ﬁ½", r"fi{[}U+00BD{]}"),
        ("a\n\nb\x00c\u202e", "a b c"),
        ("☃", "{[}U+2603{]}"),
    ],
)
def test_foreign_text(text: str, shown: str) -> None:
    assert quote(text) == shown


def test_hostile_names_break_no_structure() -> None:
    text = to_latex(madeup.renamed(madeup.small(), HOSTILE))
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    plain = re.sub(r"\\([\\&%$#_{}]|[a-z]+)", "", code)  # without commands and quoted characters
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert not set(plain) & set('%#_~^\\"<>|')
    assert [len(re.findall(r"(?<!\\)&", row)) for row in body(text)] == [12, 12, 12]
    assert all(row.endswith(r"\\") and not row.startswith(("[", "*")) for row in body(text))
    assert re.findall(r"\\begin\{(\w+)\}", code) == ["table", "tabular"]


@pytest.mark.parametrize("board", [madeup.varied(), madeup.renamed(madeup.small(), HOSTILE)], ids=["varied", "hostile"])
def test_it_compiles(board: madeup.Leaderboard, tmp_path: Path) -> None:
    engine = next(filter(None, map(shutil.which, ENGINES)), None)
    if engine is None:
        pytest.skip(f"needs a LaTeX engine: one of {', '.join(ENGINES)}")
    (tmp_path / "leaderboard.tex").write_text(to_latex(board), encoding="utf-8")
    paper = (
        "\\documentclass{article}\n\\usepackage[landscape]{geometry}\n\\usepackage{booktabs}\n\\begin{document}\n"
        "\\listoftables\n\\input{leaderboard}\n\\end{document}\n"
    )
    (tmp_path / "paper.tex").write_text(paper, encoding="utf-8")
    words = ["paper.tex"] if "tectonic" in engine else ["-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run([engine, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
