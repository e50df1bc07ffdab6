"""Ladder files: configurations of one method, each of which differs from another one by a declared factor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field, JsonValue, model_validator

from kdbench.config.loading import read_yaml, validate
from kdbench.config.presets import Preset, Values
from kdbench.config.schema import Name, Section
from kdbench.errors import ConfigError, unknown


class Step(Section):
    """One rung: what it changes, and against which one it is held."""

    name: Name
    against: Name | None = Field(None, description="an earlier step, which it starts from and is compared with")
    factor: Name | None = Field(None, description="the factor that it changes, and nothing else")
    preset: Name | None = Field(None, description="start from this preset's options instead")
    options: Values = Field(default_factory=dict, description="options that it sets")
    by_anchor: dict[str, Values] = Field(
        default_factory=dict, description="under an anchor of that name, or one that extends it: these, too"
    )


class Ladder(Section):
    """The keys of a ladder file."""

    name: Name
    description: str = ""
    source: str = Field("", description="where its values come from")
    method: Name
    default: bool = Field(False, description="whether it is the method's ladder where a command names none")
    anchor: str = Field(description="protocol of all its runs, unless the command names another")
    verbatim: bool = Field(False, description="take the steps as they are, also where one changes several factors")
    factors: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="options and anchor keys (anchor.KEY) that belong to each factor"
    )
    common: Values = Field(default_factory=dict, description="options of every step")
    by_anchor: dict[str, Values] = Field(
        default_factory=dict, description="options of every step under an anchor of that name or one that extends it"
    )
    steps: tuple[Step, ...] = Field(min_length=1)
    show_metrics: tuple[str, ...] = Field((), description="metrics of the last epoch that the table shows")
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``method.name``, under which it is registered."""
        return f"{self.method}.{self.name}"

    @model_validator(mode="after")
    def _consistent(self) -> Ladder:
        if problems := list(self._problems()):
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        seen: list[str] = []
        for step in self.steps:
            where = f"step '{step.name}'"
            if step.name in seen:
                yield f"{where} occurs twice; give each a name of its own"
            if step.against is not None and step.against not in seen:
                yield f"{where}: against: no earlier step is named '{step.against}'; there are {seen or 'none'}"
            if step.factor is not None and not self.verbatim and step.factor not in self.factors:
                yield f"{where}: factor: '{step.factor}' is not in factors: {', '.join(self.factors) or 'none'}"
            if (step.against is None) != (step.factor is None) and not self.verbatim:
                yield f"{where}: against and factor belong together; give both or neither"
            seen.append(step.name)

    def options_of(
        self, name: str, anchors: Sequence[str], presets: Mapping[str, Preset], *, where: str = ""
    ) -> dict[str, JsonValue]:
        """Return what a step sets: of what it starts from, of the anchor, and its own; the latter win.

        Args:
            name: Name of the step.
            anchors: Names of the runs' anchor and of those it extends, nearest first.
            presets: Registered presets.
            where: What messages call the ladder.

        Raises:
            ConfigError: If the step starts from a preset that is not registered or another method's.
        """
        step = next(step for step in self.steps if step.name == name)
        shared = _nearest(self.by_anchor, anchors)
        if step.preset is not None:
            start = {**self.common, **self._preset(step, presets, where), **shared}
        elif step.against is not None:
            start = self.options_of(step.against, anchors, presets, where=where)
        else:
            start = {**self.common, **shared}
        return {**start, **step.options, **_nearest(step.by_anchor, anchors)}

    def _preset(self, step: Step, presets: Mapping[str, Preset], where: str) -> Values:
        name = step.preset or ""
        if name not in presets:
            raise ConfigError(unknown("preset", name, presets, where=f"{where}: step '{step.name}'"))
        if presets[name].method != self.method:
            raise ConfigError(
                f"{where}: step '{step.name}': preset '{name}' is one of method '{presets[name].method}', the ladder "
                f"one of '{self.method}'; name another preset"
            )
        return presets[name].options


def _nearest(by_anchor: Mapping[str, Values], anchors: Sequence[str]) -> Values:
    return next((by_anchor[anchor] for anchor in anchors if anchor in by_anchor), {})


def load_ladder(path: Path) -> Ladder:
    """Return the ladder a file holds.

    Raises:
        ConfigError: If the file is wrong, with all that is wrong.
    """
    return validate(Ladder, read_yaml(path), str(path))
