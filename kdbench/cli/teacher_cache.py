"""``kdbench teacher cache``: fill the cache of a teacher's outputs in advance."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from kdbench.cli.arguments import (
    DEFAULT_ANCHOR,
    apply,
    cache_folder_option,
    cache_size_option,
    data_option,
    device_option,
    per_class_option,
    teachers_option,
    threads_option,
)
from kdbench.cli.main import State
from kdbench.storage.places import Where

SECONDS = 10.0  # between two lines where there is no terminal


@click.command("cache")
@click.argument("name")
@click.option("--dataset", required=True, help="What the runs are trained on: a name, npz:PATH or folder:PATH.")
@click.option("--anchor", default=DEFAULT_ANCHOR, show_default=True, metavar="NAME|FILE", help="Protocol of the runs.")
@click.option("--embedding", is_flag=True, help="Keep embeddings, too, for methods that ask for them.")
@apply(per_class_option, teachers_option, data_option, device_option, threads_option)
@apply(cache_folder_option, cache_size_option)
@click.pass_obj
def cache_command(
    state: State, /, name: str, dataset: str, anchor: str, embedding: bool, per_class: int | None, teachers: Where,
    data: Path, device: str, threads: int | None, cache: Path | None, cache_size: float,
) -> None:  # fmt: skip
    """Keep what teacher NAME says of every crop of every training image.

    Runs of the protocol then ask the teacher nothing but feature maps, whatever their method and seed, if they have the
    same device and number of threads. A command that was stopped goes on where it was.
    """
    from kdbench.artefacts import TeacherStore
    from kdbench.cli.workplaces import cache_place, workplace
    from kdbench.config.loading import load_anchor
    from kdbench.opening import open_whole
    from kdbench.training.teacher_cache.filling import fill
    from kdbench.training.teacher_cache.place import gibibytes

    registry = state.registry()
    protocol = load_anchor(anchor, registry.anchors.as_mapping())
    reference = open_whole(dataset, per_class, registry, data).reference
    manifest = TeacherStore(teachers).manifest(reference, name)
    place = workplace(state, teachers, data, device, threads, None)
    place = replace(place, cache=cache_place(teachers, cache, "auto", cache_size))
    with _shown(name) as tell:
        done = fill(manifest, reference, protocol, place, embedding=embedding, done=tell)
    where = f"{gibibytes(done.size)} in {place.cache.folder}"
    click.echo(f"{name}: {done.entries:,} crops, {done.known:,} of them kept before, {where}")


@contextlib.contextmanager
def _shown(name: str) -> Iterator[Callable[[int, int], None]]:
    """Give what shows how far it is: a bar on a terminal, a line now and then anywhere else."""
    if not sys.stdout.isatty():
        yield _lines(name)
        return
    from rich.progress import Progress

    with Progress() as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _lines(name: str) -> Callable[[int, int], None]:
    started = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS:
            last = now
            left = (now - started) * (total - done) / done
            click.echo(f"{name}: {done:,} of {total:,} crops, {done / (now - started):.0f}/s, {left / 60:.0f} min left")

    return tell
