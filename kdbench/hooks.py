"""The hooks a plugin may implement: return what it brings, or observe what happened.

A plugin is a module (or object) named by an entry point in group ``kdbench``. Built-in methods, backbones, datasets,
pairs, anchors, recipes, presets, ladders and engines are registered through the same hooks. Every hook returns values,
none calls back into kdbench, so a plugin can be tested without the harness.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from kdbench.backbones.base import Backbone
    from kdbench.datasets.base import Dataset
    from kdbench.engine import Engine
    from kdbench.method import AnyMethod
    from kdbench.records import EpochReport, Record, StepReport

PROJECT = "kdbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def kdbench_methods() -> Iterable[type[AnyMethod]]:
    """Return the distillation methods the plugin brings, as classes."""
    return ()


@hookspec
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the backbones the plugin brings; libraries are imported only when one is built."""
    return ()


@hookspec
def kdbench_datasets() -> Iterable[Dataset]:
    """Return the datasets the plugin brings; nothing is read or downloaded before one is opened."""
    return ()


@hookspec
def kdbench_pairs() -> Iterable[Path]:
    """Return pair files (YAML): student, teachers, dataset."""
    return ()


@hookspec
def kdbench_anchors() -> Iterable[Path]:
    """Return anchor files (YAML): named, versioned protocols."""
    return ()


@hookspec
def kdbench_recipes() -> Iterable[Path]:
    """Return recipe files (YAML): how a backbone is trained to be the teacher of a dataset."""
    return ()


@hookspec
def kdbench_presets() -> Iterable[Path]:
    """Return preset files (YAML): a method with pair, protocol and options under one name."""
    return ()


@hookspec
def kdbench_ladders() -> Iterable[Path]:
    """Return ladder files (YAML): configurations of a method, each compared with another one."""
    return ()


@hookspec
def kdbench_executors() -> Iterable[Engine]:
    """Return engines that run jobs, for ``--executor``; their libraries are imported only when one is opened."""
    return ()


@hookspec
def kdbench_commands(cli: click.Group) -> None:
    """Add subcommands to the command line.

    Args:
        cli: The ``kdbench`` group; a name that exists already is refused.
    """


@hookspec
def kdbench_phase_started(report: StepReport) -> None:
    """Observe the first step of a phase of a run; what is returned is ignored.

    Args:
        report: Run, phase, loss terms with their weights, and the method's own numbers.
    """


@hookspec
def kdbench_epoch_ended(report: EpochReport) -> None:
    """Observe the end of an epoch of a run; what is returned is ignored.

    Args:
        report: Run, epoch, learning rate, loss terms and accuracies of the epoch.
    """


@hookspec
def kdbench_run_finished(record: Record) -> None:
    """Observe a finished run, whatever its status.

    Args:
        record: The record as written to the store.
    """
