"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from kdbench.local_path import LocalPath
from kdbench.storage.places import Where, where

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_ANCHOR = "fair_baseline"
DEFAULT_CACHE_SIZE = 16.0  # GiB
LARGEST = 1e9  # of what users count in GiB or minutes


def names(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that applies several, first one on top."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def available_threads() -> int:
    """Return the CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WhereType(click.ParamType):  # type: ignore[type-arg]  # older releases of click know none
    """A folder, or a URL such as ``s3://bucket/runs``."""

    name = "folder|url"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Where:
        """Return the place."""
        return where(value) if isinstance(value, str) else value


class SizeRange(click.FloatRange):
    """A number in a range, small enough to be counted in bytes or seconds; infinity and NaN are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not number < LARGEST:
            self.fail(f"{value} is no such size; the largest is {LARGEST:g}.", param, ctx)
        return number


def list_option(*names: str, default: str | None = None, **settings: Any) -> Callable[[F], F]:
    """Return an option that takes a comma-separated list, in one piece or in several."""

    def joined(_ctx: click.Context, _param: click.Parameter, value: Sequence[str]) -> str | None:
        return ",".join(value) if value else None

    given = None if default is None else (default,)
    return click.option(*names, multiple=True, callback=joined, default=given, show_default=bool(given), **settings)


def where_option(flag: str, default: str, text: str) -> Callable[[F], F]:
    """Return an option that takes a folder or a URL."""
    return click.option(flag, default=default, show_default=True, type=WhereType(), help=text)


def path_option(flag: str, default: str, text: str) -> Callable[[F], F]:
    """Return an option that takes a folder, and no URL."""
    return click.option(flag, default=default, show_default=True, type=LocalPath(), help=text)


teachers_option = where_option("--teachers", "teachers", "Folder or URL of the teacher artefacts.")
data_option = path_option("--data", "data", "Folder of the datasets.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
devices_option = list_option(
    "--device",
    default="auto",
    metavar="D[,D...]",
    help="auto (a GPU, else the CPU), cpu, cuda (all GPUs), cuda:N[,cuda:M...]; workers are spread (repeatable).",
)
devices_per_run_option = click.option(
    "--devices-per-run",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="K",
    help="Devices that train each run together (torchrun); the batch is divided among them.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads per worker and device [default: cores / jobs]."
)
measure_option = click.option(
    "--measure/--no-measure", default=True, show_default=True, help="Time a few steps of each run to predict its time."
)
dataset_option = click.option("--dataset", help="Dataset instead of the pair's own: a name, npz:PATH or folder:PATH.")
per_class_option = click.option("--per-class", type=click.IntRange(1), help="Training images kept per class.")
anchor_option = click.option(
    "--anchor", default=DEFAULT_ANCHOR, show_default=True, metavar="NAME|FILE", help="Protocol."
)
cache_folder_option = click.option(
    "--cache",
    type=LocalPath(),
    help="Folder of kept teacher outputs  [default: cache, beside --teachers].",
)
cache_size_option = click.option(
    "--cache-size",
    type=SizeRange(0, min_open=True),
    default=DEFAULT_CACHE_SIZE,
    show_default=True,
    metavar="GIB",
    help="Most that all files of the cache may take.",
)
cache_options = apply(
    cache_folder_option,
    click.option(
        "--teacher-cache",
        type=click.Choice(["auto", "off"]),
        default="auto",
        show_default=True,
        help="Keep outputs of teachers where no result depends on it, or never.",
    ),
    cache_size_option,
)
events_option = click.option("--events", is_flag=True, hidden=True, help="Print events as JSON lines.")

runs_options = apply(
    click.option("--seeds", type=click.IntRange(1), help="Number of seeds: 0..N-1  [default: 5]."),
    list_option("--seed-list", metavar="0,3,7", help="Seeds, instead of --seeds (repeatable)."),
    dataset_option,
    per_class_option,
    click.option("--set", "settings", multiple=True, metavar="METHOD.OPTION=VALUE", help="Set a method's option."),
    list_option(
        "--teacher", metavar="NAME[,NAME]", help="Teacher artefacts, instead of the anchor's own recipe (repeatable)."
    ),
    where_option("--out", "runs", "Folder or URL of the runs."),
    teachers_option,
    data_option,
    devices_option,
    devices_per_run_option,
    cache_options,
)
cells_options = apply(
    list_option("--method", "method", metavar="M[,M...]", help="Methods, or 'all' (repeatable)."),
    list_option("--pair", "pair", metavar="P[,P...]", help="Pairs, or 'all' (repeatable)."),
    click.option("--preset", metavar="NAME|FILE", help="Method, pair, protocol and options under one name."),
    click.option("--anchor", metavar="NAME|FILE", help=f"Protocol.  [default: the preset's, else {DEFAULT_ANCHOR}]"),
    click.option("--variant", metavar="NAME", help="Name of this configuration; tables show METHOD@NAME."),
    runs_options,
)


class LanesType(click.ParamType):  # type: ignore[type-arg]  # likewise
    """A number of runs per worker, or ``auto``."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number; None = as many as fit the memory."""
        return None if value == "auto" else click.IntRange(1).convert(value, param, ctx)


workers_options = apply(
    threads_option,
    click.option(
        "--jobs", "--max-concurrent", "jobs", type=click.IntRange(1), metavar="N",
        help="Workers at a time, over all devices or machines  [default: one per device, or the executor's own].",
    ),
    click.option(
        "--lanes", type=LanesType(), default="auto", show_default=True, metavar="auto|N",
        help="Runs that a worker trains together; auto = as many as fit the memory.",
    ),
    click.option(
        "--memory", type=SizeRange(0, min_open=True), metavar="GIB",
        help="Memory of each device for its workers [default: 70 % of what is free].",
    ),
)  # fmt: skip
carrying_options = apply(
    workers_options,
    click.option(
        "--executor", default="local", show_default=True, metavar="NAME",
        help="What runs the workers (kdbench list executors).",
    ),
    click.option(
        "--executor-option", multiple=True, metavar="KEY=VALUE",
        help="Set an option of the executor (kdbench show NAME; repeatable).",
    ),
    click.option(
        "--timeout",
        type=SizeRange(0),
        default=60.0,
        show_default=True,
        metavar="MINUTES",
        help="Kill a worker that shows no progress for so long; 0 = never.",
    ),
    click.option("--no-train-teachers", is_flag=True, help="Fail if a teacher is missing."),
    click.option("--dry-run", is_flag=True, help="Only show the plan."),
    measure_option,
    click.option("--retry-failed", is_flag=True, help="Run again what failed for outside reasons."),
)  # fmt: skip


def seeds_of(count: int | None, listed: str | None) -> tuple[int, ...]:
    """Return the seeds a command asks for.

    Raises:
        click.UsageError: If both or no integers are given.
    """
    if listed is None:
        return tuple(range(5 if count is None else count))
    if count is not None:
        raise click.UsageError("--seeds and --seed-list exclude each other; give one")
    try:
        return tuple(int(part) for part in names(listed))
    except ValueError as error:
        raise click.UsageError(f"--seed-list {listed}: not a list of integers such as 0,3,7") from error
