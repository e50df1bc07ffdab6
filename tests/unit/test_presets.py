"""Preset and ladder files: what they may say, what is refused, and what becomes of them."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import yaml

import kdbench
from kdbench.config.ladders import load_ladder
from kdbench.config.loading import load_anchor
from kdbench.config.presets import Preset, load_preset
from kdbench.errors import ConfigError, PluginError, ProblemList
from kdbench.registry import Registry, load

PRESET = {"name": "mine", "anchor": "crd_smoke", "method": "dkd", "options": {"beta": 3.0}}
LADDER = {
    "name": "up",
    "method": "dkd",
    "anchor": "crd_smoke",
    "factors": {"weight": ["beta"]},
    "steps": [{"name": "low"}, {"name": "high", "against": "low", "factor": "weight", "options": {"beta": 8.0}}],
}


def write(path: Path, tree: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def with_files(presets: tuple[Path, ...] = (), ladders: tuple[Path, ...] = ()) -> Registry:
    module = types.ModuleType("house")

    @kdbench.hookimpl
    def kdbench_presets() -> list[Path]:
        return list(presets)

    @kdbench.hookimpl
    def kdbench_ladders() -> list[Path]:
        return list(ladders)

    module.kdbench_presets, module.kdbench_ladders = kdbench_presets, kdbench_ladders  # type: ignore[attr-defined]
    return load(extra=[module])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methd": "x"},
         "methd: unknown key. Did you mean 'method'? Allowed: amended, anchor, description, keys, method, name, "
         "notes, options, options_of, pair, source, version"),
        ({"method": None}, "options: whose? name a method, or write options_of: {METHOD: {..}}"),
        ({"options_of": {"at": {}}},
         "options_of: is for presets without a method; write those of 'dkd' in options"),
        ({"name": "other"}, "name: is 'other', must be 'mine' like the file"),
        ({"version": 0}, "version is 0: input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_no_preset_may_say(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    path = write(tmp_path / "mine.yaml", {**PRESET, **changed})
    with pytest.raises(ConfigError) as caught:
        load_preset(path)
    assert str(caught.value) == f"{path}: {message}"


def test_all_that_is_wrong_with_a_preset_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", {"name": "mine", "versio": 1, "pair": "a/b"})
    with pytest.raises(ProblemList) as caught:
        load_preset(path)
    assert len(caught.value.problems) == 3  # no anchor, an unknown key, no name of a pair


def test_settings_are_those_of_the_commands_methods() -> None:
    one = Preset.model_validate({**PRESET, "options": {"beta": 3.0, "warmup": 0, "name": "a", "list": [1, None, True]}})
    assert one.settings(("dkd",), {}) == ("dkd.beta=3.0", "dkd.warmup=0", 'dkd.name="a"', "dkd.list=[1, null, true]")
    several = Preset.model_validate({"name": "x", "anchor": "crd", "options_of": {"dkd": {"beta": 1}, "at": {"p": 2}}})
    assert several.settings(("at", "student"), {"at": Wide}) == ("at.p=2",)  # on top of what the method recommends


class Wide(kdbench.Options):
    must: int
    p: int = 1
    ends: tuple[float, float] = (0.5, 1.0)
    maybe: float | None = None


def test_a_preset_of_one_method_says_every_option() -> None:
    one = Preset.model_validate({**PRESET, "options": {"p": 2}})
    assert one.settings((), {"dkd": Wide}) == ("dkd.p=2", "dkd.ends=[0.5, 1.0]", "dkd.maybe=null")


def test_a_stated_anchor_is_registered_under_the_presets_name(tmp_path: Path) -> None:
    anchor = {"extends": "crd_smoke", "schedule": {"epochs": 1, "warmup_epochs": 0}}
    stated = write(tmp_path / "mine.yaml", {**PRESET, "version": 3, "description": "d", "anchor": anchor})
    named = write(tmp_path / "yours.yaml", {**PRESET, "name": "yours"})
    registry = with_files(presets=(stated, named))
    loaded = load_anchor("mine", registry.anchors.as_mapping())
    assert (loaded.label, loaded.description, loaded.lineage) == ("mine-v3", "d", ("crd_smoke", "crd"))
    assert (registry.presets["mine"].anchor_name, registry.presets["yours"].anchor_name) == ("mine", "crd_smoke")
    assert "yours" not in registry.anchors
    assert registry.presets.owner("mine").name == "house"
    other = write(tmp_path / "lower.yaml", {"extends": "mine", "name": "lower"})
    assert load_anchor(str(other), registry.anchors.as_mapping()).lineage == ("mine", "crd_smoke", "crd")


def test_a_stated_anchor_keeps_the_locks_of_what_it_extends(tmp_path: Path) -> None:
    anchor = {"extends": "crd_smoke", "loss": {"tau": 1.0}}
    registry = with_files(presets=(write(tmp_path / "mine.yaml", {**PRESET, "anchor": anchor}),))
    with pytest.raises(ConfigError, match=r"loss\.tau is 1\.0, but .*crd\.yaml locks it at 4\.0"):
        load_anchor("mine", registry.anchors.as_mapping())


def test_a_stated_anchor_has_no_name_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", {**PRESET, "anchor": {"extends": "crd_smoke", "name": "other"}})
    with pytest.raises(ConfigError) as caught:
        load_anchor("mine", with_files(presets=(path,)).anchors.as_mapping())
    assert str(caught.value) == f"{path}: anchor.name: the anchor of a preset is named like it; state it above"


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    path = write(tmp_path / "crd.yaml", {**PRESET, "name": "crd", "anchor": {"extends": "crd_smoke"}})
    with pytest.raises(PluginError, match="anchor 'crd' is registered twice"):
        with_files(presets=(path,))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps is []: tuple should have at least 1 item after validation, not 0"),
        ([{"name": "a"}, {"name": "a"}], "step 'a' occurs twice; give each a name of its own"),
        ([{"name": "a", "against": "b", "factor": "weight"}, {"name": "b"}],
         "step 'a': against: no earlier step is named 'b'; there are none"),
        ([{"name": "a"}, {"name": "b", "against": "a", "factor": "size"}],
         "step 'b': factor: 'size' is not in factors: weight"),
        ([{"name": "a"}, {"name": "b", "against": "a"}],
         "step 'b': against and factor belong together; give both or neither"),
    ],
)  # fmt: skip
def test_what_no_ladder_may_say(tmp_path: Path, steps: list[object], message: str) -> None:
    path = write(tmp_path / "up.yaml", {**LADDER, "steps": steps})
    with pytest.raises(ConfigError) as caught:
        load_ladder(path)
    assert str(caught.value) == f"{path}: {message}"


def test_later_options_win(tmp_path: Path) -> None:
    tree = {
        **LADDER,
        "common": {"a": 1, "b": 1, "c": 1},
        "by_anchor": {"crd": {"b": 2}, "crd_smoke": {"b": 3}},
        "steps": [
            {"name": "one", "options": {"c": 2}},
            {"name": "two", "against": "one", "factor": "weight", "options": {"a": 5}, "by_anchor": {"crd": {"a": 6}}},
            {"name": "three", "against": "two", "factor": "weight", "preset": "mine", "options": {"d": 0}},
        ],
    }
    ladder = load_ladder(write(tmp_path / "up.yaml", tree))
    presets = {"mine": Preset.model_validate({**PRESET, "options": {"b": 9, "c": 9}})}

    def options(step: str, *anchors: str) -> dict[str, object]:
        return dict(ladder.options_of(step, anchors, presets))

    assert options("one", "other") == {"a": 1, "b": 1, "c": 2}
    assert options("one", "crd_smoke", "crd") == {"a": 1, "b": 3, "c": 2}  # the nearest anchor alone
    assert options("two", "other") == {"a": 5, "b": 1, "c": 2}
    assert options("two", "mine", "crd") == {"a": 6, "b": 2, "c": 2}
    assert options("three", "other") == {"a": 1, "b": 9, "c": 9, "d": 0}  # of the preset, not of the step before
    assert options("three", "crd") == {"a": 1, "b": 2, "c": 9, "d": 0}


def test_a_step_starts_from_a_preset_of_its_method(tmp_path: Path) -> None:
    steps = [{"name": "low", "preset": "mine"}]
    ladder = load_ladder(write(tmp_path / "up.yaml", {**LADDER, "steps": steps}))
    with pytest.raises(ConfigError) as caught:
        ladder.options_of("low", (), {}, where="ladder 'dkd.up'")
    assert str(caught.value) == ("ladder 'dkd.up': step 'low': unknown preset 'mine'. All: kdbench list presets")
    other = {"mine": Preset.model_validate({**PRESET, "method": "at"})}
    with pytest.raises(ConfigError, match="preset 'mine' is one of method 'at', the ladder one of 'dkd'"):
        ladder.options_of("low", (), other, where="ladder 'dkd.up'")
