"""The configurations of ASIB's experiments: each preset says here what its keys say there, and the ladders hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdbench.ablation.expanding import expand
from kdbench.config.loading import load_anchor, same_value
from kdbench.config.presets import Preset
from kdbench.config.schema import Anchor
from kdbench.errors import ProblemList
from kdbench.methods.asib.layers import flat
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.translate import translate
from kdbench.plan import Request, make_plan
from kdbench.registry import Registry, load

KNOWN = load()
OWNER = "kdbench.methods.asib"
PRESETS = [name for name in KNOWN.presets if KNOWN.presets.owner(name).name == OWNER]
RUNGS = ("L0_baseline", "L1_ib", "L2_cccp", "L3_ib_cccp_tadapt", "L4_full", "side_cccp_ppf")
OTHERS = ("vanilla_kd", "ab", "at", "crd", "dkd", "fitnet", "ft", "reviewkd", "simkd", "sskd", "asib")


def anchor_of(preset: Preset) -> Anchor:
    return load_anchor(preset.anchor_name, KNOWN.anchors.as_mapping())


def config_of(preset: Preset) -> dict[str, Any]:
    config = {**flat(preset.keys), **flat(preset.amended)}
    config.pop("method_priority", None)
    return config


def test_all_of_them_are_there() -> None:
    files = {*RUNGS, "overlap_100", "sota_generic", "asib_stage", "ce_only"}
    assert set(PRESETS) == files | {f"{method}_{variant}" for method in OTHERS for variant in "AB"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_its_keys_say(name: str) -> None:
    preset = KNOWN.presets[name]
    made, anchor = translate(config_of(preset), preset.method or "asib"), anchor_of(preset)
    options = preset.options if preset.method else preset.options_of["asib"]
    assert options == made.options
    for key, value in made.anchor.items():
        allowed = key.startswith("freezing.") and not isinstance(preset.anchor, dict)
        assert allowed or same_value(anchor.keys()[key], value), key
    assert set(made.notes) <= set(preset.notes)
    assert all(key.partition(".")[0] in preset.keys or preset.notes for key in preset.amended)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_used(name: str, registry: Registry) -> None:
    preset, anchor = KNOWN.presets[name], anchor_of(KNOWN.presets[name])
    if preset.method == "asib":
        ASIBOptions.model_validate(preset.options)
    elif preset.method:
        registry.methods[preset.method].options_type.model_validate(preset.options)
    for options in preset.options_of.values():
        ASIBOptions.model_validate(options)
    epochs = preset.options.get("student_epochs_per_stage")
    assert epochs is None or sum(epochs) == anchor.schedule.epochs  # type: ignore[arg-type]
    if preset.pair:
        pair, stated = registry.pairs[preset.pair], translate(config_of(preset), preset.method or "asib").pair
        if stated:
            assert (stated["student"], stated["teacher1"], stated["teacher2"]) == (pair.student, *pair.teachers)
            assert stated.get("overlap_pct") == pair.overlap_pct
        weights = anchor.loss.teacher_weights
        assert weights is None or set(weights) == set(pair.teachers)


def test_protocols_of_their_own_have_hashes_of_their_own() -> None:
    own = [anchor_of(KNOWN.presets[name]) for name in PRESETS if isinstance(KNOWN.presets[name].anchor, dict)]
    assert len(own) == len(PRESETS) - len(RUNGS)
    assert len({anchor.sha256 for anchor in own}) == len(own)
    assert {anchor_of(KNOWN.presets[name]).name for name in RUNGS} == {"asib_ladder"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("L0_baseline", {"kd_target": "avg", "use_ib": False, "ib_mbm_lr_factor": 10, "min_cw": 0.1}),
        ("L1_ib", {"feat_kd_alpha": 0.25, "feat_kd_clip": 3.0, "teacher_lr": 1e-4, "loss_clamp_warmup_epochs": 0}),
        ("L2_cccp", {"synergy_only_epochs": 6, "teacher_adapt_epochs": 6, "kd_target": "avg", "use_cccp_in_a": True}),
        ("L3_ib_cccp_tadapt", {"teacher_lr": 3e-6, "train_distill_adapter_only": True, "cccp_alpha": 0.2}),
        ("L4_full", {"student_freeze_level_schedule": [-1, -1, 1, 1], "student_freeze_bn": True}),
        ("side_cccp_ppf", {"student_freeze_level": 1, "teacher2_freeze_level": 1, "use_ib": False}),
        ("overlap_100", {"ib_epochs_per_stage": 5, "teacher_adapt_epochs": 0, "ib_beta": 5e-3, "a_step_lr": 1e-3}),
        ("asib_A", {"kd_target": "auto", "tau_syn": 6.0, "synergy_logit_scale": 0.7, "kd_max_ratio": 1.75}),
        ("asib_B", {"kd_target": "synergy", "ib_beta": 1e-4, "feat_kd_alpha": 0.1}),
        ("asib_stage", {"teacher_adapt_epochs": 10, "synergy_only_epochs": 6, "synergy_head_dropout": 0.05}),
        ("crd_A", {"feat_dim": 512, "nce_k": 16384, "nce_t": 0.07, "momentum": 0.5}),
        ("dkd_B", {"alpha": 1.0, "beta": 2.0}),
        ("fitnet_A", {"weight": 100.0, "stage": 2}),
        ("at_A", {"weight": 0.1}),
        ("sskd_A", {"ss_weight": 1.0, "tf_weight": 0.5}),
        ("ce_only", {}),
    ],
)  # fmt: skip
def test_values_by_hand(name: str, expected: dict[str, Any]) -> None:
    options = KNOWN.presets[name].options
    assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "ce", "course"),
    [
        ("vanilla_kd_A", 0.5, (4.0, 1.5)), ("vanilla_kd_B", 0.5, (4.0, 1.5)), ("ab_A", 0.65, (4.0, 1.5)),
        ("ab_B", 0.3, (4.0, 1.5)), ("at_B", 0.5, (None, None)), ("crd_B", 0.3, (None, None)),
        ("dkd_B", 0.5, (6.0, 2.0)), ("fitnet_B", 0.4, (None, None)), ("simkd_A", 0.3, (4.0, 1.5)),
        ("asib_A", 0.65, (None, None)), ("overlap_100", 0.3, (None, None)), ("ce_only", 1.0, (None, None)),
    ],
)  # fmt: skip
def test_loss_balance_and_temperatures_by_hand(name: str, ce: float, course: tuple[float | None, float | None]) -> None:
    loss = anchor_of(KNOWN.presets[name]).loss
    assert loss.ce_alpha == ce
    assert loss.kd_alpha == pytest.approx(1 - ce)
    assert (loss.tau_start, loss.tau_end) == course


def test_the_current_method_file_is_refused_as_written() -> None:
    preset = KNOWN.presets["asib_A"]
    with pytest.raises(ProblemList) as caught:
        translate(flat(preset.keys))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "ce_alpha 0.7 + kd_alpha 0.4 is 1.1; the sum must be 1, or strict_mode false with auto_renorm",
        "teacher_weights",
    ]
    assert preset.amended["teacher_weights"] == {"resnet152": 0.7, "convnext_s": 0.3}
    assert KNOWN.presets["asib_B"].amended["teacher_weights"] == {"resnet152": 0.4, "convnext_s": 0.6}


def rungs(ladder: str, anchor: str) -> dict[str, dict[str, Any]]:
    found, loaded = KNOWN.ladders[f"asib.{ladder}"], load_anchor(anchor, KNOWN.anchors.as_mapping())
    names = (loaded.name, *loaded.lineage)
    presets = KNOWN.presets.as_mapping()
    return {
        step.name: ASIBOptions.model_validate(found.options_of(step.name, names, presets)).model_dump()
        for step in found.steps
    }


@pytest.mark.parametrize("anchor", ["asib_ladder", "asib_ladder_short", "asib_ladder_smoke"])
def test_each_step_of_the_clean_ladder_changes_its_factor_alone(anchor: str) -> None:
    ladder, options = KNOWN.ladders["asib.clean"], rungs("clean", anchor)
    expected = {
        "L1_ib": "synergy",
        "L2_cccp": "cccp",
        "L3_tadapt": "adapters",
        "L4_full": "ppf",
        "side_cccp_ppf": "ppf",
    }
    assert {step.name: step.factor for step in ladder.steps if step.against} == expected
    for step in ladder.steps:
        if step.against:
            before, after = options[step.against], options[step.name]
            changed = {key for key in after if before[key] != after[key]}
            assert changed == set(ladder.factors[step.factor or ""])  # no key is in a factor for nothing


@pytest.mark.parametrize("ladder", ["clean", "verbatim"])
@pytest.mark.parametrize("anchor", ["asib_ladder", "asib_ladder_short", "asib_ladder_smoke"])
def test_stages_share_the_epochs_of_every_protocol(ladder: str, anchor: str) -> None:
    epochs = load_anchor(anchor, KNOWN.anchors.as_mapping()).schedule.epochs
    for options in rungs(ladder, anchor).values():
        assert epochs % options["num_stages"] == 0
        assert sum(options["student_epochs_per_stage"] or [epochs]) == epochs
        window, length = options["synergy_only_epochs"], options["teacher_adapt_epochs"]
        assert not length or ladder == "verbatim" or window < length


def test_the_verbatim_ladder_is_the_presets() -> None:
    options = rungs("verbatim", "asib_ladder")
    assert tuple(options) == RUNGS
    for name in RUNGS:
        assert options[name] == ASIBOptions.model_validate(KNOWN.presets[name].options).model_dump()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a data set of the size and classes that the presets' pairs expect."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    labels = np.arange(1000) % 100
    arrays = {f"{part}_images": np.zeros((1000, 32, 32, 3), np.uint8) for part in ("train", "test")}
    np.savez_compressed(path, train_labels=labels, test_labels=labels, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize("name", ["asib_A", "asib_B", "asib_stage", "sota_generic", "L0_baseline", "side_cccp_ppf"])
def test_the_method_accepts_a_preset_on_its_own_pair(name: str, images: str) -> None:
    preset, types = KNOWN.presets[name], {"asib": ASIBOptions}
    assert preset.pair is not None
    settings = preset.settings(("asib",), types)
    request = Request(("asib",), (preset.pair,), (0,), preset.anchor_name, dataset=images, settings=settings)
    (run,) = make_plan(request, KNOWN).runs
    options = preset.options or preset.options_of["asib"]
    assert {key: run.options[key] for key in options} == options


@pytest.mark.parametrize("ladder", ["clean", "verbatim"])
@pytest.mark.parametrize("anchor", ["asib_ladder_short", "asib_ladder_smoke"])
def test_a_ladder_can_be_planned(ladder: str, anchor: str) -> None:
    found = KNOWN.ladders[f"asib.{ladder}"]
    request = Request((), ("tiny_two",), (0, 1), anchor, per_class=20)
    made = expand(found, request, KNOWN)
    assert len(made.plan.runs) == 2 * len(found.steps)
    assert [len(made.specs(step.name)) for step in found.steps] == [2] * len(found.steps)
