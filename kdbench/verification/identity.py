"""Each record against the spec beside it, and each protocol against the one kdbench ships under its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import kdbench
from kdbench.config.loading import load_anchor
from kdbench.config.presets import load_preset
from kdbench.leaderboard.checks import cell_problems
from kdbench.records import Record
from kdbench.spec import RunSpec
from kdbench.store import RECORD, SPEC
from kdbench.verification.bundle import Run
from kdbench.verification.report import Check, counted

_RESTORE = "bring back the file that was changed, or publish the board again without this run"


def check_records(runs: Sequence[Run]) -> Check:
    """Return whether every record is the one of its spec: hashes computed anew, and all that both say."""
    with_record = [run for run in runs if run.record]
    problems = [problem for run in with_record for problem in cell_problems(run.cell) or _other_fields(run)]
    return Check("records", f"{counted(len(with_record), 'record')} against spec and config_sha256", problems)


def check_anchors(runs: Sequence[Run]) -> Check:
    """Return whether the protocols are what their names promise, where kdbench ships one of that name and version."""
    shipped = shipped_anchors({run.spec.anchor.name for run in runs})
    labels = sorted({run.spec.anchor.label for run in runs})
    known = [label for label in labels if label in shipped]
    problems = []
    for run in runs:
        anchor = run.spec.anchor
        if (expected := shipped.get(anchor.label, anchor.sha256)) != anchor.sha256:
            problems.append(
                f"{run.path / SPEC}: its anchor {anchor.label} has sha256 {anchor.sha256[:12]}.., the one kdbench "
                f"ships has {expected[:12]}..; a changed protocol needs a name of its own, and its runs made again"
            )
    said = f"{counted(len(labels), 'protocol')}, {len(known)} of them shipped with kdbench"
    return Check("anchors", said, problems)


def _other_fields(run: Run) -> list[str]:
    """Return what differs between record and spec beyond what already keeps a run out of a table."""
    assert run.record is not None
    said, planned = _said(run.record), _planned(run.spec)
    return [
        f"{run.path / RECORD}: {key} is {said[key]!r}, the spec beside it says {planned[key]!r}; {_RESTORE}"
        for key in planned
        if said[key] != planned[key]
    ]


def _said(record: Record) -> dict[str, object]:
    return {
        "plugin.distribution": record.plugin.distribution,
        "division": record.division,
        "student": record.student,
        "dataset": record.dataset,
        "dataset_ref.slug": record.dataset_ref.slug,
        "dataset_ref.per_class": record.dataset_ref.per_class,
        "anchor": record.anchor,
    }


def _planned(spec: RunSpec) -> dict[str, object]:
    return {
        "plugin.distribution": spec.plugin.distribution,
        "division": spec.division,
        "student": spec.student,
        "dataset": spec.dataset.label,
        "dataset_ref.slug": spec.dataset.slug,
        "dataset_ref.per_class": spec.dataset.per_class,
        "anchor": spec.anchor.label,
    }


def shipped_anchors(names: Iterable[str]) -> Mapping[str, str]:
    """Return the sha256 of those anchors that lie in kdbench itself, by label; no plugin is asked."""
    package = Path(kdbench.__file__).parent
    presets = {file.stem: file for file in package.glob("methods/*/presets/*.yaml")}
    files = [*package.glob("config/anchors/*.yaml"), *package.glob("methods/*/anchors/*.yaml")]
    anchors = {file.stem: file for file in files}
    wanted = [name for name in sorted(names) if name in anchors or (name in presets and _states_one(presets[name]))]
    found = [load_anchor(name, {**presets, **anchors}) for name in wanted]
    return {anchor.label: anchor.sha256 for anchor in found}


def _states_one(preset: Path) -> bool:
    """Return whether a preset is a protocol of its own, or names one."""
    return not isinstance(load_preset(preset).anchor, str)
