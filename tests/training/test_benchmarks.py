"""What the benchmarks compare does the same work, and what they report is what they measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from kdbench.errors import Unsupported
from kdbench.registry import Registry

# Behind everything else: scripts of other folders have the same names.
sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import report_lines
from boards import ROWS, place
from conventional import MEAN, STD, ConventionalRun, PilImages, plain
from lanes import off_the_line
from report_lines import Sheet
from workbench import Cohort, Place, Row, interleaved, random_split, ratios

PAIR, BATCH = "res20_res8", 4


@pytest.fixture(scope="module")
def where(registry: Registry) -> Place:
    return place(registry, PAIR, batch_size=BATCH)


def test_the_rows_need_the_logits_of_the_teacher_alone(where: Place) -> None:
    assert len(ROWS) == len({(row.method, where.options(row).model_dump_json()) for row in ROWS}) == 8
    for lane in Cohort(where, ROWS).lanes:
        (taps,) = lane.teacher_taps
        assert lane.taught
        assert (taps.stages, taps.embedding) == ((), False)


@pytest.mark.parametrize("row", [ROWS[0], ROWS[1], ROWS[5]], ids=lambda row: row.method)
def test_the_conventional_loop_trains_as_the_trainer_does(
    where: Place, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = Cohort(where, [row])
    teacher = plain(where, where.pair.teachers[0]).eval()
    loop = ConventionalRun(where, row, teacher)
    before = {key: value.clone() for key, value in loop.student.state_dict().items()}
    lane = cohort.lanes[0]
    inputs = cohort.trainer.batches.batch(lane.stream_key, 0)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
    batch = [(inputs.images - mean) / std, inputs.labels, inputs.index]
    monkeypatch.setattr(loop, "_next_batch", lambda: batch)
    loop.step(0)
    cohort.step(0)
    learned = lane.student.state_dict()
    weights = [key for key, value in learned.items() if value.is_floating_point() and key not in {"mean", "std"}]
    for key in weights:
        torch.testing.assert_close(loop.student.state_dict()[key], learned[key], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(before[key], learned[key]) for key in weights)
    assert loop.loss.mean == pytest.approx(lane.meters.losses.means()["total"], rel=1e-5)


def test_images_of_the_conventional_loop_are_crops_of_the_split() -> None:
    split = random_split(2)
    image, label, index = PilImages(split)[1]
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    pixels = (255 * (image * std + mean)).round()
    padded = torch.nn.functional.pad(split.images[1].float(), (4,) * 4)
    crops = [padded[:, down : down + 32, across : across + 32] for down in range(9) for across in range(9)]
    assert (label, index) == (int(split.labels[1]), 1)
    assert any(torch.equal(pixels, found) for crop in crops for found in (crop, crop.flip(2)))


def test_lanes_of_a_cohort_are_runs_alone(where: Place) -> None:
    cohort, alone = Cohort(where, ROWS[:3]), Cohort(where, ROWS[2:3])
    for index in range(2):
        cohort.step(index)
        alone.step(index)
    found, expected = (each.lanes[-1].student.state_dict() for each in (cohort, alone))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_contenders_take_turns_and_every_other_round_goes_backwards() -> None:
    seen: list[str] = []
    contenders = {name: ((lambda _index, n=name: seen.append(n)), steps) for name, steps in (("a", 1), ("b", 2))}
    times = interleaved(contenders, 2)
    assert "".join(seen) == "abb" + "abb" + "bba"
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}
    assert ratios({"a": [2.0, 6.0], "b": [1.0, 2.0]}, "a", "b") == [2.0, 3.0]


def test_how_far_costs_are_off_a_straight_line() -> None:
    assert off_the_line({n: 3 + 2.0 * n for n in (1, 2, 4, 8, 16)}) == pytest.approx(0, abs=1e-9)
    assert off_the_line({n: 3 + 2.0 * n**2 for n in (1, 2, 4, 8, 16)}) > 10


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report_lines, "OUT", tmp_path / "bench")
    return tmp_path / "bench" / "toy.json"


def test_a_line_is_the_median_with_its_target(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Sheet("toy", "Toy", "About.") as sheet:
        sheet.add("speed", [3.0, 1.0, 2.0], subject="pair", at_least=2)
        sheet.add("time", 1234.5, unit="ms")
        sheet.add("memory", 10.0, unit="MiB", at_most=10)
    assert capsys.readouterr().out.splitlines() == [
        "Toy: speed, pair: measured 2 x (1..3) target >= 2 x pass",
        "Toy: time: measured 1234 ms",
        "Toy: memory: measured 10 MiB target <= 10 MiB pass",
    ]
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert [(line["measured"], line["low"], line["high"], line["passed"]) for line in kept["lines"]] == [
        (2.0, 1.0, 3.0, True),
        (1234.5, 1234.5, 1234.5, None),
        (10.0, 10.0, 10.0, True),
    ]
    assert kept["environment"]["threads"] == torch.get_num_threads()


def measure(figures: dict[str, float], error: Exception | None = None) -> None:
    """Report figures that must be at most 10, and fail if told so."""
    with Sheet("toy", "Toy") as sheet:
        for name, figure in figures.items():
            sheet.add(name, figure, at_most=10)
        if error is not None:
            raise error


def test_a_missed_target_ends_the_script_with_1_after_everything(out: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        measure({"first": 11.0, "second": 3.0})
    assert ended.value.code == 1
    assert [line["passed"] for line in json.loads(out.read_text(encoding="utf-8"))["lines"]] == [False, True]


def test_a_benchmark_that_broke_leaves_no_figures(out: Path) -> None:
    with pytest.raises(RuntimeError, match="broke"):
        measure({"first": 3.0}, RuntimeError("broke"))
    assert not out.exists()


def test_a_method_that_declines_the_pair_is_no_contender(where: Place) -> None:
    with pytest.raises(Unsupported, match="two teachers"):
        Cohort(where, [Row("asib")])
