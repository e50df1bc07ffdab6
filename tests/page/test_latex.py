"""Boards as LaTeX: exact lines, nothing that breaks a document, and a real compiler where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import madeup
import pytest

from kdbench.leaderboard import build, to_latex
from kdbench.leaderboard.as_latex import quote
from kdbench.leaderboard.claim_files import ClaimFile
from kdbench.spec import DatasetRef

HOSTILE = [r"50%_of\all{$}", "[x]*&#~^", "über\u2013\u202e☃<|>\"'"]
ENGINES = ("pdflatex", "tectonic", "lualatex", "xelatex")


def lines(text: str, start: str, end: str) -> list[str]:
    inside = text.partition(start)[2].partition(end)[0]
    return [line.strip() for line in inside.strip().splitlines()]


def body(text: str) -> list[str]:
    """Return the rows of the first table without their indentation."""
    return lines(text, r"\midrule", r"\bottomrule")


def head(text: str) -> list[str]:
    return lines(text, r"\toprule", r"\midrule")


def test_rows_exactly() -> None:
    text = to_latex(madeup.small())
    results, costs, after = text.split(r"\end{table}")
    assert body(results) == [
        r"alone & 3/3 & 71.00 $\pm$ 1.00 & - & - & $-$1.17 {[}$-$1.88, $-$0.45{]} & 0.040 (n=3) \\",
        r"plain & 3/3 & 72.17 $\pm$ 1.04 & +1.17 {[}+0.45, +1.88{]} & 0.040 (n=3) & - & - \\",
        r"fancy & 3/3 & 73.20 $\pm$ 0.35 & +2.20 {[}+0.41, +3.99{]} & 0.040 (n=3) & +1.03 {[}$-$1.05, +3.12{]} & "
        r"0.166 (n=3) \\",
    ]
    assert head(results) == [
        r"&  &  & \multicolumn{2}{c}{vs alone} & \multicolumn{2}{c}{vs plain} \\",
        r"\cmidrule(lr){4-5} \cmidrule(lr){6-7}",
        r"method & ok & accuracy \% & gain & p & gain & p \\",
    ]
    assert r"\begin{tabular}{llrrrrr}" in results
    assert body(costs) == [
        r"alone & 142 & 10,527 & n/a & 1 + 1 & 0 & 1 \\",
        r"plain & 147 & 10,532 & 87.2 & 1 + 1 & 0 & 1 \\",
        r"fancy & 144 & 10,529 & 87.3 & 1 + 1 & 0 & 1 \\",
    ]
    assert head(costs) == [r"method & train s & params & agreement \% & forwards & peak MiB & FLOPs \\"]
    assert "tabular" not in after


def test_verdicts_in_captions_notes_below_and_comments_where_they_come_from() -> None:
    text = to_latex(madeup.varied())
    captions = [line for line in text.splitlines() if line.startswith(r"  \caption")]
    notes = [part.partition("\n  }")[0] for part in text.split(r"\scriptsize")[1:]]
    assert len(captions) == len(notes) == 7  # results and costs of three tables, and their overview
    assert captions[6].startswith(r"  \caption[All 2 pairs, proto-v1, closed division: On these pairs]")
    assert "no winner on these pairs" in captions[6]
    for results in (0, 2, 4):
        assert r"mean $\pm$ standard deviation over seeds (ddof = 1)" in notes[results]
        assert "Verdict: no winner: nothing can be said" in captions[results]
        assert notes[results + 1].strip().startswith("train s: mean seconds")
    assert captions[0].startswith(r"  \caption[toy, duo, proto-v1, closed division]{toy, duo, proto-v1, closed")
    assert "unstable k/n" in notes[0]
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert "% wild: seed 2 diverged." in comments
    labels = [f"tab:{kind}-{number}" for number in (1, 2, 3) for kind in ("leaderboard", "costs")]
    assert re.findall(r"\\label\{(.*?)\}", text) == [*labels, "tab:overview-these-1"]


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
    code = code.replace("{!}{%\n", "{!}{\n")  # the comment after which the tabular of a scaled box begins
    plain = re.sub(r"\\([\\&%$#_{}]|[a-z]+)", "", code)  # without commands and quoted characters
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert not set(plain) & set('%#_~^\\"|')
    assert plain.count(">") == 2  # the comparison of widths in each scaled box
    assert "<" not in plain
    assert [len(re.findall(r"(?<!\\)&", row)) for row in body(text)] == [6, 6, 6]
    assert all(row.endswith(r"\\") and not row.startswith(("[", "*")) for row in body(text))
    assert re.findall(r"\\begin\{(\w+)\}", code) == ["table", "tabular"] * 2


def several(pairs: int = 6) -> madeup.Leaderboard:
    """Return pairs of two datasets: enough for general words, with many seeds and wide numbers."""
    cells = []
    for index in range(pairs):
        name = f"set{index % 2}"
        place = {"pair": f"pair{index}", "dataset": DatasetRef(name=name, slug=name, fingerprint=name * 5)}
        for method, mean in (("alone", 60.0), ("plain", 64.0), ("fancy", 71.0), ("a_method_with_a_long_name", 70.5)):
            cells += madeup.arm(method, *(round(mean + ((7 * seed + index) % 5) / 7, 2) for seed in range(5)), **place)
    return build(cells, madeup.BASELINES)


def claimed() -> madeup.Leaderboard:
    tree = {
        "name": "some_paper",
        "source": {"title": "A paper & more", "url": "https://example.org/~p_1", "code": "a/b@c"},
        "anchor": "proto",
        "anchor_sha256": madeup.ANCHOR.sha256,
        "epochs": madeup.EPOCHS,
        "dataset": "toy",
        "epoch_rule": "last",
        "rows": [{"pair": "duo", "teacher": 79.5, "accuracies": {"alone": 70.5, "fancy": 72.0}}],
    }
    cells = [*madeup.arm("alone", 70.0, 71.0, 72.0), *madeup.arm("fancy", 73.0, 73.0, 73.6)]
    return build(cells, madeup.BASELINES, [ClaimFile.model_validate(tree)])


BOARDS = {
    "one_pair": madeup.small,
    "divisions_and_failures": madeup.varied,
    "many_methods": lambda: madeup.large(40, 1),
    "several_pairs": several,
    "claims": claimed,
    "hostile": lambda: madeup.renamed(madeup.small(), HOSTILE),
}


@pytest.mark.parametrize("kind", BOARDS)
def test_it_compiles_and_fits_the_page(kind: str, tmp_path: Path) -> None:
    engine = next(filter(None, map(shutil.which, ENGINES)), None)
    if engine is None:
        pytest.skip(f"needs a LaTeX engine: one of {', '.join(ENGINES)}")
    board = BOARDS[kind]()
    (tmp_path / "leaderboard.tex").write_text(to_latex(board), encoding="utf-8")
    paper = (
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
        "\\listoftables\n\\input{leaderboard}\n\\end{document}\n"
    )
    (tmp_path / "paper.tex").write_text(paper, encoding="utf-8")
    words = ["paper.tex"] if "tectonic" in engine else ["-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run([engine, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    assert "Overfull" not in said
    assert "too large for page" not in said
    assert to_latex(board).count(r"\begin{tabular}") >= 2
