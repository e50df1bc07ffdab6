"""Leaderboards from hand-made records: exact tables, refusals, statuses, and files without surprises."""

import csv
import io
import itertools
import json
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import kdbench
import kdbench.leaderboard
import kdbench.methods
import kdbench.stats
from kdbench.config.schema import Anchor, Data, Loss, Optimizer, Schedule, Step
from kdbench.errors import ConfigError, ProblemList, StoreError
from kdbench.leaderboard import Cell, build, to_csv, to_json, to_markdown, write
from kdbench.leaderboard.details import times
from kdbench.records import PARTS, Accuracy, Cost, Environment, Record, TeacherUsed
from kdbench.spec import DatasetRef, DeclaredDeviation, PluginRef, RunSpec

ANCHOR = Anchor(
    name="proto",
    loss=Loss(ce_alpha=0.5, kd_alpha=0.5),
    optimizer=Optimizer(lr=0.1, weight_decay=0.0),
    schedule=Schedule(epochs=3),
    data=Data(batch_size=8),
    step=Step(),
)
DATASET = DatasetRef(name="toy", slug="toy", fingerprint="f" * 20)
BASELINES = ("alone", "plain")  # any names do: the board is told which methods are baselines
TEACHER = TeacherUsed(name="big", sha256="a" * 64, accuracy=80.0)
ENVIRONMENT = Environment(python="3.11", torch="2.14", device="cpu", threads=2, commit="c0ffee", machine="box")


def planned(method: str, seed: int = 0, **changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "method": method,
        "method_version": 1,
        "plugin": PluginRef(distribution="dist", version="1.0"),
        "options": {"beta": 2.0},
        "pair": "duo",
        "student": "small",
        "teachers": () if method == "alone" else ("big",),
        "dataset": DATASET,
        "anchor": ANCHOR,
        "seed": seed,
    }
    return RunSpec(**(values | changes))


def finished(spec: RunSpec, score: float | None, **changes: Any) -> Record:
    accuracy = None if score is None else Accuracy(last=score, best=99.0, last5_mean=score, top5=99.0)
    ones: dict[str, Any] = dict.fromkeys(Cost.model_fields, 1)
    same = ("run_id", "config_sha256", "method", "method_version", "plugin", "options", "division", "deviations")
    values: dict[str, Any] = {name: getattr(spec, name) for name in (*same, "pair", "student", "seed")}
    values |= {
        "kdbench_version": "0.1.0",
        "dataset": spec.dataset.label,
        "dataset_ref": spec.dataset,
        "status": "ok",
        "classes": 10,
        "anchor": spec.anchor.label,
        "anchor_sha256": spec.anchor.sha256,
        "teachers": (TEACHER,) if spec.teachers else (),
        "accuracy": accuracy,
        "agreement_with_teacher": 90.0 if spec.teachers else None,
        "cost": Cost(**ones | {"train_seconds": 10.0 + spec.seed, "deployed_parameters": 12345}),
        "environment": ENVIRONMENT,
        "started_at": "2025-01-01T00:00:00Z",
        "ended_at": "2025-01-01T00:01:00Z",
    }
    return Record(**(values | changes))


def cell(method: str, seed: int, score: float, **changes: Any) -> Cell:
    spec = planned(method, seed, **changes)
    return Cell(spec, finished(spec, score))


def failed(method: str, seed: int, status: str, reason: str = "") -> Cell:
    spec = planned(method, seed)
    return Cell(spec, finished(spec, None, status=status, reason=reason, cost=None))


def arm(method: str, *scores: float) -> list[Cell]:
    return [cell(method, seed, score) for seed, score in enumerate(scores)]


def small_board() -> list[Cell]:
    return [*arm("alone", 70.0, 71.0, 72.0), *arm("plain", 71.0, 72.5, 73.0), *arm("fancy", 73.0, 73.0, 73.6)]


def grid(cells: Iterable[Cell], section: int = 0) -> list[dict[str, str]]:
    """Return the rows of one Markdown table as dictionaries of its header."""
    lines = re.findall(r"(?:^\|.*\n)+", to_markdown(build(cells, BASELINES)), re.MULTILINE)[section].splitlines()
    split = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]


