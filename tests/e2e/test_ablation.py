"""An ablation from the command to its table, with a method, a preset and ladders of a plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Outcome, Place, failure, installed, kdbench, snapshot, write_plugin

PLUGIN = '''
from pathlib import Path
from pydantic import Field
import kdbench

class BlendOptions(kdbench.Options):
    teach: bool = Field(False, description="whether the teacher's term is used")
    boost: float = Field(1.0, ge=0, description="factor on the teacher's term")
    unused: int = Field(0, description="nothing")

class Blend(kdbench.Method[BlendOptions]):
    """Cross-entropy, and on request a teacher's term."""

    name = "blend"
    source = kdbench.Source(title="none", year=2024, url="https://example.org")
    options_type = BlendOptions
    published = kdbench.LossWeights(ce=1.0, kd=1.0)

    def losses(self, batch):
        terms = {"ce": batch.supervised()}
        if self.options.teach:
            kd = batch.kd()
            terms["kd"] = kdbench.Term(kd.value, kd.weight * self.options.boost)
        return terms

@kdbench.hookimpl
def kdbench_methods():
    return [Blend]

@kdbench.hookimpl
def kdbench_presets():
    return [Path(__file__).with_name("boosted.yaml"), Path(__file__).with_name("quick.yaml")]

@kdbench.hookimpl
def kdbench_ladders():
    return sorted(Path(__file__).with_name("ladders").glob("*.yaml"))
