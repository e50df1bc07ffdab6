"""Options of a run: ``--set``, recommended values, and what the anchor allows a method to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest
from pydantic import Field

from kdbench.config.loading import load_anchor
from kdbench.config.schema import Anchor
from kdbench.errors import ConfigError, KdbenchError, PluginError, ProblemList
from kdbench.method import Method, Options
from kdbench.options import apply_deviations, deviations_of, parse_setting, resolve_options
from kdbench.registry import Registry
from kdbench.types import Deviation, Pair

PAIR = Pair("res32x4_res8x4", "resnet8x4", ("resnet32x4",), "cifar100")


class Knobs(Options):
    gain: float = Field(1.0, ge=0, le=10)
    layers: tuple[int, ...] = (1, 2)
    mode: str = "soft"


class Knobby(Method[Knobs]):
    name = "knobby"
    options_type = Knobs

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:
        return {"gain": 3.0} if (anchor, pair.student) == ("crd", "resnet8x4") else {}


class Tempered(Options):
    tau: float = 4.0


class Tempting(Method[Tempered]):
    """Has an option with the name of a locked key."""

    name = "tempting"
    options_type = Tempered


class Declared(Tempting):
    name = "declared"
    deviations: ClassVar[tuple[Deviation, ...]] = (Deviation("loss.tau", 2.0, "published so"),)


@pytest.fixture
def anchor(registry: Registry) -> Anchor:
    return load_anchor("fair_baseline_smoke", registry.anchors.as_mapping())


@pytest.fixture
def crd(registry: Registry) -> Anchor:
    return load_anchor("crd_short", registry.anchors.as_mapping())


def resolve(anchor: Anchor, *texts: str, method: type[Method[Knobs]] = Knobby) -> Knobs:
    options = resolve_options(method, anchor, PAIR, [parse_setting(text) for text in texts])
    assert isinstance(options, Knobs)
    return options


def failing(kind: type[KdbenchError], function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments)
    assert type(caught.value) in {kind, ProblemList}
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("m.o=1e-3", 0.001),
        ("m.o=010", "010"),
        ("m.o=[1, 2]", [1, 2]),
        ("m.o=true", True),
        ("m.o=null", None),
        ("m.o=a=b", "a=b"),
        (" m.o = 3 ", 3),
    ],
)
def test_parse(text: str, value: object) -> None:
    setting = parse_setting(text)
    assert (setting.method, setting.option.strip(), setting.value, str(setting)) == ("m", "o", value, text)


@pytest.mark.parametrize("text", ["", "m", "m.o", "m.o=", "m.o= ", "=3", ".o=3", "m.=3", "m=3", ". =3"])
def test_parse_what_is_no_setting(text: str) -> None:
    assert failing(ConfigError, parse_setting, text) == f"--set {text}: not of the form METHOD.OPTION=VALUE"


@pytest.mark.parametrize(
    "value", ["[", "{a: 1, a: 2}", "2024-99-99", "!!python/name:os.system", "\x00", "&a [*a]", "[" * 5000]
)
def test_parse_what_is_no_value(value: str) -> None:
    assert failing(ConfigError, parse_setting, f"m.o={value}").endswith(": the value is not a YAML scalar or list")


def test_defaults_then_recommended_then_settings(anchor: Anchor, crd: Anchor) -> None:
    assert resolve(anchor) == Knobs(gain=1.0)
    assert resolve(crd) == Knobs(gain=3.0)  # crd_short is of the family crd
    assert resolve(crd, "knobby.gain=5", "knobby.layers=[4]") == Knobs(gain=5.0, layers=(4,))


def test_the_last_setting_wins(anchor: Anchor) -> None:
    assert resolve(anchor, "knobby.gain=5", "knobby.gain=6").gain == 6


def test_out_of_range(anchor: Anchor) -> None:
    assert failing(ConfigError, resolve, anchor, "knobby.gain=11") == (
        "options of method 'knobby': gain is 11: input should be less than or equal to 10"
    )
    assert "gain is nan" in failing(ConfigError, resolve, anchor, "knobby.gain=.nan")
    assert "layers.1 is 'x'" in failing(ConfigError, resolve, anchor, "knobby.layers=[1, x]")


def test_unknown_options_all_at_once(anchor: Anchor) -> None:
    with pytest.raises(ProblemList) as caught:
        resolve(anchor, "knobby.gian=2", "knobby.depth=3")
    assert caught.value.problems == (
        "--set knobby.gian=2: method 'knobby' has no option 'gian'. Did you mean 'gain'? "
        "Its options: gain, layers, mode (kdbench show knobby)",
        "--set knobby.depth=3: method 'knobby' has no option 'depth'. "
        "Its options: gain, layers, mode (kdbench show knobby)",
    )


def test_locked_key_with_another_value(anchor: Anchor) -> None:
    assert failing(ConfigError, resolve, anchor, "knobby.tau=2") == (
        "--set knobby.tau=2: loss.tau is 2, but anchor fair_baseline_smoke-v1 (fair_baseline_smoke.yaml) locks it at "
        "4.0. Protocols are not changed by the command line; write an anchor of your own (extends: ...)"
    )
    assert "schedule.epochs is 9, but anchor" in failing(ConfigError, resolve, anchor, "knobby.epochs=9")
    assert "fixes it at 2." in failing(ConfigError, resolve, anchor, "knobby.epochs=9")


@pytest.mark.parametrize(
    "setting", ["tau=4", "tau=4.0", "min_lr=1e-5", "weight_decay=5e-4", "betas=[0.9, 0.999]", "kd_target=avg"]
)
def test_anchor_key_with_its_own_value_is_no_change(anchor: Anchor, setting: str) -> None:
    assert resolve(anchor, f"knobby.{setting}") == Knobs()


def test_a_name_of_two_keys_means_the_locked_one(anchor: Anchor) -> None:
    """data.batch_size is 128 and locked; evaluation.batch_size is 500 and changes nothing."""
    assert resolve(anchor, "knobby.batch_size=128") == Knobs()
    said = failing(ConfigError, resolve, anchor, "knobby.batch_size=500")
    assert "data.batch_size is 500, but anchor" in said
    assert "locks it at 128" in said


def test_dkd_follows_the_published_values(registry: Registry, anchor: Anchor, crd: Anchor) -> None:
    method = registry.methods["dkd"]
    betas = {
        ("resnet56", "resnet20"): 2.0,
        ("resnet32x4", "resnet8x4"): 8.0,
        ("wrn_40_2", "wrn_16_2"): 6.0,
        ("vgg13", "vgg8"): 6.0,
        ("vgg13", "MobileNetV2"): 6.0,
        ("resnet32x4", "ShuffleV2"): 8.0,
    }
    for (teacher, student), beta in betas.items():
        pair = Pair("p", student, (teacher,), "cifar100")
        assert resolve_options(method, crd, pair, []).model_dump()["beta"] == beta
        assert resolve_options(method, anchor, pair, []).model_dump()["beta"] == 2.0


def test_recommended_that_fails_is_the_plugins_fault(anchor: Anchor) -> None:
    class Broken(Knobby):
        @classmethod
        def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:
            raise KeyError(f"{anchor}/{pair.student}")

    said = failing(PluginError, resolve_options, Broken, anchor, PAIR, [])
    assert said == "method 'knobby': recommended() failed: KeyError: 'fair_baseline/resnet8x4'"


def test_options_cannot_be_changed(anchor: Anchor) -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve(anchor).gain = 2.0  # type: ignore[misc]


def test_undeclared_option_with_a_locked_name(anchor: Anchor) -> None:
    assert deviations_of(Tempting, anchor, Tempered(tau=4.0)) == ()
    assert failing(ConfigError, deviations_of, Tempting, anchor, Tempered(tau=2.0)) == (
        "method 'tempting': option tau is 2.0, but anchor fair_baseline_smoke-v1 (fair_baseline_smoke.yaml) locks "
        "loss.tau at 4.0; set it to that, or declare a Deviation"
    )


def test_declared_deviation_opens_and_applies(anchor: Anchor) -> None:
    (deviation,) = deviations_of(Declared, anchor, Tempered(tau=2.0))
    assert (deviation.key, deviation.value, deviation.reason) == ("loss.tau", 2.0, "published so")
    changed = apply_deviations(anchor, [deviation])
    assert (changed.loss.tau, anchor.loss.tau) == (2.0, 4.0)
    assert changed.model_copy(update={"loss": anchor.loss}) == anchor


def test_deviation_to_the_anchors_own_value_is_none(anchor: Anchor, registry: Registry) -> None:
    class Same(Tempting):
        deviations = (
            Deviation("loss.tau", 4, "equal number"),
            Deviation("optimizer.betas", [0.9, 0.999], "equal list"),
        )

    assert deviations_of(Same, anchor, Tempered()) == ()


def test_deviation_of_several_values(anchor: Anchor) -> None:
    class Annealed(Tempting):
        deviations = (Deviation("loss.tau_schedule", (6.0, 2.0), "published so"),)

    (deviation,) = deviations_of(Annealed, anchor, Tempered())
    assert deviation.value == [6.0, 2.0]
    assert apply_deviations(anchor, [deviation]).loss.tau_schedule == (6.0, 2.0)


@pytest.mark.parametrize("where", ["deviations", "owns"])
def test_keys_no_anchor_has(anchor: Anchor, where: str) -> None:
    value = ("loss.tua",) if where == "owns" else (Deviation("loss.tua", 2.0, "why"),)
    method = type("Odd", (Tempting,), {where: value})
    said = failing(PluginError, deviations_of, method, anchor, Tempered())
    assert said == "method 'tempting': 'loss.tua' is no key of an anchor. Did you mean 'loss.tau'?"


def test_deviation_that_no_record_can_hold(anchor: Anchor) -> None:
    class Odd(Tempting):
        deviations = (Deviation("loss.tau", object, "why"),)

    said = failing(PluginError, deviations_of, Odd, anchor, Tempered())
    assert "method 'tempting': deviation loss.tau: <class 'object'> cannot be written to a record" in said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "loss.ce_alpha",
            1.0,
            "anchor fair_baseline_smoke with declared deviations: loss.ce_alpha 1 + loss.kd_alpha 0.35",
        ),
        ("optimizer.lr", -1.0, "optimizer.lr is -1.0: input should be greater than 0"),
        ("step.precision", "fp8", "step.precision is 'fp8'"),
    ],
)
def test_deviation_that_makes_no_valid_protocol(anchor: Anchor, key: str, value: object, said: str) -> None:
    method = type("Odd", (Tempting,), {"deviations": (Deviation(key, value, "why"),)})
    assert said in failing(ConfigError, apply_deviations, anchor, deviations_of(method, anchor, Tempered()))