def test_markdown_exactly() -> None:
    # plain - alone = 1, 1.5, 1: mean 3.5/3, std .288675, t(.975, 2) = 4.302653: half width .717109
    # fancy - alone = 3, 2, 1.6; fancy - plain = 2, .5, .6
    # p = .0198 (t = 7), .0340 (t = 5.284) and .1664 (t = 2.132) with 2 degrees of freedom; Holm over two each
    costs = "| 1 + 1 | 0 | 1 |"
    text = to_markdown(build(small_board(), BASELINES))
    assert [re.sub(" +", " ", line) for line in text.splitlines()[:9] if not line.startswith("|:")] == [
        "# Leaderboard",
        "",
        "## toy, duo, proto-v1, closed division",
        "",
        "| method | ok | accuracy % | vs alone | p vs alone | vs plain | p vs plain | train s | params | agreement % "
        "| forwards | peak MiB | FLOPs |",
        "| alone | 3/3 | 71.00 ± 1.00 | - | - | -1.17 [-1.88, -0.45] | 0.040 (n=3) | 11.0 | 12,345 | n/a " + costs,
        "| plain | 3/3 | 72.17 ± 1.04 | +1.17 [+0.45, +1.88] | 0.040 (n=3) | - | - | 11.0 | 12,345 | 90.0 " + costs,
        "| fancy | 3/3 | 73.20 ± 0.35 | +2.20 [+0.41, +3.99] | 0.040 (n=3) | +1.03 [-1.05, +3.12] | 0.166 (n=3) "
        "| 11.0 | 12,345 | 90.0 " + costs,
    ]


def test_gain_and_its_interval_in_json() -> None:
    row = json.loads(to_json(build(small_board(), BASELINES)))["tables"][0]["rows"][1]
    gain = row["gains"][0]
    assert (gain["baseline"], gain["n"], gain["differences"]) == ("alone", 3, [1.0, 1.5, 1.0])
    assert gain["mean"] == pytest.approx(3.5 / 3)
    assert gain["interval"]["low"] == pytest.approx(3.5 / 3 - 0.717109, abs=1e-5)
    assert gain["interval"]["high"] == pytest.approx(3.5 / 3 + 0.717109, abs=1e-5)
    assert row["gains"][1] == {"baseline": "plain", "is_itself": True}
    assert [run["accuracy"] for run in row["runs"]] == [71.0, 72.5, 73.0]
    assert row["train_seconds"] == 11.0


def test_parts_of_the_time_are_shown_where_every_run_has_them() -> None:
    cells = small_board()
    (first, *_) = (place for place, each in enumerate(cells) if each.spec.method == "fancy")
    record = cells[first].record
    assert record is not None
    assert record.cost is not None
    old = {key: value for key, value in record.cost.model_dump().items() if key.removesuffix("_seconds") not in PARTS}
    whole = Cost(**old | {f"{part}_seconds": place for place, part in enumerate(PARTS)})
    cells[first] = Cell(cells[first].spec, record.model_copy(update={"cost": whole}))
    rows = build(cells, BASELINES).tables[0].rows
    # Seeds have 0 and 1 and 1 seconds of data, 1 and 1 and 1 of the teacher, and so on.
    assert rows[2].parts == pytest.approx(dict(zip(PARTS, (2 / 3, 1.0, 4 / 3, 5 / 3, 2.0), strict=True)))
    assert times(rows[2]).also == ("mean: data 0.67, teacher 1, student 1.3, method 1.7, evaluation 2",)
    cells[first] = Cell(cells[first].spec, record.model_copy(update={"cost": Cost(**old)}))
    board = build(cells, BASELINES)
    assert times(board.tables[0].rows[2]).also == (), "one of its runs is from before"
    told = json.loads(to_json(board))["tables"][0]["rows"]
    assert told[1]["seconds_by_part"] == dict.fromkeys(PARTS, 1.0)
    assert "seconds_by_part" not in told[2]


def test_rows_are_baselines_in_order_then_by_mean_then_by_name_unscored_last() -> None:
    cells = [*arm("b-low", 60.0), *arm("z-high", 99.0), *arm("a-low", 60.0), Cell(planned("none"))]
    cells += [*arm("plain", 50.0), *arm("alone", 40.0)]
    assert [row["method"] for row in grid(cells)] == ["alone", "plain", "z-high", "a-low", "b-low", "none"]


