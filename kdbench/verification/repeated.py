"""Two trainings of one run against each other: bits first, then how far apart, and what was different around them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdbench.errors import StoreError
from kdbench.records import Record
from kdbench.store import EPOCHS, PREDICTIONS, RECORD, WEIGHTS, RunFolder
from kdbench.verification.epochs import read_epochs
from kdbench.verification.predictions import read_answers
from kdbench.verification.report import Check, counted

ENOUGH_SEEDS = 3
# Of a run's costs, what its spec determines: time and memory are measured, and a teacher's pass may be shared.
COUNTED = ("student_forwards", "train_only_parameters", "deployed_parameters", "deployed_flops")
_MEASURED = {"images_per_second", "seconds"}
_AROUND = {"kdbench_version", "plugin", "plugins_loaded", "environment", "started_at", "ended_at", "attempts", "cost"}
_COMPARED = {"weights_sha256"}  # with the weights themselves
_EQUAL = "equal"


def compare(first: RunFolder, second: RunFolder) -> tuple[Check, ...]:
    """Return what two trainings of one run have in common.

    Args:
        first: The run that is verified.
        second: The same run, made again.

    Raises:
        StoreError: If a file of theirs cannot be read.
    """
    records = _record(first), _record(second)
    found = (
        _weights(first.path / WEIGHTS, second.path / WEIGHTS),
        _predictions(first.path / PREDICTIONS, second.path / PREDICTIONS, records[0].classes),
        _epochs(first.path / EPOCHS, second.path / EPOCHS),
        _records(first.path / RECORD, *records),
    )
    equal = not any(check.problems for check in found)
    noise = () if equal else (Check("accuracy", against_noise(first, *records)),)
    return (*found, *noise, Check("environment", "; ".join(around(*records)) or "the same"))


def around(then: Record, now: Record) -> Iterator[str]:
    """Yield what differs between where two records were made, with both values."""
    pairs: dict[str, tuple[Any, Any]] = {"kdbench": (then.kdbench_version, now.kdbench_version)}
    pairs |= {key: (value, getattr(now.environment, key)) for key, value in then.environment}
    a, b = then.plugin, now.plugin
    pairs[f"plugin {a.distribution}"] = (f"{a.version} {a.file_sha256[:12]}", f"{b.version} {b.file_sha256[:12]}")
    for name, (old, new) in pairs.items():
        if old != new:
            yield f"{name} {old or 'unknown'} then, {new or 'unknown'} now"


def against_noise(folder: RunFolder, then: Record, now: Record) -> str:
    """Return how far apart two accuracies are, in points and against the spread of the seeds beside the run."""
    if then.accuracy is None or now.accuracy is None:
        return f"{then.status} then, {now.status} now"
    apart = abs(now.accuracy.last - then.accuracy.last)
    said = f"{then.accuracy.last:.2f} % then, {now.accuracy.last:.2f} % now, {apart:.2f} points apart"
    scores = _scores_beside(folder, then)
    if len(scores) < ENOUGH_SEEDS:
        return f"{said}; with {counted(len(scores), 'seed')} there it cannot be said whether that is seed noise"
    spread = statistics.stdev(scores)
    if spread == 0:
        return f"{said}; the {len(scores)} seeds there do not differ"
    verdict = "within" if apart <= spread else "more than"
    return (
        f"{said}: {verdict} seed noise ({apart / spread:.2f} times the sd of {len(scores)} seeds, {spread:.2f} points)"
    )


def _scores_beside(folder: RunFolder, record: Record) -> list[float]:
    """Return the accuracies of the runs that differ from this one in their seed alone, its own among them."""
    scores = []
    for path in sorted(folder.path.resolve().parent.glob(f"seed*/{RECORD}")):
        try:
            beside = RunFolder(path.parent).peek()
        except StoreError:
            continue  # a damaged neighbour says nothing
        same = beside and (beside.options, beside.anchor_sha256) == (record.options, record.anchor_sha256)
        if beside and same and beside.status == "ok" and beside.accuracy:
            scores.append(beside.accuracy.last)
    return scores


def _record(folder: RunFolder) -> Record:
    if (record := folder.peek()) is None:
        raise StoreError(f"{folder.path / RECORD}: missing; the run has no result")
    return record


def _check(name: str, one: Path, differences: list[str]) -> Check:
    """Return the check of a file; its problems say where both differ."""
    return Check(name, f"{one.name} {'differs' if differences else _EQUAL}", [f"{one}: {text}" for text in differences])


def _weights(one: Path, other: Path) -> Check:
    if not one.is_file():
        return Check("weights", f"no {one.name} beside the record, as in published boards; not compared")
    if not other.is_file():
        return _check("weights", one, ["there, and the second training left none"])
    if one.read_bytes() == other.read_bytes():
        return _check("weights", one, [])
    try:
        a, b = load_file(one), load_file(other)
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{one}: not the weights of a run ({error}); restore it") from error
    if {key: value.shape for key, value in a.items()} != {key: value.shape for key, value in b.items()}:
        return _check("weights", one, ["other tensors than in the second training"])
    apart = [float((a[key].double() - b[key].double()).abs().max()) for key in a if not torch.equal(a[key], b[key])]
    if not apart:
        return _check("weights", one, ["equal tensors in other bytes"])
    return _check("weights", one, [f"{len(apart)} of {counted(len(a), 'tensor')} differ, by at most {max(apart):.3g}"])


def _predictions(one: Path, other: Path, classes: int) -> Check:
    there = [path.is_file() for path in (one, other)]
    if not all(there):
        missing = (
            []
            if not any(there)
            else [f"{'missing' if there[1] else 'there'}, and the second training has it otherwise"]
        )
        return _check("predictions", one, missing)
    try:
        a, b = read_answers(one, classes), read_answers(other, classes)
    except (OSError, ValueError) as error:
        raise StoreError(f"{one}: not the predictions of a run ({error}); restore it") from error
    if len(a.predicted) != len(b.predicted):
        return _check("predictions", one, [f"{len(a.predicted)} images, the second training saw {len(b.predicted)}"])
    turned = int((a.predicted != b.predicted).sum())
    said = f"{turned} of {counted(len(a.predicted), 'test image')} have another class"
    return _check("predictions", one, [said] if turned or (a.correct != b.correct).any() else [])


def _epochs(one: Path, other: Path) -> Check:
    try:
        a, b = ([report.model_dump(exclude=_MEASURED) for report in read_epochs(path)] for path in (one, other))
    except (OSError, ValueError) as error:
        raise StoreError(f"{one}: not the epochs of a run ({error}); restore it") from error
    if len(a) != len(b):
        return _check("epochs", one, [f"{counted(len(a), 'epoch')}, the second training has {len(b)}"])
    for mine, theirs in zip(a, b, strict=True):
        if changed := list(_changed(mine, theirs)):
            return _check(
                "epochs", one, [f"differs from phase {mine['phase']}, epoch {mine['epoch'] + 1} on: {changed[0]}"]
            )
    return _check("epochs", one, [])


def _records(path: Path, then: Record, now: Record) -> Check:
    a, b = (record.model_dump(mode="json", exclude=_AROUND | _COMPARED | {"dataset_ref"}) for record in (then, now))
    for tree, record in ((a, then), (b, now)):
        tree["dataset_ref.fingerprint"] = record.dataset_ref.fingerprint
        tree["cost"] = {key: getattr(record.cost, key) for key in COUNTED} if record.cost else None
    return _check("record", path, list(_changed(a, b)))


def _changed(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys with different values, dotted, with both; NaN is equal to itself."""
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed(old, new, f"{prefix}{key}.")
        elif old != new and not (old != old and new != new):  # noqa: PLR0124 (that is what NaN does)
            yield f"{prefix}{key} {old} then, {new} now"
