"""Preset files: a method, pair, protocol and options under one name, so that a known configuration is one word."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, JsonValue, model_validator
from pydantic_core import to_jsonable_python

from kdbench.config.loading import read_yaml, validate
from kdbench.config.schema import Name, Section
from kdbench.errors import ConfigError

Values = dict[str, JsonValue]


class Preset(Section):
    """The keys of a preset file."""

    name: Name
    version: int = Field(1, ge=1, description="version of the anchor it defines")
    description: str = ""
    source: str = Field("", description="where its values come from")
    method: Name | None = Field(None, description="method it configures; null = whichever the command names")
    pair: Name | None = Field(None, description="pair it was made for; null = whichever the command names")
    anchor: Name | dict[str, Any] = Field(
        description="a registered anchor by name, or the keys of one that is then named like the preset"
    )
    options: Values = Field(default_factory=dict, description="options of the method")
    options_of: dict[str, Values] = Field(
        default_factory=dict, description="without a method: options of those that the command may name"
    )
    keys: dict[str, Any] = Field(
        default_factory=dict, description="the same configuration in its source's own words, for the reader"
    )
    amended: dict[str, Any] = Field(
        default_factory=dict, description="of these the ones that could not stay as they are, as they are meant here"
    )
    notes: tuple[str, ...] = Field((), description="what a reader must know: what was changed, what has no counterpart")

    @model_validator(mode="after")
    def _options_have_a_method(self) -> Preset:
        if self.method is None and self.options:
            raise ValueError("options: whose? name a method, or write options_of: {METHOD: {..}}")
        if self.method is not None and self.options_of:
            raise ValueError(f"options_of: is for presets without a method; write those of '{self.method}' in options")
        return self

    @property
    def anchor_name(self) -> str:
        """Name of the anchor its runs follow."""
        return self.anchor if isinstance(self.anchor, str) else self.name

    def settings(self, methods: Iterable[str], defaults: Mapping[str, type[BaseModel]]) -> tuple[str, ...]:
        """Return its options as ``METHOD.OPTION=VALUE``, those of the methods of a command.

        A preset of one method is its whole configuration: what it does not say has the option's default. Those of
        ``options_of`` come on top of what their methods recommend.

        Args:
            methods: The command's methods.
            defaults: Types of the methods' options.
        """
        if self.method is None:
            return tuple(text for name in methods for text in as_settings(name, self.options_of.get(name, {})))
        return as_settings(self.method, whole(self.options, defaults.get(self.method)))


def whole(options: Values, defaults: type[BaseModel] | None) -> Values:
    """Return options with the defaults of those that are not there, so that nothing recommended takes their place."""
    fields = defaults.model_fields.items() if defaults else ()
    known = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    return {**to_jsonable_python(known), **options}


def as_settings(method: str, options: Values) -> tuple[str, ...]:
    """Return options as ``METHOD.OPTION=VALUE``."""
    return tuple(f"{method}.{name}={json.dumps(value)}" for name, value in options.items())


def load_preset(path: Path) -> Preset:
    """Return the preset a file holds.

    Raises:
        ConfigError: If the file is wrong, with all that is wrong, or not named like the preset.
    """
    preset = validate(Preset, read_yaml(path), str(path))
    if preset.name != path.stem:
        raise ConfigError(f"{path}: name: is '{preset.name}', must be '{path.stem}' like the file")
    return preset
