"""``kdbench asib-config``: a configuration of one's own, in ASIB's words, as a preset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from kdbench.config.loading import read_yaml, validate
from kdbench.config.presets import Preset
from kdbench.config.schema import Anchor
from kdbench.hooks import hookimpl
from kdbench.local_path import LocalPath
from kdbench.methods.asib.layers import resolve
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.translate import OWN, Translation, translate

VALIDATION = 0.1  # share of train that gates and snapshots are measured on; no file of the original has it
_FILE = LocalPath("file", dir_okay=False)


def preset_of(
    name: str, experiment: Mapping[str, Any], method: Mapping[str, Any], base: dict[str, Any] | None
) -> Preset:
    """Return the preset that says what the layers of a configuration say together.

    Args:
        name: Name of the preset, and of the anchor it states.
        experiment: Keys of the experiment file.
        method: Keys of the method file; empty = none.
        base: Keys of the lowest layer; None = the shipped ones.

    Raises:
        ProblemList: With every key that is unknown, refused or out of range.
    """
    config = resolve(experiment, method, base)
    runs = str(config.get("method", OWN))
    made = translate(config, runs)
    anchor = {"name": name, **_nested({**made.anchor, "data.validation_fraction": VALIDATION})}
    validate(Anchor, anchor, f"protocol of '{name}'")
    if runs == OWN:
        validate(ASIBOptions, made.options, f"options of '{name}'")
    del anchor["name"]
    said = {**experiment, **{f"method.{key}": value for key, value in method.items()}}
    tree = {"name": name, "method": runs, "anchor": anchor, "options": made.options, "keys": said}
    return validate(Preset, {**tree, "notes": [*_of_pair(made), *made.notes]}, f"preset '{name}'")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    return tree


def _of_pair(made: Translation) -> list[str]:
    """Networks are the pair's: say which ones are meant, so that one can be named or written."""
    stated = {key: value for key, value in made.pair.items() if not key.endswith("pretrained")}
    return [f"pair: one of {', '.join(f'{key} {value}' for key, value in stated.items())}"] if stated else []


@click.command("asib-config")
@click.argument("experiment", type=_FILE)
@click.option("--method-file", type=_FILE, help="Method file; wins unless EXPERIMENT has method_priority: experiment.")
@click.option("--base", type=_FILE, help="Lowest layer, instead of the shipped base.yaml.")
@click.option("--name", help="Name of the preset  [default: that of EXPERIMENT].")
def asib_config_command(experiment: Path, method_file: Path | None, base: Path | None, name: str | None) -> None:
    """Translate a configuration in ASIB's own words into a preset and print it.

    Every key that is unknown, or cannot be had here, is named; so is what has no effect.
    """
    method = {} if method_file is None else read_yaml(method_file)
    preset = preset_of(
        name or experiment.stem, read_yaml(experiment), method, None if base is None else read_yaml(base)
    )
    tree = preset.model_dump(mode="json", exclude_unset=True)
    click.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110), nl=False)


@hookimpl
def kdbench_commands(cli: click.Group) -> None:
    """Add the command."""
    cli.add_command(asib_config_command)
