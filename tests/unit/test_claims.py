"""Published accuracies beside ours: from made-up records and claims, and the files that ship."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.config.loading import load_anchor
from kdbench.config.schema import Anchor, Data, Loss, Optimizer, Schedule, Step
from kdbench.errors import ConfigError, ProblemList
from kdbench.leaderboard import Cell, Leaderboard, build, to_csv, to_json, to_markdown
from kdbench.leaderboard.claim_files import ClaimFile, load_claims, shipped_claims
from kdbench.leaderboard.claims import SAME_TEACHER
from kdbench.leaderboard.model import Claim, Claims
from kdbench.records import Accuracy, Environment, Record, TeacherUsed
from kdbench.registry import Registry
from kdbench.spec import DatasetRef, DeclaredDeviation, PluginRef, RunSpec
from kdbench.training.results import identity_of

ANCHOR = Anchor(
    name="proto",
    loss=Loss(ce_alpha=0.5, kd_alpha=0.5),
    optimizer=Optimizer(lr=0.1, weight_decay=0.0),
    schedule=Schedule(epochs=9),
    data=Data(batch_size=8),
    step=Step(),
)
SHORT = ANCHOR.model_copy(update={"name": "quick", "lineage": ("proto",), "schedule": Schedule(epochs=2)})
DATASET = DatasetRef(name="toy", slug="toy", fingerprint="f" * 20)
SCORES = (70.0, 71.0, 72.0)  # mean 71, half width 4.302653 / sqrt(3) = 2.484
LOW, HIGH = 68.515862, 73.484138
TREE: dict[str, Any] = {
    "name": "Paper",
    "source": {"title": "A paper", "url": "https://example.org/p", "code": "a/b@c"},
    "anchor": "proto",
    "anchor_sha256": ANCHOR.sha256,
    "epochs": 9,
    "dataset": "toy",
    "epoch_rule": "last",
    "rows": [{"pair": "duo", "teacher": 80.0, "accuracies": {"alone": 70.5, "fancy": 72.0}}],
}


def claims(**changes: Any) -> ClaimFile:
    return ClaimFile.model_validate(TREE | changes)


def cell(method: str, seed: int, score: float | None, teacher: float | None = 80.0, **changes: Any) -> Cell:
    values: dict[str, Any] = {
        "method": method,
        "method_version": 1,
        "plugin": PluginRef(distribution="dist", version="1.0"),
        "options": {},
        "pair": "duo",
        "student": "small",
        "teachers": () if method == "alone" else ("big",),
        "dataset": DATASET,
        "anchor": ANCHOR,
        "seed": seed,
    }
    spec = RunSpec(**(values | changes))
    status = "diverged" if score is None else "ok"
    accuracy = None if score is None else Accuracy(last=score, best=99.0, last5_mean=score, top5=99.0)
    used = () if method == "alone" or teacher is None else (TeacherUsed(name="b", sha256="a" * 64, accuracy=teacher),)
    environment = Environment(python="3", torch="2", device="cpu", threads=1, commit="c")
    record = Record(
        **identity_of(spec), status=status, classes=10, environment=environment, started_at="", ended_at="",
        accuracy=accuracy, teachers=used,
    )  # fmt: skip
    return Cell(spec, record)


def arm(method: str, *scores: float | None, **changes: Any) -> list[Cell]:
    return [cell(method, seed, score, **changes) for seed, score in enumerate(scores)]


def board(cells: list[Cell], *files: ClaimFile) -> Leaderboard:
    return build(cells, ("alone",), files)


def of(cells: list[Cell], *files: ClaimFile) -> Claims:
    return board(cells, *files).tables[0].claims


def only(cells: list[Cell], *files: ClaimFile) -> Claim:
    (claim,) = of(cells, *files).shown
    return claim


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [(68.51, "above"), (68.52, "within"), (71.0, "within"), (73.48, "within"), (73.49, "below")],
)
def test_verdict_says_where_our_interval_lies(accuracy: float, verdict: str) -> None:
    file = claims(rows=[{"pair": "duo", "teacher": 80.0, "accuracies": {"fancy": accuracy}}])
    claim = only(arm("fancy", *SCORES), file)
    assert (claim.verdict, claim.reason, claim.n, claim.mean) == (verdict, "", 3, 71.0)
    assert claim.interval is not None
    assert (claim.interval.low, claim.interval.high) == (pytest.approx(LOW), pytest.approx(HIGH))
    assert claim.difference == pytest.approx(71.0 - accuracy)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (arm("fancy", 70.0, 71.0), "fewer than 3 seeds"),
        (arm("fancy", 70.0), "fewer than 3 seeds"),
        (arm("fancy", 71.0, 71.0, 71.0), "zero variance"),
        (arm("fancy", 70.0, None, 72.0, 71.0), "1 of 4 runs diverged"),
        ([*arm("fancy", *SCORES), replace(cell("fancy", 3, 1.0), record=None)], "3 of 4 runs finished"),
        (arm("fancy", *SCORES, teacher=79.0), "other teacher: 79.00 %, published 80.00 %"),
        (arm("fancy", 70.0, teacher=79.0), "fewer than 3 seeds; other teacher: 79.00 %, published 80.00 %"),
        ([replace(cell("fancy", 0, 1.0), record=None)], "0 of 1 runs finished; fewer than 3 seeds"),
    ],
)
def test_no_verdict_without_grounds_for_one(cells: list[Cell], reason: str) -> None:
    claim = only(cells, claims())
    assert (claim.verdict, claim.reason) == ("cannot tell", reason)
    assert claim.accuracy == 72.0


def test_a_diverged_run_leaves_no_interval() -> None:
    claim = only(arm("fancy", 70.0, None, 72.0, 71.0), claims())
    assert claim.interval is None
    assert claim.mean == pytest.approx((70 + 10 + 72 + 71) / 4)


def test_the_teacher_counts_only_where_it_is_known_and_used() -> None:
    close, far = 80.0 + SAME_TEACHER, 80.0 + SAME_TEACHER + 0.01
    assert only(arm("fancy", *SCORES, teacher=close), claims()).verdict == "within"
    assert only(arm("fancy", *SCORES, teacher=far), claims()).verdict == "cannot tell"
    unknown = claims(rows=[{"pair": "duo", "accuracies": {"fancy": 72.0}}])
    assert only(arm("fancy", *SCORES, teacher=far), unknown).verdict == "within"
    both = of([*arm("alone", *SCORES), *arm("fancy", *SCORES, teacher=60.0)], claims())
    assert [(claim.method, claim.verdict) for claim in both.shown] == [("alone", "within"), ("fancy", "cannot tell")]


def test_only_claims_of_the_same_protocol_pair_and_method_are_shown() -> None:
    cells = arm("fancy", *SCORES)
    assert of(cells) == Claims()
    assert not of(cells, claims(anchor="else"))
    assert not of(cells, claims(rows=[{"pair": "trio", "accuracies": {"fancy": 72.0}}]))
    assert not of(cells, claims(rows=[{"pair": "duo", "accuracies": {"other": 72.0}}]))
    assert not of(arm("fancy", *SCORES, variant="mine"), claims())  # another configuration than the published one


CHANGED = ANCHOR.model_copy(update={"optimizer": Optimizer(lr=0.2, weight_decay=0.0)})
DEVIATES = (DeclaredDeviation(key="loss.tau", value=2.0, reason="why"),)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"anchor": SHORT},
            f"they are for proto in 9 epochs (sha256 {ANCHOR.sha256[:12]}), this table is of quick-v1 in 2 (sha256 "
            f"{SHORT.sha256[:12]})",
        ),
        (
            {"anchor": CHANGED},
            f"they are for proto in 9 epochs (sha256 {ANCHOR.sha256[:12]}), this table is of proto-v1 in 9 (sha256 "
            f"{CHANGED.sha256[:12]})",
        ),
        (
            {"dataset": DATASET.model_copy(update={"per_class": 20})},
            "they are for all of toy, this table is of toy-20pc",
        ),
        (
            {"deviations": DEVIATES},
            "they are for the protocol as it is, and the methods of this table deviate from it",
        ),
    ],
    ids=["short", "changed", "subset", "open"],
)
def test_claims_of_another_protocol_are_withheld_and_it_says_so(changes: dict[str, Any], reason: str) -> None:
    made = board([*arm("fancy", *SCORES, **changes), *arm("alone", *SCORES, **changes)], claims())
    assert made.tables[0].claims == Claims((), (reason,))
    text = to_markdown(made)
    assert f"published, but {reason}: none of them is shown." in text
    assert "72.00 " not in text
    assert "claimed" not in to_csv(made)
    (section,) = [table["claimed_and_reproduced"] for table in json.loads(to_json(made))["tables"]]
    assert (section["claims"], section["withheld"]) == ([], [reason])


def test_claims_change_nothing_above_their_section() -> None:
    cells = [*arm("alone", *SCORES), *arm("good", 73.0, 73.0, 73.6), *arm("fancy", 71.0, 72.5, 73.0)]
    top = claims(rows=[{"pair": "duo", "accuracies": {"fancy": 99.0}}])
    without, with_claims = to_markdown(board(cells)), to_markdown(board(cells, top))
    assert "Claimed" not in without
    assert with_claims.startswith(without.rstrip("\n") + "\n\n### Claimed and reproduced\n")
    plain, more = json.loads(to_json(board(cells))), json.loads(to_json(board(cells, top)))
    assert more["tables"][0].pop("claimed_and_reproduced")
    assert more == plain
    for before, after in zip(
        *(csv.DictReader(io.StringIO(to_csv(board(cells, *f)))) for f in ([], [top])), strict=True
    ):
        assert before.items() <= after.items()


def test_markdown_shows_value_source_epoch_ours_and_verdict() -> None:
    second = claims(name="Again", epoch_rule="best-test", runs=4, anchor_sha256=ANCHOR.sha256, rows=[
        {"pair": "duo", "accuracies": {"fancy": 74.0}, "note": "printed twice"},
    ])  # fmt: skip
    text = to_markdown(board([*arm("fancy", *SCORES), *arm("alone", 70.0, 70.5)], claims(), second))
    section = text.partition("### Claimed and reproduced")[2]
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert rows[0][:3] == ["method", "claimed %", "by"]
    assert rows[2:] == [
        ["alone", "70.50", "Paper", "last", "n/a", "70.25 [67.07, 73.43]", "2", "-0.25",
         "cannot tell: fewer than 3 seeds"],
        ["fancy", "72.00", "Paper", "last", "n/a", "71.00 [68.52, 73.48]", "3", "-1.00", "within"],
        ["fancy", "74.00", "Again", "best-test", "4", "71.00 [68.52, 73.48]", "3", "-3.00", "below"],
    ]  # fmt: skip
    assert "never ranked, never tested against ours, and in no mean" in section
    assert "best-test is the best by the test images themselves" in section
    assert "- Paper: A paper, https://example.org/p, a/b@c; its teacher has 80.00 %." in section
    assert "- Again: A paper, https://example.org/p, a/b@c; its teacher's accuracy is not stated." in section
    assert "- Again: printed twice." in section
    assert "best-test" not in to_markdown(board(arm("fancy", *SCORES), claims()))


def test_json_holds_every_number() -> None:
    (table,) = json.loads(to_json(board(arm("fancy", *SCORES), claims())))["tables"]
    (claim,) = table["claimed_and_reproduced"]["claims"]
    assert claim["ours"]["interval"] == {
        "low": pytest.approx(LOW), "high": pytest.approx(HIGH), "confidence": 0.95,
    }  # fmt: skip
    del claim["ours"]["interval"]
    assert claim == {
        "method": "fancy", "claimed": 72.0, "by": "Paper", "source": TREE["source"], "epoch_rule": "last",
        "runs": None, "teacher": 80.0, "note": "", "ours": {"n": 3, "mean": 71.0}, "difference": -1.0,
        "verdict": "within", "cannot_tell_because": "",
    }  # fmt: skip


def test_csv_has_columns_for_each_source_and_no_more_lines() -> None:
    cells = [*arm("fancy", *SCORES), *arm("alone", 70.0, 70.5), *arm("own", *SCORES)]
    other = claims(name="Again", rows=[{"pair": "duo", "accuracies": {"fancy": 90.0}}])
    alone, fancy, own = csv.DictReader(io.StringIO(to_csv(board(cells, claims(), other))))
    assert (fancy["claimed_Paper"], fancy["claimed_Paper_epoch"]) == ("72.0", "last")
    assert (fancy["claimed_Paper_difference"], fancy["claimed_Paper_verdict"]) == ("-1.0", "within")
    assert (fancy["claimed_Again"], fancy["claimed_Again_verdict"]) == ("90.0", "below")
    assert float(fancy["accuracy_t95_low"]) == pytest.approx(LOW)
    assert (alone["claimed_Again"], alone["claimed_Paper_verdict"]) == ("", "cannot tell: fewer than 3 seeds")
    assert {own[key] for key in own if key.startswith(("claimed", "accuracy_t95"))} == {""}


def test_foreign_text_cannot_break_the_section() -> None:
    cells = arm("fancy", *SCORES)
    hostile = claims(source={"title": "a | b\n# c <script>", "url": "u"})
    section = to_markdown(board(cells, hostile)).partition("### Claimed and reproduced")[2]
    assert r"- Paper: a \| b # c \<script\>, u; its teacher has 80.00 %." in section


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch_rule": "best"}, "epoch_rule is 'best': input should be 'last', 'best-test' or 'unknown'"),
        ({"rows": TREE["rows"] * 2}, "pair 'duo' appears twice; write its accuracies in one row"),
        ({"rows": []}, "rows is []"),
        ({"rows": [{"pair": "duo", "accuracies": {"m": 0.75}, "techer": 1}]}, "rows.0.techer: unknown key"),
        ({"rows": [{"pair": "duo", "accuracies": {"m": 175}}]}, "rows.0.accuracies.m is 175"),
        ({"name": "Else"}, "name: is 'Else', must be 'Paper' like the file"),
        ({"runs": 0}, "runs is 0"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "Paper.yaml"
    path.write_text(json.dumps(TREE | changes))  # JSON is YAML
    with pytest.raises((ConfigError, ProblemList), match=re.escape(message)) as caught:
        load_claims(path)
    assert str(path) in str(caught.value)


def test_what_ships_names_registered_pairs_methods_and_the_protocol(registry: Registry) -> None:
    assert len(shipped_claims()) >= 4
    for file in shipped_claims():
        anchor = load_anchor(file.anchor, registry.anchors.as_mapping())
        assert (file.anchor_sha256, file.epochs) == (anchor.sha256, anchor.schedule.epochs)
        assert file.dataset in registry.datasets
        for row in file.rows:
            assert registry.pairs[row.pair].dataset == file.dataset
            assert len(registry.pairs[row.pair].teachers) == 1
            assert set(row.accuracies) <= set(registry.methods), row


def test_every_pair_and_method_at_most_once_by_source() -> None:
    seen = [(file.name, row.pair) for file in shipped_claims() for row in file.rows]
    assert len(seen) == len(set(seen))
    assert sum(len(row.accuracies) for file in shipped_claims() for row in file.rows) == 13 * 13 + 11 + 2 + 11 * 2


def columns(text: str) -> dict[str, dict[str, str]]:
    """Return what Markdown tables print, by column and row."""
    found: dict[str, dict[str, str]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [[part.strip() for part in line.split("|")[1:-1]] for line in block.splitlines()]
        for label, *cells in lines[2:]:
            for column, value in zip(lines[0][1:], cells, strict=True):
                found.setdefault(column, {})[label] = value
    return found


SHORT_NAMES = {"resnet": "res", "mobilenet-?v2": "mbv2", "shuffle(net)?-?v": "shuv", r"wrn-?(\d+)-(\d)": r"wrn\1_\2"}
AS_MEANT = {"res32x4_mbv2": "res32x4_shuv2"}  # a slip, says the note beside the claim


def pair_of(printed: str) -> str:
    """Return our name of a pair printed as ``teacher student`` or ``teacher -> student``."""
    name = "_".join(printed.lower().replace('"', "").replace("(as printed", " ").replace("->", " ").split()[:2])
    for pattern, short in SHORT_NAMES.items():
        name = re.sub(pattern, short, name)
    return AS_MEANT.get(name, name)


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, str]:
    """The text of each published table, by source."""
    text = (shared / "goldens" / "README.md").read_text(encoding="utf-8")
    parts = dict.fromkeys(("mdistiller", "RepDistiller"), "")
    for name in parts:
        parts[name] = text.partition(f"### Published accuracies: {name} README")[2].partition("\n### ")[0]
    simkd, mark, sskd = text.partition("### Published accuracies: SimKD README")[2].partition("| SSKD README |")
    return parts | {"SimKD": simkd, "SSKD": mark + sskd + "\n"}


def shipped(name: str) -> ClaimFile:
    (file,) = (file for file in shipped_claims() if file.name == name)
    return file


def test_the_shipped_tables_are_the_printed_ones(published: dict[str, str]) -> None:
    tables = columns(published["RepDistiller"])
    assert {pair_of(column) for column in tables} == {row.pair for row in shipped("RepDistiller").rows}
    for column, values in tables.items():
        row = shipped("RepDistiller").of_pair(pair_of(column))
        assert row is not None
        printed = {"vanilla_kd" if name == "KD" else name.lower(): value for name, value in values.items()}
        printed.pop("fsp", None)  # no counterpart
        assert {"teacher": row.teacher, **row.accuracies} == {name: float(value) for name, value in printed.items()}


def test_the_shipped_single_claims_are_the_printed_ones(published: dict[str, str]) -> None:
    for column, values in columns(published["SSKD"]).items():
        row = shipped("SSKD").of_pair(pair_of(column))
        assert row is not None, column
        assert row.teacher == float(values["teacher"])
        assert row.accuracies == {"student": float(values["student"]), "sskd": float(values["SSKD"])}
    dkd = columns(published["mdistiller"])["DKD"]
    printed = {pair_of(pair): {"dkd": float(value)} for pair, value in dkd.items() if not pair.startswith("ResNet34")}
    printed.pop("res50_mobilenet-v1", None)  # ImageNet
    assert printed == {row.pair: row.accuracies for row in shipped("mdistiller").rows}
    (row,) = shipped("SimKD").rows
    simkd = columns(published["SimKD"])["ResNet-8x4"]
    best = float(simkd["SimKD f=8 / f=4 / f=2"].rpartition("/")[2])
    assert row.accuracies == {"student": float(simkd["student"]), "simkd": best}
