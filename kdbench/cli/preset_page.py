"""What ``kdbench show`` says of presets and ladders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tabulate import tabulate

from kdbench.config.ladders import Ladder
from kdbench.config.presets import Preset, Values


def preset_page(preset: Preset) -> Iterator[str]:
    """Yield the lines that describe a preset; its anchor has a page of its own."""
    yield f"preset {preset.name}: {preset.description}"
    if preset.source:
        yield f"source: {preset.source}"
    yield f"method {preset.method or 'any'}, pair {preset.pair or 'any'}, anchor {preset.anchor_name}"
    options = preset.options_of if preset.method is None else {preset.method: preset.options}
    rows = [(method, key, json.dumps(value)) for method, values in options.items() for key, value in values.items()]
    if rows:
        yield tabulate(rows, headers=("method", "option", "value"), disable_numparse=True)
    yield from (f"key of the source: {key}: {json.dumps(value)}" for key, value in preset.keys.items())
    yield from (f"amended: {key}: {json.dumps(value)}" for key, value in preset.amended.items())
    yield from (f"note: {note}" for note in preset.notes)


def ladder_page(ladder: Ladder, presets: Mapping[str, Preset]) -> Iterator[str]:
    """Yield the lines that describe a ladder: its factors, and what each step sets under the ladder's own anchor."""
    yield f"ladder {ladder.name} of {ladder.method}: {ladder.description}"
    if ladder.source:
        yield f"source: {ladder.source}"
    kind = ", verbatim: a step may change several factors" if ladder.verbatim else ""
    yield f"anchor {ladder.anchor}{kind}"
    yield from (f"factor {name}: {', '.join(keys)}" for name, keys in ladder.factors.items())
    options = {step.name: ladder.options_of(step.name, [ladder.anchor], presets) for step in ladder.steps}
    rows = [
        (step.name, step.against or "-", step.factor or "-", _shown(_changed(options, step.name, step.against)))
        for step in ladder.steps
    ]
    yield tabulate(rows, headers=("step", "against", "factor", "options"), disable_numparse=True)
    yield from (f"note: {note}" for note in ladder.notes)


def _changed(options: Mapping[str, Values], name: str, against: str | None) -> Values:
    before = options[against] if against else {}
    return {key: value for key, value in options[name].items() if key not in before or before[key] != value}


def _shown(values: Values) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items()) or "-"
