"""Plans: all cells of a command, or all that is wrong with it, without reading one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdbench.datasets.base import Dataset, DatasetInfo, Split
from kdbench.errors import ConfigError, PluginError, ProblemList
from kdbench.method import Batch, Losses, Method, Options
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.spec import RunSpec
from kdbench.teacher_plan import TeacherRequest, teacher_cell
from kdbench.types import Deviation, PairInfo, Source, StageShape

SMOKE = Request(methods=("vanilla_kd",), pairs=("tiny",), seeds=(0,), anchor="fair_baseline_smoke")
LoadPlugin = Callable[..., Registry]


class Sealed:
    """A dataset that may be described, and must not be read. 10 classes of 4 training images."""

    def __init__(self, argument: str, _root: Path) -> None:
        self._argument = argument

    @property
    def info(self) -> DatasetInfo:
        return DatasetInfo("sealed", "sealed", tuple("0123456789"), StageShape((1, 8, 8)), 40, 20, "f")

    def train(self) -> Split:
        raise AssertionError("training images were read")

    def test(self) -> Split:
        raise AssertionError("test images were read")


class Tiles(Sealed):
    """The same in 2x2 pixels."""

    @property
    def info(self) -> DatasetInfo:
        return replace(super().info, name="tiles", image=StageShape((1, 2, 2)))


class Guest(Method[Options]):
    name = "guest"
    source = Source("t", 2020, "u")

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised()}


class Picky(Guest):
    name = "picky"

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        return f"{pair.student.name} is too small" if pair.student.name == "resnet8_w4" else None


class Shaky(Guest):
    name = "shaky"

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        raise ZeroDivisionError(pair.name)


class Open(Guest):
    name = "open"
    deviations = (Deviation("loss.tau", 1.0, "published so"),)


class Misguided(Guest):
    name = "misguided"
    deviations = (Deviation("loss.tua", 1.0, "a slip"),)


@pytest.fixture
def guests(with_plugin: LoadPlugin) -> Registry:
    return with_plugin(
        kdbench_datasets=lambda: [Dataset("sealed", Sealed), Dataset("tiles", Tiles)],
        kdbench_methods=lambda: [Guest, Picky, Shaky, Open],
    )


def problems(request: Request, registry: Registry) -> tuple[str, ...]:
    with pytest.raises(ProblemList) as caught:
        make_plan(request, registry)
    return caught.value.problems


def cells(plan: Plan) -> list[tuple[str, str, int]]:
    return [(run.pair, run.method, run.seed) for run in plan.runs]


def test_cells_are_pairs_by_methods_by_seeds(registry: Registry) -> None:
    request = replace(
        SMOKE, methods=("vanilla_kd", "student", "vanilla_kd"), pairs=("tiny", "res20_res8"), seeds=(3, 1)
    )
    plan = make_plan(replace(request, dataset="digits"), registry)
    assert cells(plan) == [(p, m, s) for p in ("tiny", "res20_res8") for m in ("vanilla_kd", "student") for s in (3, 1)]
    assert plan.skipped == ()
    first = plan.runs[0]
    assert (first.student, first.teachers, first.teacher_names) == ("resnet8_w4", ("resnet14_w8",), ())
    assert (first.method_version, first.plugin.distribution, first.division) == (1, "kdbench", "closed")
    assert len(first.plugin.file_sha256) == 64
    assert {run.teachers for run in plan.runs if run.method == "student"} == {()}


def test_no_image_is_read(guests: Registry) -> None:
    plan = make_plan(replace(SMOKE, dataset="sealed", methods=("guest",), per_class=2), guests)
    assert plan.runs[0].dataset.label == "sealed-2pc"
    assert plan.train_sizes == plan.validation_sizes == {"tiny": 10}  # of each class's two images one is cut


def test_a_validation_split_that_leaves_nothing_is_found_before_any_image_is_read(guests: Registry) -> None:
    (problem,) = problems(replace(SMOKE, dataset="sealed", methods=("guest",), per_class=1), guests)
    assert problem == (
        "dataset 'sealed': of 1 training image(s) of each class the protocol's validation split "
        "(data.validation_fraction 0.1) takes 1; raise --per-class"
    )


def test_every_problem_of_a_command_and_still_no_image_is_read(guests: Registry) -> None:
    request = Request(
        methods=("vanila_kd", "dkd"),
        pairs=("tinny", "tiny"),
        seeds=(1, 1),
        anchor="fair_baseline_smoke",
        dataset="sealed",
        settings=("dkd", "dkd.beta=-1", "dkd.warmup=7", "dkd.bata=1", "student.x=1", "dkdd.beta=1", "loss.tau=1"),
    )
    assert problems(request, guests) == (
        "--seeds: [1, 1]: give at least one seed, each >= 0 and only once",
        "--method: unknown method 'vanila_kd'. Did you mean 'vanilla_kd'? All: kdbench list methods",
        "--pair: unknown pair 'tinny'. Did you mean 'tiny'? All: kdbench list pairs",
        "--set dkd: not of the form METHOD.OPTION=VALUE",
        "--set student.x=1: method 'student' is not in this command; add it to --method",
        "--set dkdd.beta=1: unknown method 'dkdd'. Did you mean 'dkd'? All: kdbench list methods",
        "--set loss.tau=1: loss.tau is 1, but anchor fair_baseline_smoke-v1 (fair_baseline_smoke.yaml) locks it at "
        "4.0. Protocols are not changed by the command line; write an anchor of your own (extends: ...)",
        "--set dkd.bata=1: method 'dkd' has no option 'bata'. Did you mean 'beta'? Its options: alpha, beta, warmup "
        "(kdbench show dkd)",
        "options of method 'dkd': beta is -1: input should be greater than or equal to 0",
        "options of method 'dkd': warmup is 7: input should be less than or equal to 1",
    )


@pytest.mark.parametrize("changes", [{"per_class": 5}, {"dataset": "seald"}, {"dataset": "tiles"}])
def test_a_wrong_dataset_does_not_hide_wrong_options(guests: Registry, changes: dict[str, object]) -> None:
    request = replace(SMOKE, methods=("dkd",), settings=("dkd.beta=-1",), **{"dataset": "sealed", **changes})  # type: ignore[arg-type]
    said = problems(request, guests)
    assert len(said) > 1
    assert "options of method 'dkd': beta is -1: input should be greater than or equal to 0" in said


def test_unknown_anchor_does_not_hide_the_rest(registry: Registry) -> None:
    said = problems(replace(SMOKE, anchor="crdd", methods=("dkdd",), dataset="digit", seeds=()), registry)
    assert said == (
        "--seeds: []: give at least one seed, each >= 0 and only once",
        "unknown anchor 'crdd'. Did you mean 'crd'? All: kdbench list anchors",
        "--method: unknown method 'dkdd'. Did you mean 'dkd'? All: kdbench list methods",
        "unknown dataset 'digit'. Did you mean 'digits'? All: kdbench list datasets",
    )


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((), "--seeds: []: give"),
        ((-1,), "--seeds: [-1]: give"),
        ((0, 0), "--seeds: [0, 0]: give"),
        ((2**31,), "--seeds: 2147483648: the largest seed is 2147483647"),
    ],
)
def test_wrong_seeds(registry: Registry, seeds: tuple[int, ...], said: str) -> None:
    (problem,) = problems(replace(SMOKE, seeds=seeds), registry)
    assert problem.startswith(said)


@pytest.mark.parametrize("count", [0, -1, 5, 10**12])
def test_per_class_out_of_range(guests: Registry, count: int) -> None:
    (problem,) = problems(replace(SMOKE, dataset="sealed", per_class=count), guests)
    assert problem == f"--per-class {count}: dataset 'sealed' has 40 training images in 10 classes, at most 4 each"


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("npz", "dataset 'npz': needs a path; write npz:PATH"),
        ("npz:", "dataset 'npz:': needs a path; write npz:PATH"),
        ("digits:x", "dataset 'digits:x': 'digits' takes no path; write digits"),
        ("digits:", "dataset 'digits:': 'digits' takes no path; write digits"),
        ("cifar", "unknown dataset 'cifar'. Did you mean 'cifar10"),
    ],
)
def test_dataset_names(registry: Registry, dataset: str, said: str) -> None:
    (problem,) = problems(replace(SMOKE, dataset=dataset), registry)
    assert problem.startswith(said)


def test_images_that_do_not_fit_the_networks(guests: Registry) -> None:
    size = "needs height and width of at least 4 pixels that are multiples of 1; the images are 1x2x2"
    assert problems(replace(SMOKE, dataset="tiles"), guests) == (
        f"pair 'tiny', dataset 'tiles': backbone 'resnet8_w4' {size}",
        f"pair 'tiny', dataset 'tiles': backbone 'resnet14_w8' {size}",
    )


def test_all_means_what_fits(guests: Registry) -> None:
    plan = make_plan(replace(SMOKE, methods=("all",), dataset="sealed"), guests)
    names = {"dkd", "guest", "open", "picky", "shaky", "student", "vanilla_kd"}
    assert {run.method for run in plan.runs} | {skip.method for skip in plan.skipped} >= names
    reasons = {skip.method: (skip.pair, skip.reason) for skip in plan.skipped}
    assert reasons["picky"] == ("tiny", "resnet8_w4 is too small")
    assert reasons["shaky"] == ("tiny", "its supports() failed: ZeroDivisionError: tiny")
    assert [run.method for run in plan.runs] == sorted(run.method for run in plan.runs)


def test_all_pairs(guests: Registry) -> None:
    some = with_small_pairs(guests)
    plan = make_plan(replace(SMOKE, pairs=("all",), methods=("picky",), dataset="sealed"), some)
    assert {run.pair for run in plan.runs} == set(some.pairs.as_mapping()) - {"tiny", "tiny_two"}
    assert [skip.pair for skip in plan.skipped] == ["tiny", "tiny_two"]


def with_small_pairs(registry: Registry) -> Registry:
    """Leave out the pairs that cannot take 8x8 images."""
    table = registry.pairs._entries
    for name in [
        n for n, (pair, _) in table.items() if not all(b.startswith("resnet") for b in (pair.student, *pair.teachers))
    ]:
        del table[name]
    return registry


def test_nothing_left_to_run(guests: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(replace(SMOKE, methods=("picky", "shaky"), dataset="sealed"), guests)
    assert str(caught.value) == (
        "nothing to run: picky on tiny: resnet8_w4 is too small; "
        "shaky on tiny: its supports() failed: ZeroDivisionError: tiny"
    )


def test_declared_deviation_opens_the_division(guests: Registry) -> None:
    plan = make_plan(replace(SMOKE, methods=("open", "guest"), dataset="sealed"), guests)
    opened, closed = plan.runs
    assert (opened.division, closed.division) == ("open", "closed")
    assert [d.key for d in opened.deviations] == ["loss.tau"]
    assert opened.anchor == closed.anchor


def test_a_method_that_contradicts_itself_is_the_plugins_fault(with_plugin: LoadPlugin) -> None:
    registry = with_plugin(kdbench_methods=lambda: [Misguided])
    with pytest.raises(PluginError, match=r"method 'misguided': 'loss.tua' is no key of an anchor"):
        make_plan(replace(SMOKE, methods=("misguided",)), registry)


def test_number_of_named_teachers(registry: Registry) -> None:
    (said,) = problems(replace(SMOKE, teacher_names=("a", "b")), registry)
    assert said == "--teacher: 2 given, pair 'tiny' has 1: resnet14_w8"
    plan = make_plan(replace(SMOKE, methods=("student", "vanilla_kd"), teacher_names=("a",)), registry)
    assert [run.teacher_names for run in plan.runs] == [(), ("a",)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "loss: {teacher_weights: [1, 2]}",
            "anchor mine: loss.teacher_weights has 2 values, but pair 'tiny' has 1 teachers",
        ),
        (
            "loss: {teacher_weights: {resnet20: 1, resnet8: 2}}",
            "anchor mine: loss.teacher_weights names resnet20, resnet8, but pair 'tiny' has resnet14_w8; name exactly "
            "its teachers",
        ),
        (
            "loss: {teacher_weights: {}}",
            "anchor mine: loss.teacher_weights names no teacher, but pair 'tiny' has resnet14_w8; name exactly its "
            "teachers",
        ),
        (
            "loss: {kd_target: teacher, kd_teacher_index: 1}",
            "anchor mine: loss.kd_teacher_index is 1 (the first is 0), but pair 'tiny' has 1 teachers",
        ),
        ("schedule: {warmup_epochs: 2}", "anchor mine: schedule.warmup_epochs 2 is not less than schedule.epochs 2"),
    ],
)
def test_anchor_that_does_not_fit_the_pair(registry: Registry, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(f"extends: fair_baseline_smoke\nname: mine\n{line}\n")
    assert problems(replace(SMOKE, anchor=str(tmp_path / "a.yaml")), registry) == (said,)


def test_weights_bound_to_names(with_plugin: LoadPlugin, tmp_path: Path) -> None:
    twins = tmp_path / "twins.yaml"
    twins.write_text("name: twins\nstudent: resnet8_w4\nteachers: [resnet14_w8, resnet14_w8]\ndataset: digits\n")
    registry = with_plugin(kdbench_pairs=lambda: [twins])

    def planned(weights: str, pair: str) -> Request:
        (tmp_path / "a.yaml").write_text(
            f"extends: fair_baseline_smoke\nname: mine\nloss: {{teacher_weights: {weights}}}\n"
        )
        return replace(SMOKE, methods=("vanilla_kd",), pairs=(pair,), anchor=str(tmp_path / "a.yaml"))

    (run,) = make_plan(planned("{resnet8_w4: 0.4, resnet14_w8: 0.6}", "tiny_two"), registry).runs
    assert run.teachers == ("resnet14_w8", "resnet8_w4")
    assert run.anchor.loss.teacher_weights == {"resnet8_w4": 0.4, "resnet14_w8": 0.6}
    again = RunSpec.model_validate_json(run.model_dump_json())
    assert (again, again.config_sha256) == (run, run.config_sha256)
    # The order of names says nothing, other weights do, and so does the form.
    (turned,) = make_plan(planned("{resnet14_w8: 0.6, resnet8_w4: 0.4}", "tiny_two"), registry).runs
    (other,) = make_plan(planned("{resnet14_w8: 0.4, resnet8_w4: 0.6}", "tiny_two"), registry).runs
    (listed,) = make_plan(planned("[0.6, 0.4]", "tiny_two"), registry).runs
    assert run.config_sha256 == turned.config_sha256
    assert len({run.config_sha256, other.config_sha256, listed.config_sha256}) == 3
    (said,) = problems(planned("{resnet14_w8: 1}", "twins"), registry)
    assert said == (
        "anchor mine: loss.teacher_weights goes by name, but pair 'twins' has resnet14_w8 more than once; give a list "
        "in its teachers' order"
    )


def archive(path: Path, first_pixel: int = 0) -> str:
    images = np.zeros((8, 8, 8), np.uint8)
    images[0, 0, 0] = first_pixel
    labels = np.arange(8) % 2
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return f"npz:{path}"


def test_hash_follows_content_not_place(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = archive(tmp_path / "a.npz")
    same = tmp_path / "elsewhere" / "b.npz"
    same.write_bytes((tmp_path / "a.npz").read_bytes())
    other = archive(tmp_path / "c.npz", first_pixel=1)

    def digest(dataset: str, **changes: object) -> str:
        return make_plan(replace(SMOKE, dataset=dataset, **changes), registry).runs[0].config_sha256  # type: ignore[arg-type]

    assert digest(first) == digest(f"npz:{same}")
    assert len({digest(first), digest(other), digest(first, per_class=2), digest(first, seeds=(1,))}) == 4
    assert digest(first) != digest(first, anchor="crd_smoke")


def test_hash_follows_options(registry: Registry) -> None:
    def digest(*settings: str) -> str:
        return make_plan(replace(SMOKE, methods=("dkd",), settings=settings), registry).runs[0].config_sha256

    assert digest() == digest("dkd.beta=2") == digest("dkd.beta=2.0", "dkd.tau=4")
    assert digest() != digest("dkd.beta=2.5")


def test_a_teacher_cell_is_checked_as_well(registry: Registry) -> None:
    request = TeacherRequest("resnet14_w8", "digits", 5, anchor="crd_smoke")
    reference, anchor = teacher_cell(request, registry)
    assert (reference.label, anchor.name) == ("digits-5pc", "crd_smoke")
    with pytest.raises(ProblemList) as caught:
        teacher_cell(TeacherRequest("resnet13", "digit", anchor="crdd"), registry)
    assert len(caught.value.problems) == 3