def test_any_order_of_cells_gives_the_same_bytes() -> None:
    cells = [*small_board()[:5], failed("plain", 2, "diverged"), *arm("open", 70.0, 70.5)]
    outputs = {
        (to_markdown(board), to_json(board), to_csv(board))
        for order in itertools.islice(itertools.permutations(cells), 0, 5040, 503)
        for board in [build(order, BASELINES)]
    }
    assert len(outputs) == 1


def test_a_seed_that_failed_is_left_out_of_both_arms_and_named() -> None:
    cells = [
        *arm("alone", 70.0, 71.0, 72.0),
        *arm("fancy", 71.0, 73.0),
        failed("fancy", 2, "infra_failed", "disk | full"),
    ]
    text = to_markdown(build(cells, BASELINES))
    row = grid(cells)[1]
    assert row["ok"] == "2/3 (1 infra_failed)"
    assert row["accuracy %"] == "72.00 ± 1.41"
    # differences 1 and 2 over seeds 0 and 1: 1.5 +- 12.706205 * .5
    assert row["vs alone"] == "+1.50 [-4.85, +7.85] (n=2)"
    assert r"- fancy: seed 2 infra_failed (disk \| full)." in text


@pytest.mark.parametrize("status", ["missing", "skipped", "infra_failed"])
def test_no_status_drops_out_of_sight(status: str) -> None:
    last = Cell(planned("fancy", 1)) if status == "missing" else failed("fancy", 1, status)
    cells = [*arm("fancy", 71.0), last]
    assert grid(cells)[0]["ok"] == f"1/2 (1 {status})"
    assert f"fancy: seed 1 {status}" in to_markdown(build(cells, BASELINES))
    run = json.loads(to_json(build(cells, BASELINES)))["tables"][0]["rows"][0]["runs"][1]
    assert (run["status"], run["accuracy"], run["score"]) == (status, None, None)


def test_diverged_counts_as_chance_and_is_flagged() -> None:
    cells = [*arm("alone", 70.0, 71.0, 72.0), *arm("fancy", 72.0, 74.0), failed("fancy", 2, "diverged", "loss is nan")]
    row = grid(cells)[1]
    # 72, 74, 10: mean 52, std sqrt((400 + 484 + 1764) / 2) = 36.39
    assert row["accuracy %"] == "52.00 ± 36.39 (unstable 1/3; ok only: 73.00 ± 1.41)"
    assert row["ok"] == "2/3 (1 diverged)"
    assert row["vs alone"] == "-19.00 [n/a (unstable)]"  # (2 + 3 - 62) / 3
    assert "fancy: seed 2 diverged (loss is nan)" in to_markdown(build(cells, BASELINES))
    cells = [*arm("alone", 70.0, 71.0), failed("alone", 2, "diverged"), *arm("fancy", 71.0, 72.5, 73.0)]
    assert grid(cells)[1]["vs alone"] == "+21.83 [n/a (unstable)]"  # (1 + 1.5 + 63) / 3: the baseline's failure


def test_one_seed_zero_variance_and_no_common_seed() -> None:
    one = grid([*arm("alone", 70.0), *arm("fancy", 71.0)])[1]
    assert (one["accuracy %"], one["vs alone"]) == ("71.00 ± n/a", "+1.00 [n/a (one seed)]")
    # in binary the two differences are unequal by 1e-14
    flat = grid([*arm("alone", 72.8, 72.1), *arm("fancy", 73.1, 72.4)])[1]
    assert flat["vs alone"] == "+0.30 [n/a (zero variance)]"
    assert grid([*arm("alone", 70.0), *arm("fancy", 70.0)])[1]["vs alone"] == "0.00 [n/a (one seed)]"
    assert grid([cell("alone", 0, 70.0), cell("fancy", 1, 71.0)])[1]["vs alone"] == "n/a (no common seed)"


def test_unequal_seed_lists_print_the_common_n() -> None:
    rows = grid([*arm("alone", 70.0, 71.0, 72.0, 73.0), *arm("plain", 71.0, 72.0, 74.0)])
    assert rows[1]["ok"] == "3/3"
    assert rows[1]["vs alone"].endswith("(n=3)")
    assert rows[0]["vs plain"].endswith("(n=3)")


def test_absent_baseline_has_no_column_but_a_note() -> None:
    text = to_markdown(build([*arm("alone", 70.0), *arm("fancy", 71.0)], BASELINES))
    assert "vs plain" not in text
    assert "- No gain over plain: it has no runs here." in text


