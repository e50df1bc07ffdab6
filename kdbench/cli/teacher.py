"""``kdbench teacher``: train, import, verify, list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kdbench.cli.arguments import (
    DEFAULT_ANCHOR,
    apply,
    data_option,
    device_option,
    events_option,
    per_class_option,
    teachers_option,
    threads_option,
)
from kdbench.cli.main import State, Suggesting
from kdbench.cli.teacher_cache import cache_command
from kdbench.local_path import LocalPath
from kdbench.storage.places import Where

_place = apply(teachers_option, data_option, device_option, threads_option)


@click.group("teacher", cls=Suggesting)
def teacher_command() -> None:
    """Train, import, verify or list teachers, or keep what they say."""


teacher_command.add_command(cache_command)


@teacher_command.command("train")
@click.argument("backbone")
@click.option("--dataset", required=True, help="A name, npz:PATH or folder:PATH.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the training.")
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help=f"How to train it [default: the registered recipe of backbone and dataset, else anchor {DEFAULT_ANCHOR}].",
)
@click.option(
    "--anchor", metavar="NAME|FILE", help="Protocol instead of a recipe; runs under it find this teacher by themselves."
)
@click.option("--scratch", is_flag=True, help="Start from random weights where the recipe takes pretrained ones.")
@apply(per_class_option, _place, events_option)
@click.pass_obj
def train(
    state: State, backbone: str, dataset: str, seed: int, per_class: int | None, recipe: str | None,
    anchor: str | None, scratch: bool, teachers: Where, data: Path, device: str, threads: int | None, events: bool,
) -> None:  # fmt: skip
    """Train a teacher by a recipe or an anchor; an interrupted training continues, a finished one is kept."""
    from kdbench.cli.progress import Reporter
    from kdbench.cli.workplaces import workplace
    from kdbench.execution.worker import StopFlag, emit
    from kdbench.teacher_plan import TeacherRequest, teacher_cell
    from kdbench.training.teachers import Recipe

    request = TeacherRequest(backbone, dataset, per_class, recipe, anchor, scratch, data)
    reference, protocol = teacher_cell(request, state.registry())
    made = Recipe(backbone, reference, protocol, seed)
    flag = StopFlag()
    flag.install()
    with Reporter(()) as reporter:
        send = emit if events else reporter.see
        train_by_name(made, workplace(state, teachers, data, device, threads, send, flag), send)


def train_by_name(recipe: Any, place: Any, send: Callable[[Any], None]) -> None:
    """Train a recipe and tell its accuracy."""
    from kdbench.execution.events import Event
    from kdbench.training.teachers import train_teacher

    manifest = train_teacher(recipe, place)
    send(Event("teacher", {"name": manifest.name, "accuracy": manifest.accuracy, "sha256": manifest.sha256}))


@teacher_command.command("import")
@click.argument("file", type=LocalPath("file"))
@click.option("--dataset", required=True, help="Dataset it was trained for: a name, npz:PATH or folder:PATH.")
@click.option("--backbone", help="Backbone it fits [default: the only registered one that does].")
@click.option("--part", help="Network of a file that holds several: student or teacher.")
@click.option("--name", help="Name of the artefact [default: from the file name].")
@click.option(
    "--normalisation", default="auto", show_default=True, metavar="NAME|M,M,M,S,S,S",
    help="Input constants: dataset, imagenet, cifar10, cifar100, half, none, six numbers, or auto: the named ones "
    "tried on training images.",
)  # fmt: skip
@click.option("--map", "mapping", type=LocalPath("file"), help="YAML file: key in the file -> our key.")
@_place
@click.pass_obj
def import_(
    state: State, file: Path, dataset: str, backbone: str | None, part: str | None, name: str | None,
    normalisation: str, mapping: Path | None, teachers: Where, data: Path, device: str, threads: int | None,
) -> None:  # fmt: skip
    """Make an artefact of a foreign checkpoint (.pt, .pth, .th, .safetensors); no code in it is run."""
    from kdbench.cli.workplaces import workplace
    from kdbench.training.importing import Foreign, import_teacher

    place = workplace(state, teachers, data, device, threads, None)
    foreign = Foreign(file, dataset, backbone, name, normalisation, mapping, part)
    manifest, notes = import_teacher(foreign, place)
    for note in notes:
        click.echo(note)
    click.echo(
        f"imported {manifest.name}: {manifest.backbone}, {manifest.accuracy:.2f} % on {manifest.test_images} test "
        f"images, sha256 {manifest.sha256[:12]}"
    )


@teacher_command.command("verify")
@click.argument("names", nargs=-1)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic of the evaluation.",
)
@click.option("--batch-size", type=click.IntRange(1), default=500, show_default=True, help="Images per forward pass.")
@click.option("--max-batches", type=click.IntRange(1), help="Look at the first so many batches only, with no verdict.")
@_place
@click.pass_obj
def verify(
    state: State, names: tuple[str, ...], precision: str, batch_size: int, max_batches: int | None, teachers: Where,
    data: Path, device: str, threads: int | None,
) -> None:  # fmt: skip
    """Check hash and test accuracy of teachers (default: all)."""
    from kdbench.artefacts import TeacherStore
    from kdbench.cli.workplaces import workplace
    from kdbench.errors import ConfigError, KdbenchError, unknown
    from kdbench.training.verifying import Check, verify_teacher

    known = TeacherStore(teachers).all()
    if not known:
        raise ConfigError(f"{teachers}: no teachers there; make one with kdbench teacher train or teacher import")
    if missing := [name for name in names if name not in {m.name for m in known}]:
        raise ConfigError(unknown("teacher", missing[0], [m.name for m in known]))
    place = workplace(state, teachers, data, device, threads, None)
    problems = []
    for manifest in (m for m in known if not names or m.name in names):
        try:
            found = verify_teacher(manifest, place, Check(precision, batch_size, max_batches))
        except KdbenchError as error:
            problems.append(str(error))
            continue
        click.echo(_verified(manifest, found, precision))
    if problems:
        raise KdbenchError("\n".join(problems))


def _verified(manifest: Any, found: Any, precision: str) -> str:
    """Return the line about a teacher; a look at some images says of how many, and is compared with nothing."""
    count, total = len(found.labels), manifest.test_images
    how = "" if precision == "fp32" else f" in {precision}"
    line = (
        f"{manifest.name} on {manifest.dataset.label}: {found.accuracy:.2f} % ({int(found.correct.sum())} of {count})"
    )
    if count == total:
        return f"{line}{how}, sha256 ok"
    return f"{line}{how}, sha256 ok; truncated: n = {count} of {total} test images, not compared with the manifest"


@teacher_command.command("list")
@teachers_option
def list_(teachers: Where) -> None:
    """List the artefacts of a folder."""
    print_teachers(teachers)


def print_teachers(teachers: Where) -> None:
    """Print a table of the artefacts of a folder."""
    from tabulate import tabulate

    from kdbench.artefacts import TeacherStore

    rows = [
        (m.name, m.backbone, m.dataset.label, f"{m.accuracy:.2f}", m.origin, m.recipe, m.sha256[:12])
        for m in TeacherStore(teachers).all()
    ]
    headers = ("name", "backbone", "dataset", "accuracy %", "origin", "recipe", "sha256")
    click.echo(tabulate(rows, headers=headers, disable_numparse=True) if rows else f"no teachers in {teachers}")
