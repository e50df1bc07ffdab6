"""A method's options in one run: defaults, recommended values, ``--set``, and what the anchor allows of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from kdbench.config.loading import NOT_YAML, parse_yaml, same_value, validate
from kdbench.config.schema import Anchor
from kdbench.errors import FAULTS, ConfigError, PluginError, ProblemList, nearest
from kdbench.method import AnyMethod, Options
from kdbench.spec import DeclaredDeviation
from kdbench.types import Deviation, Pair

# An option called like a key of these sections means that key; a helper's own `lr` or `batch_size` does not.
_MEANT_BY_OPTIONS = ("loss.", "freezing.")


@dataclass(frozen=True)
class Setting:
    """One ``--set METHOD.OPTION=VALUE``."""

    method: str
    option: str
    value: object
    text: str

    @property
    def dotted(self) -> str:
        """``METHOD.OPTION``, the left side."""
        return f"{self.method}.{self.option}"

    def __str__(self) -> str:
        return self.text

    def refused(self, key: str, fixed: object, anchor: Anchor) -> str:
        """Return the message for a setting that touches the anchor."""
        how = "locks" if key in anchor.locked else "fixes"
        return (
            f"--set {self.text}: {key} is {self.value!r}, but anchor {anchor.label} ({anchor.name}.yaml) {how} it at "
            f"{fixed!r}. Protocols are not changed by the command line; write an anchor of your own (extends: ...)"
        )


def parse_setting(text: str) -> Setting:
    """Return a parsed setting; the value is read as YAML (numbers, true/false, lists).

    Raises:
        ConfigError: If it is not ``METHOD.OPTION=VALUE``.
    """
    left, equals, right = text.partition("=")
    method, dot, option = left.strip().partition(".")
    if not (equals and dot and method and option and right.strip()):
        raise ConfigError(f"--set {text}: not of the form METHOD.OPTION=VALUE")
    try:
        value = parse_yaml(right)
    except NOT_YAML as error:
        raise ConfigError(f"--set {text}: the value is not a YAML scalar or list") from error
    return Setting(method, option, value, text)


def resolve_options(method: type[AnyMethod], anchor: Anchor, pair: Pair, settings: Sequence[Setting]) -> Options:
    """Return the options of a run: field defaults, then recommended values, then settings.

    Raises:
        ProblemList: If a setting names no option, is out of range, or touches a key of the anchor.
    """
    fields = method.options_type.model_fields
    values = _recommended(method, anchor, pair)
    problems: list[str] = []
    for setting in settings:
        if setting.option in fields:
            values[setting.option] = setting.value
        elif named := _keys_named(setting.option, anchor):
            key, fixed = named[0]
            problems += [] if same_value(setting.value, fixed) else [setting.refused(key, fixed, anchor)]
        else:
            problems.append(
                f"--set {setting}: method '{method.name}' has no option '{setting.option}'."
                f"{nearest(setting.option, fields)} Its options: {', '.join(fields) or 'none'} "
                f"(kdbench show {method.name})"
            )
    try:
        options = validate(method.options_type, values, f"options of method '{method.name}'")
    except ProblemList as error:
        raise ProblemList([*problems, *error.problems]) from error
    if problems:
        raise ProblemList(problems)
    return options


def usual_options(method: type[AnyMethod], anchor: Anchor, pair: Pair) -> dict[str, object]:
    """Return the options of a run for which nothing is set, in JSON's types."""
    return resolve_options(method, anchor, pair, ()).model_dump(mode="json")


def _recommended(method: type[AnyMethod], anchor: Anchor, pair: Pair) -> dict[str, object]:
    try:
        return dict(method.recommended(anchor.family, pair))
    except FAULTS as error:
        raise PluginError(f"method '{method.name}': recommended() failed: {type(error).__name__}: {error}") from error


def _keys_named(leaf: str, anchor: Anchor) -> list[tuple[str, object]]:
    """Return the anchor's keys of that name, whole or last part; ``batch_size`` is first of all the locked one."""
    found = [(key, value) for key, value in anchor.keys().items() if leaf in {key, key.rpartition(".")[2]}]
    return sorted(found, key=lambda item: item[0] not in anchor.locked)


def deviations_of(method: type[AnyMethod], anchor: Anchor, options: Options) -> tuple[DeclaredDeviation, ...]:
    """Return the declared deviations that really deviate from this anchor.

    Raises:
        PluginError: If the method declares a key no anchor has.
        ConfigError: If an option has the name of a locked key and another value, undeclared.
    """
    keys = anchor.keys()
    declared = {deviation.key: deviation for deviation in method.deviations}
    for key in (*declared, *method.owns):
        if key not in keys:
            raise PluginError(f"method '{method.name}': '{key}' is no key of an anchor.{nearest(key, keys)}")
    deviations = tuple(_declared(method, d) for d in method.deviations if not same_value(d.value, keys[d.key]))
    for name, value in options.model_dump().items():
        for key in (k for k in anchor.locked if k.rpartition(".")[2] == name and k.startswith(_MEANT_BY_OPTIONS)):
            allowed = declared[key].value if key in declared else keys[key]
            if not same_value(value, allowed):
                who = f"anchor {anchor.label} ({anchor.name}.yaml) locks"
                raise ConfigError(
                    f"method '{method.name}': option {name} is {value!r}, but "
                    f"{'its own Deviation puts' if key in declared else who} {key} at {allowed!r}; set it to that, or "
                    "declare a Deviation"
                )
    return deviations


def _declared(method: type[AnyMethod], deviation: Deviation) -> DeclaredDeviation:
    value = list(deviation.value) if isinstance(deviation.value, tuple) else deviation.value  # JSON has no tuples
    try:
        return DeclaredDeviation.model_validate({"key": deviation.key, "value": value, "reason": deviation.reason})
    except ValidationError as error:
        raise PluginError(
            f"method '{method.name}': deviation {deviation.key}: {value!r} cannot be written to a record; allowed: "
            "numbers, text, true, false, null and lists of them"
        ) from error


def apply_deviations(anchor: Anchor, deviations: Iterable[DeclaredDeviation]) -> Anchor:
    """Return the protocol a run really follows: the anchor with its declared deviations."""
    tree = anchor.model_dump()
    for deviation in deviations:
        node = tree
        *sections, leaf = deviation.key.split(".")
        for section in sections:
            node = node[section]
        node[leaf] = deviation.value
    return validate(Anchor, tree, f"anchor {anchor.name} with declared deviations")
