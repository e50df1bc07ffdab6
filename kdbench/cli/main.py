"""The ``kdbench`` group: names and one-line helps of all commands, without importing any of them."""

from __future__ import annotations

import importlib
from typing import Any

import click

from kdbench import __version__
from kdbench.errors import FAULTS, PluginError, nearest

_COMMANDS = {
    "run": ("run", "Train every method and seed of a pair; missing teachers first, finished runs never again."),
    "plan": ("plan", "Show what run would do: cells, skipped cells with reasons, teachers, cost."),
    "list": ("show", "List methods, pairs, anchors, presets, ladders and everything else that has a name."),
    "show": ("show", "Show one of them: options, defaults, sources, locked keys."),
    "ablate": ("ablate", "Run the ladder of a method: what each part of it adds, one factor at a time."),
    "teacher": ("teacher", "Train, import, verify or list teachers, or keep what they say."),
    "status": ("status", "Show what is done, running and waiting in a store, and how much time is left."),
    "cancel": ("cancel", "Ask runs to save and stop, on whatever machine they are."),
    "leaderboard": ("leaderboard", "Write tables from the records of runs."),
    "compare": ("compare", "Compare two methods by their runs: difference, tests, and the seeds it takes to decide."),
    "verify": ("verify", "Check a published board against the records it comes with."),
    "merge": ("merge", "Join the runs of several machines in one store."),
    "plugin": ("plugin", "Check that a plugin keeps its contract."),
    "run-one": ("run_one", "Train runs of a store by id (what run starts for each cohort)."),
}
_HIDDEN = {"run-one"}


class Suggesting(click.Group):
    """Answers an unknown command with the nearest known one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            where = ctx.command_path
            raise click.UsageError(f"unknown command '{name}'.{nearest(name, known)} All: {where} --help")
        return super().resolve_command(ctx, args)


class Commands(Suggesting):
    """Imports a command when it is used; asks plugins only for names that are not ours."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *(name for name in super().list_commands(ctx) if name not in _COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module = importlib.import_module(f"kdbench.cli.{_COMMANDS[cmd_name][0]}")
            command: click.Command = getattr(module, cmd_name.replace("-", "_") + "_command")
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            self._ask_plugins(ctx)
        return super().resolve_command(ctx, args)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a plugin's command; ours are not in this table."""
        added = name or cmd.name or ""
        if added in _COMMANDS or added in self.commands:
            raise PluginError(f"the command '{added}' exists already")
        super().add_command(cmd, name)

    def _ask_plugins(self, ctx: click.Context) -> None:
        ctx.obj = State(ctx.params["without"])  # click looks for the command before it calls the group
        self.commands.clear()  # what an earlier call in this process added
        for implementation in ctx.obj.registry().hook.kdbench_commands.get_hookimpls():
            add_commands(self, implementation)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items() if name not in _HIDDEN])
        formatter.write_text("Plugins may add commands; kdbench list plugins names them.")


def add_commands(group: click.Group, implementation: Any) -> None:
    """Let a plugin add its commands to a group.

    Args:
        group: The group.
        implementation: What the plugin registered for ``kdbench_commands``.

    Raises:
        PluginError: If it fails at it, or a name is taken.
    """
    try:
        implementation.function(*[group][: len(implementation.argnames)])
    except FAULTS as error:
        name = implementation.plugin_name
        raise PluginError(
            f"plugin '{name}': its commands cannot be added: {type(error).__name__}: {error}. Repair or "
            f"uninstall it, or go on without it: kdbench --no-plugin {name} ..."
        ) from error


class State:
    """Options that hold for every command, and the registry, loaded once when first asked for."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        self.without = without
        self._registry: Any = None

    def registry(self) -> Any:
        """Return the loaded registry."""
        if self._registry is None:
            from kdbench.registry import load

            self._registry = load(without=self.without)
        return self._registry


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdbench")
@click.option("--no-plugin", "without", multiple=True, metavar="NAME", help="Leave a plugin out (repeatable).")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, without: tuple[str, ...], debug: bool) -> None:  # noqa: ARG001 (main reads --debug)
    """Benchmark knowledge distillation: many methods, one trainer, one locked protocol.

    \b
    kdbench run --method all --pair tiny --seeds 3 --anchor crd_short
    kdbench leaderboard runs --out board
    """  # noqa: D301 (click's marker for text it must not wrap)
    ctx.obj = ctx.obj or State(without)