def test_open_division_is_a_table_of_its_own_held_against_closed_baselines() -> None:
    changed = (DeclaredDeviation(key="loss.tau", value=2.0, reason="as | published"),)
    cells = [*arm("alone", 70.0, 71.0, 72.0), *arm("fancy", 70.5, 71.5, 72.5)]
    cells += [cell("freed", seed, score, deviations=changed) for seed, score in enumerate((71.0, 72.5, 73.0))]
    cells += [cell("plain", 0, 70.0, deviations=changed)]  # a baseline that deviates is none
    assert [row["method"] for row in grid(cells, 0)] == ["alone", "fancy"]
    row = grid(cells, 1)[1]
    assert "No gain over plain: it has no closed runs here." in to_markdown(build(cells, BASELINES))
    assert (row["method"], row["vs alone"], row["deviations"]) == ("freed", "+1.17 [+0.45, +1.88]", "loss.tau=2.0")
    text = to_markdown(build(cells, BASELINES))
    assert r"- freed deviates from the anchor: loss.tau = 2.0: as \| published" in text
    assert "## toy, duo, proto-v1, open division" in text


def test_one_table_per_anchor_dataset_and_pair() -> None:
    other = ANCHOR.model_copy(update={"version": 2})
    subset = DATASET.model_copy(update={"per_class": 5})
    cells = [cell("m", 0, 70.0, **change) for change in ({}, {"anchor": other}, {"dataset": subset}, {"pair": "trio"})]
    found = ["/".join((t.anchor, t.dataset.label, t.pair)) for t in build(cells, ()).tables]
    assert found == ["proto-v1/toy/duo", "proto-v1/toy/trio", "proto-v1/toy-5pc/duo", "proto-v2/toy/duo"]


def test_footer_says_where_the_numbers_come_from_and_what_they_do_not_say() -> None:
    text = to_markdown(build(small_board(), BASELINES))
    for part in (
        "after the last epoch (3)",
        "Verdict: no winner: nothing can be said, MDE 3.05 pt. Against a winner: 3 of 5 seeds that all methods have.",
        "Nothing is bold, and no row has a rank: 3 of 5 seeds that all methods have.",
        "(m = 2 with alone, m = 2 with plain)",
        "No star: 3 of 5 seeds.",
        "alpha 0.05; ROPE ±0.20 pt; both are kdbench's, the same for every board. Pairing: rho 0.87",
        "Seeds 0-2; n = 3 planned per method. The order of rows",
        f"Anchor proto-v1, sha256 {ANCHOR.sha256[:12]}.",
        "Dataset toy as toy, fingerprint ffffffffffff.",
        "Teacher big: 80.00 %, sha256 aaaaaaaaaaaa.",
        "Environment: machine box; device cpu; threads 2; torch 2.14; python 3.11; kdbench 0.1.0.",
    ):
        assert part in text
    assert "*" not in text  # no stars, no bold


def test_several_machines_are_all_named() -> None:
    spec = planned("m", 1)
    elsewhere = ENVIRONMENT.model_copy(update={"machine": "other", "torch": "2.13"})
    cells = [cell("m", 0, 70.0), Cell(spec, finished(spec, 71.0, environment=elsewhere))]
    text = to_markdown(build(cells, ()))
    assert "machine box, other; device cpu; threads 2; torch 2.13, 2.14;" in text
    assert "their train s cannot be compared" in text


def on_devices(count: int, seed: int, anchor: Anchor = ANCHOR) -> Cell:
    spec = planned("m", seed, anchor=anchor)
    around = ENVIRONMENT.model_copy(update={"world_size": count})
    return Cell(spec, finished(spec, 70.0, environment=around))


def test_runs_on_several_devices_are_told_apart() -> None:
    assert "Devices per run" not in to_markdown(build([on_devices(1, 0), on_devices(1, 1)], ()))
    text = to_markdown(build([on_devices(2, 0), on_devices(2, 1)], ()))
    assert "Devices per run: 2. On any number of them the images of each step are the same" in text
    text = to_markdown(build([on_devices(1, 0), on_devices(2, 1)], ()))
    assert "Devices per run: 1, 2; their train s cannot be compared. On any number" in text


