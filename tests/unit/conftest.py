"""Anchor files in a temporary folder, and one run spec with its record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kdbench import registry as registries
from kdbench.config.loading import load_anchor
from kdbench.config.schema import Anchor
from kdbench.hooks import hookimpl
from kdbench.records import Environment, Record
from kdbench.registry import Registry
from kdbench.spec import DatasetRef, PluginRef, RunSpec

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for judged_boards
WriteAnchor = Callable[..., Path]
LoadFile = Callable[[Path], Anchor]

MINIMAL = """\
name: minimal
strict_mode: true
locked: [loss.tau, loss.ce_label_smoothing, optimizer.lr_by_student]
loss: {ce_alpha: 0.4, kd_alpha: 0.6, tau: 3.0}
optimizer: {lr: 0.2, weight_decay: 0}
schedule: {epochs: 4}
data: {batch_size: 16}
step: {}
"""


@pytest.fixture
def write(tmp_path: Path) -> WriteAnchor:
    """Write a file; ``minimal.yaml``, a complete anchor that locks three keys (two by their defaults), lies beside."""
    (tmp_path / "minimal.yaml").write_text(MINIMAL)

    def write_file(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def load_file(registry: Registry) -> LoadFile:
    """Load an anchor file, with the shipped anchors known."""
    return lambda path: load_anchor(str(path), registry.anchors.as_mapping())


@pytest.fixture
def with_plugin() -> Callable[..., Registry]:
    """Return a registry with one more plugin, made of hook functions by name."""

    def load(name: str = "guest", *, decorate: bool = True, **functions: Callable[[], object]) -> Registry:
        module = ModuleType(name)
        for hook, function in functions.items():
            function.__name__ = hook
            setattr(module, hook, hookimpl(function) if decorate else function)
        return registries.load(extra=[module])

    return load


@pytest.fixture
def spec(registry: Registry) -> RunSpec:
    """One run spec, made by hand."""
    return RunSpec(
        method="dkd",
        method_version=1,
        plugin=PluginRef(distribution="kdbench", version="0.1.0", file_sha256="ab"),
        options={"alpha": 1.0, "beta": 2.0},
        pair="tiny",
        student="resnet8_w4",
        teachers=("resnet14_w8",),
        dataset=DatasetRef(name="digits", slug="digits", fingerprint="f1"),
        anchor=load_anchor("fair_baseline_smoke", registry.anchors.as_mapping()),
        seed=3,
    )


@pytest.fixture
def record(spec: RunSpec) -> Record:
    """The record of ``spec``, of a run that diverged."""
    return Record(
        kdbench_version="0.1.0",
        run_id=spec.run_id,
        config_sha256=spec.config_sha256,
        status="diverged",
        reason="loss is nan",
        method=spec.method,
        method_version=1,
        plugin=spec.plugin,
        options=spec.options,
        division="closed",
        pair=spec.pair,
        student=spec.student,
        dataset=spec.dataset.label,
        dataset_ref=spec.dataset,
        classes=10,
        anchor=spec.anchor.label,
        anchor_sha256=spec.anchor.sha256,
        seed=3,
        environment=Environment(python="3.11", torch="2.6", device="cpu", threads=1, commit=""),
        started_at="2025-01-01T00:00:00Z",
        ended_at="2025-01-01T00:00:01Z",
    )