'''
BOOSTED = """
name: boosted
description: the teacher's term, doubled
method: blend
pair: tiny
anchor: crd_smoke
options: {teach: true, boost: 2.0, unused: 1}
keys: {teacher: "yes"}
notes: [made for tests]
"""
QUICK = """
name: quick
version: 4
description: one epoch for any method
anchor:
  extends: crd_smoke
  schedule: {epochs: 1, warmup_epochs: 0, milestones: []}
options_of:
  blend: {teach: true}
"""
CLEAN = """
name: clean
method: blend
default: true
anchor: crd_smoke
factors: {teacher: [teach], strength: [boost]}
common: {unused: 3}
by_anchor: {quick: {unused: 4}}
steps:
  - {name: alone}
  - {name: taught, against: alone, factor: teacher, options: {teach: true}}
  - {name: boosted, against: taught, factor: strength, options: {boost: 2.0}, by_anchor: {quick: {boost: 3.0}}}
"""
AS_WRITTEN = """
name: as_written
method: blend
anchor: crd_smoke
verbatim: true
steps:
  - {name: alone}
  - {name: everything, against: alone, factor: teacher, preset: boosted}
"""
LOOSE = """
name: loose
method: blend
anchor: crd_smoke
factors: {teacher: [teach], strength: [boost]}
steps:
  - {name: alone}
  - {name: taught, against: alone, factor: teacher, options: {teach: true, boost: 2.0}}
  - {name: same, against: taught, factor: strength}
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = write_plugin(tmp_path_factory.mktemp("site"), "blend_plugin", PLUGIN)
    (folder / "ladders").mkdir()
    files = {"boosted": BOOSTED, "quick": QUICK, "ladders/clean": CLEAN, "ladders/as": AS_WRITTEN, "ladders/l": LOOSE}
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _installed(site: Path) -> Iterator[None]:
    with installed(site):
        yield


def words(place: Place, *more: object) -> list[object]:
    return [
        "--pair", "tiny", "--per-class", 20, "--out", place.runs, "--teachers", place.teachers, "--threads", 1, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("ablated"))


@pytest.fixture(scope="module")
def ablated(place: Place, site: Path) -> Outcome:
    """Return what the command said that ran the default ladder with two seeds."""
    with installed(site):
        outcome = kdbench("ablate", "blend", *words(place, "--seeds", 2, "--executor", "inline"))
    assert outcome.code == 0, outcome
    return outcome


def test_it_prints_what_each_step_changes_before_it_runs(ablated: Outcome) -> None:
    assert ablated.out.splitlines()[:5] == [
        "alone: compared with none",
        "taught against alone: teacher",
        "  teach: false -> true",
        "boosted against taught: strength",
        "  boost: 1.0 -> 2.0",
    ]


def test_every_step_is_a_variant_with_the_same_seeds(ablated: Outcome, place: Place) -> None:
    folder = place.runs / "crd_smoke-v1" / "digits-20pc" / "tiny"
    runs = {path.relative_to(folder).as_posix() for path in folder.glob("*/seed*")}
    steps = ("alone", "taught", "boosted")
    assert runs == {f"blend@clean.{step}/seed{seed}" for step in steps for seed in (0, 1)}
    spec = json.loads((folder / "blend@clean.boosted" / "seed0" / "spec.json").read_text(encoding="utf-8"))
    assert spec["options"] == {"teach": True, "boost": 2.0, "unused": 3}


def test_the_table_is_what_the_records_say(ablated: Outcome, place: Place) -> None:
    name = "blend.clean-crd_smoke-v1-digits-20pc-tiny"
    table: Any = json.loads((place.runs / "ablations" / f"{name}.json").read_text(encoding="utf-8"))
    steps = {step["step"]: step for step in table["steps"]}

    def scores(step: str) -> list[float]:
        folder = place.runs / "crd_smoke-v1" / "digits-20pc" / "tiny" / f"blend@clean.{step}"
        records = [json.loads((folder / f"seed{k}" / "record.json").read_text(encoding="utf-8")) for k in (0, 1)]
        return [
            record["accuracy"]["last"] if record["status"] == "ok" else 100 / record["classes"] for record in records
        ]

    for step, against in (("taught", "alone"), ("boosted", "taught")):
        ours, theirs = scores(step), scores(against)
        assert steps[step]["accuracy"]["mean"] == pytest.approx(sum(ours) / 2)
        assert steps[step]["gain"]["mean"] == pytest.approx(sum(ours) / 2 - sum(theirs) / 2, abs=1e-6)
        assert steps[step]["planned"] == 2
    assert steps["alone"]["gain"] is None
    assert steps["taught"]["extra"]["forwards"] == pytest.approx(0, abs=1e-9)  # the teacher runs for all of them
    text = (place.runs / "ablations" / f"{name}.md").read_text(encoding="utf-8")
    assert text in ablated.out
    assert [line.split()[1] for line in text.splitlines() if line.startswith("| ")] == ["step", *steps]


def test_finished_runs_are_not_run_again(ablated: Outcome, place: Place) -> None:
    before = snapshot(place.runs / "crd_smoke-v1")
    outcome = kdbench("ablate", "blend", *words(place, "--seeds", 2, "--executor", "inline"))
    assert outcome.code == 0
    assert snapshot(place.runs / "crd_smoke-v1") == before


def test_a_board_has_a_row_for_each_step(ablated: Outcome, place: Place) -> None:
    outcome = kdbench("leaderboard", place.runs, "--out", "board")
    assert outcome.code == 0, outcome
    rows = {line.split()[1] for line in outcome.out.splitlines() if line.startswith("| blend")}
    assert rows == {"blend@clean.alone", "blend@clean.taught", "blend@clean.boosted"}


def test_a_step_outside_its_factor_or_without_effect_is_refused(place: Place) -> None:
    message = failure("ablate", "blend", "--ladder", "loose", *words(place, "--seeds", 1, "--dry-run"))
    assert message.splitlines() == [
        "ladder 'blend.loose': step 'taught' changes boost: 1.0 -> 2.0 against 'alone', which is outside its factor "
        "'teacher' (teach); hold the key equal, give it a step of its own, or add it to the factor",
        "ladder 'blend.loose': step 'same' changes nothing against 'taught'; set a key of its factor 'strength' "
        "(boost), or leave the step out",
    ]


def test_a_setting_that_takes_a_factor_away_is_refused(place: Place) -> None:
    message = failure("ablate", "blend", *words(place, "--seeds", 1, "--dry-run", "--set", "blend.teach=true"))
    assert "step 'taught' changes nothing against 'alone'" in message


def test_a_verbatim_ladder_is_shown_and_not_refused(place: Place) -> None:
    more = ("--ladder", "as_written", "--seeds", 1, "--dry-run", "--no-measure")
    outcome = kdbench("ablate", "blend", *words(place, *more))
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    assert lines[0].startswith("ladder blend.as_written is verbatim: its steps may change several factors")
    assert lines[2:6] == [
        "everything against alone: teacher, changes several factors (3 keys)",
        "  teach: false -> true",
        "  boost: 1.0 -> 2.0",
        "  unused: 0 -> 1",
    ]
    assert "blend@as_written.everything" in outcome.out


def test_a_dry_ladder_says_what_its_jobs_would_ask_an_engine_for(place: Place) -> None:
    pytest.importorskip("submitit")
    more = ("--seeds", 1, "--dry-run", "--no-measure", "--executor", "slurm", "--device", "cpu")
    outcome = kdbench("ablate", "blend", *words(place, *more))
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines()[-1].startswith("each job asks for at most 0 GPUs, 1 cores, ")


def test_another_anchor_brings_its_own_values(place: Place) -> None:
    more = ("--anchor", "quick", "--seeds", 1, "--dry-run", "--no-measure")
    outcome = kdbench("ablate", "blend", *words(place, *more))
    assert outcome.code == 0, outcome
    assert "  boost: 1.0 -> 3.0" in outcome.out
    assert "unused=4" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blend", "--ladder", "steep"),
         "--ladder steep: method 'blend' has no ladder of that name; its ladders: as_written, clean, loose (kdbench "
         "list ladders)"),
        (("student",), "method 'student': --ladder is needed, no default can be told; its ladders: none (kdbench list "
         "ladders)"),
        (("blent",), "unknown method 'blent'. Did you mean 'blend'? All: kdbench list methods"),
        (("blend", "--pair", "tiny,tiny_two"), "--pair tiny,tiny_two: an ablation is of one pair; name one"),
        (("blend", "--pair", "tinny"), "--pair: unknown pair 'tinny'. Did you mean 'tiny'? All: kdbench list pairs"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_command(place: Place, arguments: tuple[object, ...], message: str) -> None:
    assert failure("ablate", *arguments[:1], *words(place, "--seeds", 1, "--dry-run"), *arguments[1:]) == message


def test_a_preset_runs_under_its_own_protocol(place: Place) -> None:
    more = ("--preset", "quick", "--method", "blend,student", "--seeds", 1, "--executor", "inline")
    outcome = kdbench("run", *words(place, *more))
    assert outcome.code == 0, outcome
    found = place.runs / "quick-v4" / "digits-20pc" / "tiny"
    assert {path.name for path in found.iterdir()} == {"blend", "student"}
    spec = json.loads((found / "blend" / "seed0" / "spec.json").read_text(encoding="utf-8"))
    assert spec["options"]["teach"] is True
    assert spec["anchor"]["lineage"] == ["crd_smoke", "crd"]
    assert (spec["anchor"]["name"], spec["anchor"]["schedule"]["epochs"]) == ("quick", 1)


def test_a_preset_gives_method_pair_anchor_and_options(place: Place) -> None:
    base = ("--per-class", 20, "--out", place.runs, "--seeds", 1, "--no-measure")
    outcome = kdbench("plan", "--preset", "boosted", *base)
    assert outcome.code == 0, outcome
    row = outcome.out.splitlines()[2].split()
    assert row[0] == "tiny"
    assert "blend@boosted" in row  # the protocol is one of many's, so the row says which configuration it is
    assert "boost=2," in row
    won = kdbench("plan", "--preset", "boosted", *base, "--pair", "tiny_two", "--set", "blend.boost=5")
    assert won.out.splitlines()[2].split()[0] == "tiny_two"
    assert "boost=5," in won.out


def test_a_variant_gives_a_configuration_a_row_of_its_own(place: Place) -> None:
    base = ("--method", "blend", "--anchor", "crd_smoke", "--seeds", 1, "--no-measure")
    outcome = kdbench("plan", *words(place, *base, "--variant", "strong", "--set", "blend.boost=9"))
    assert outcome.code == 0, outcome
    assert "blend@strong" in outcome.out.splitlines()[2].split()
    assert failure("plan", *words(place, *base, "--variant", "a b")) == (
        "--variant: 'a b' is no name; use letters, digits, '.', '_' and '-'"
    )


def test_a_preset_may_be_a_file(place: Place) -> None:
    path = place.root / "filed.yaml"
    path.write_text(QUICK.replace("name: quick", "name: filed"), encoding="utf-8")
    more = ("--preset", path, "--method", "blend", "--seeds", 1)  # by workers, the teacher's first of all
    outcome = kdbench("run", *words(place, *more))
    assert outcome.code == 0, outcome
    (folder,) = (place.runs / "filed-v4" / "digits-20pc" / "tiny").iterdir()
    assert folder.name == "blend"
    assert json.loads((folder / "seed0" / "spec.json").read_text(encoding="utf-8"))["options"]["teach"] is True
    path.write_text(QUICK, encoding="utf-8")
    assert failure("plan", "--preset", path, "--method", "blend", "--pair", "tiny").endswith(
        "name: is 'quick', must be 'filed' like the file"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "boosted", "--method", "student"),
         "--preset boosted: is one of method 'blend', but --method is student; leave --method out, or choose another "
         "preset (kdbench list presets)"),
        (("--preset", "quick"), "Missing option '--method'. Preset 'quick' is for several."),
        (("--preset", "quick", "--method", "blend"), "Missing option '--pair'. Preset 'quick' is for several."),
        (("--preset", "quik",), "unknown preset 'quik'. Did you mean 'quick'? All: kdbench list presets"),
    ],
)  # fmt: skip
def test_what_a_preset_refuses(arguments: tuple[object, ...], message: str) -> None:
    assert failure("plan", *arguments) == message


def test_presets_and_ladders_are_listed_and_shown() -> None:
    listed = kdbench("list", "presets").out.splitlines()
    assert next(line for line in listed if line.startswith("quick")).split()[:4] == ["quick", "any", "any", "quick"]
    assert any(line.split()[:5] == ["blend", "clean", "yes", "3", "crd_smoke"]
               for line in kdbench("list", "ladders").out.splitlines())  # fmt: skip
    shown = kdbench("show", "boosted").out
    assert "method blend, pair tiny, anchor crd_smoke" in shown
    assert 'key of the source: teacher: "yes"' in shown
    assert "note: made for tests" in shown
    both = kdbench("show", "quick").out  # it is an anchor, too
    assert both.startswith("anchor quick-v4, sha256 ")
    assert "\npreset quick: one epoch for any method\n" in both
    ladder = kdbench("show", "blend.clean").out
    assert "factor strength: boost" in ladder
    assert any(line.split() == ["taught", "alone", "teacher", "teach=true"] for line in ladder.splitlines())