def test_refuses_other_numbers_of_devices_where_batchnorm_depends_on_them() -> None:
    local = ANCHOR.model_copy(update={"step": Step(batch_norm="local")})
    assert len(build([on_devices(2, 0, local), on_devices(2, 1, local)], ()).tables[0].rows) == 1
    message = refusal(on_devices(1, 0, local), on_devices(2, 1, local))
    assert "2 numbers of devices per run under step.batch_norm local: 1 in proto-v1/toy/duo/m/seed0; 2 in" in message


def refusal(*cells: Cell) -> str:
    with pytest.raises(ConfigError) as caught:
        build(cells, BASELINES)
    return str(caught.value)


def test_refuses_two_anchors_of_one_name() -> None:
    other = ANCHOR.model_copy(update={"schedule": Schedule(epochs=4)})
    message = refusal(cell("m", 0, 70.0), cell("n", 0, 70.0, anchor=other))
    assert "proto-v1/toy/duo: 2 anchors of one name (sha256)" in message
    assert f"{ANCHOR.sha256[:12]} in proto-v1/toy/duo/m/seed0" in message
    assert f"{other.sha256[:12]} in proto-v1/toy/duo/n/seed0" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method_version": 2}, "2 method versions: 1 in proto-v1/toy/duo/m/seed0; 2 in proto-v1/toy/duo/m/seed1"),
        ({"options": {"beta": 8.0}}, '2 sets of options: {"beta": 2.0} in'),
        ({"plugin": PluginRef(distribution="fork", version="1.0")}, "2 configurations (sha256 without the seed)"),
        ({"teachers": ("big", "huge")}, "2 configurations (sha256 without the seed)"),
    ],
)
def test_refuses_two_configurations_in_a_row(changes: dict[str, Any], words: str) -> None:
    message = refusal(cell("m", 0, 70.0), cell("m", 1, 70.0, **changes))
    assert "method 'm'" in message
    assert words in message
    assert "proto-v1/toy/duo/m/seed1" in message
    assert words in refusal(cell("m", 0, 70.0), Cell(planned("m", 1, **changes)))  # a missing run, too


def test_where_and_by_whom_a_run_was_made_may_differ() -> None:
    spec = planned("m", 1, plugin=PluginRef(distribution="dist", version="1.1", file_sha256="b"))
    (row,) = build([cell("m", 0, 70.0), Cell(spec, finished(spec, 71.0))], ()).tables[0].rows
    assert row.plugins == ("dist 1.0", "dist 1.1")


def test_refuses_two_teachers_in_one_table_but_not_beside_a_method_without() -> None:
    spec = planned("n")
    other = finished(spec, 70.0, teachers=(TEACHER.model_copy(update={"sha256": "b" * 64}),))
    message = refusal(cell("alone", 0, 60.0), cell("m", 0, 70.0), Cell(spec, other))
    assert "2 teachers for one table (sha256): aaaaaaaaaaaa in proto-v1/toy/duo/m/seed0; bbbbbbbbbbbb in" in message
    assert "alone" not in message
    assert len(build([cell("alone", 0, 60.0), cell("m", 0, 70.0)], ()).tables[0].rows) == 2


def test_refuses_other_images_or_another_backbone_under_one_name() -> None:
    other = DATASET.model_copy(update={"fingerprint": "e" * 20})
    assert "2 datasets of one name" in refusal(cell("m", 0, 70.0), cell("n", 0, 70.0, dataset=other))
    message = refusal(cell("m", 0, 70.0), cell("n", 0, 70.0, student="tiny"))
    assert "2 backbones trained under one pair name: small in" in message


def test_refuses_a_seed_twice_and_names_both_places() -> None:
    first, second = (Cell(c.spec, c.record, path) for c, path in zip(arm("m", 70.0) * 2, ("a/s0", "b/s0"), strict=True))
    assert "seed 0 occurs 2 times (a/s0, b/s0)" in refusal(first, second)


def test_refuses_a_record_that_is_not_of_its_spec() -> None:
    message = refusal(Cell(planned("m", 1), finished(planned("m", 0), 70.0)))
    assert "proto-v1/toy/duo/m/seed1: seed is 0 in the record and 1 in the spec beside it" in message
    spec = planned("m", 0)
    message = refusal(Cell(spec, finished(spec, 70.0, anchor_sha256="d" * 64)))
    assert f"anchor_sha256 is dddddddddddd in the record and {ANCHOR.sha256[:12]} in the spec" in message
    assert "config_sha256 is dddddddddddd" in refusal(Cell(spec, finished(spec, 70.0, config_sha256="d" * 64)))


@pytest.mark.parametrize("score", [None, float("nan"), -1.0, 100.5])
def test_refuses_ok_without_an_accuracy(score: float | None) -> None:
    spec = planned("m")
    assert f"status ok with accuracy {score}" in refusal(Cell(spec, finished(spec, score)))


def test_all_problems_are_reported_together_and_no_runs_are_one() -> None:
    cells = [*arm("m", 70.0), *arm("m", 70.0), cell("n", 0, 70.0), cell("n", 1, 70.0, method_version=2)]
    with pytest.raises(ProblemList) as caught:
        build(cells, ())
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="no runs"):
        build([], ())


def hostile() -> list[Cell]:
    spec = planned("m", dataset=DATASET.model_copy(update={"name": "npz:/a|b\n## c\u202e"}))
    machine = ENVIRONMENT.model_copy(update={"machine": "=cmd|'/c calc'!A0\x1b[31m"})
    cells = [Cell(spec, finished(spec, 70.0, environment=machine, agreement_with_teacher=float("nan")))]
    changed = (DeclaredDeviation(key="=1+1", value="@x", reason="a\r\nb"),)
    return [*cells, cell("freed", 0, 70.0, deviations=changed)]


def test_foreign_text_cannot_break_the_markdown() -> None:
    text = to_markdown(build(hostile(), ()))
    assert r"Dataset npz:/a\|b ## c as toy" in text
    assert r"machine =cmd\|'/c calc'!A0 \[31m" in text
    assert not set(text) & {"\x1b", "\r", "\u202e"}
    assert len(grid(hostile())) == 1  # zip(strict) in it counts the cells


def test_json_has_no_nan() -> None:
    tree = json.loads(to_json(build(hostile(), ())), parse_constant=pytest.fail)
    assert tree["schema_version"] == 1
    assert tree["tables"][0]["rows"][0]["agreement_with_teacher"] is None


def test_csv_quotes_formulas_but_no_numbers() -> None:
    cells = [*arm("alone", 72.0, 73.5), *arm("fancy", 71.0, 72.0), *hostile()[1:]]
    rows = list(csv.DictReader(io.StringIO(to_csv(build(cells, BASELINES)))))
    assert [row["method"] for row in rows] == ["alone", "fancy", "freed"]
    assert rows[1]["vs_alone"] == "-1.25"
    assert (rows[1]["vs_alone_n"], rows[1]["accuracy_mean"], rows[1]["ok"]) == ("2", "71.5", "2")
    assert rows[2]["deviations"] == "'=1+1=@x"
    assert rows[0]["vs_alone"] == ""


def test_write_makes_whole_files_with_equal_bytes(tmp_path: Path) -> None:
    board = build(small_board(), BASELINES)
    paths = write(board, tmp_path / "new" / "out", ["md", "json", "csv", "md"])
    assert [path.name for path in paths] == ["leaderboard.md", "leaderboard.json", "leaderboard.csv"]
    before = [path.read_bytes() for path in paths]
    write(build(reversed(small_board()), BASELINES), tmp_path / "new" / "out", ["md", "json", "csv"])
    assert [path.read_bytes() for path in paths] == before
    assert sorted((tmp_path / "new" / "out").iterdir()) == sorted(paths)
    assert before[0].decode() == to_markdown(board)
    with pytest.raises(StoreError, match="cannot be written"):
        write(board, paths[0] / "below", ["md"])


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["md", "pdf"], "--format: unknown format 'pdf'. Allowed: md, html, json, csv, latex"),
        (["md", "jsn"], "--format: unknown format 'jsn'. Did you mean 'json'? Allowed: md, html, json, csv, latex"),
        ([], "--format: none given; allowed: md, html, json, csv, latex"),
    ],
)
def test_an_unknown_format_writes_nothing(tmp_path: Path, formats: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        write(build(small_board(), ()), tmp_path, formats)
    assert list(tmp_path.iterdir()) == []


def test_no_method_is_named_in_the_code() -> None:
    names = [module.name for module in pkgutil.iter_modules(kdbench.methods.__path__)]
    assert names
    packages = (kdbench.leaderboard, kdbench.stats)
    files = [file for package in packages for file in Path(package.__path__[0]).glob("*.py")]
    for file in files:
        found = [name for name in names if re.search(rf"[\"'`]{re.escape(name)}[\"'`]", file.read_text())]
        assert not found, file
