"""``kdbench plugin``."""

from __future__ import annotations

import click

from kdbench.cli.main import State, Suggesting

_ON_SEVERAL_DEVICES = {
    None: "refused; declare Method.distributed to allow it",
    "slices": "each computes the losses of its own images",
    "gathered": "each computes the losses of the whole batch",
}


@click.group("plugin", cls=Suggesting)
def plugin_command() -> None:
    """Check that a plugin keeps its contract."""


@plugin_command.command("check")
@click.argument("name")
@click.pass_obj
def check(state: State, name: str) -> None:
    """Run the conformance kit on a method, or on every method of a plugin or distribution."""
    from kdbench.errors import ConfigError, PluginError, unknown
    from kdbench.testing import check_method

    registry = state.registry()
    table = registry.methods
    chosen = [name] if name in table else [m.name for m in table.values() if name in _owners(table.owner(m.name))]
    if not chosen:
        if any(name in _owners(plugin) for plugin in registry.plugins):
            raise ConfigError(
                f"plugin '{name}': brings no method, and the kit checks methods alone; its tests are its own"
            )
        raise ConfigError(unknown("method", name, [*table]))
    bad = 0
    for method in chosen:
        results = check_method(table[method])
        for result in results:
            click.echo(f"{method}: {result.name}: {'ok' if result.ok else 'FAILED: ' + result.message}")
        click.echo(f"{method}: on several devices: {_ON_SEVERAL_DEVICES[table[method].distributed]}")
        bad += sum(not result.ok for result in results)
    click.echo(f"{len(chosen)} method(s) checked, {bad} problem(s)")
    if bad:
        raise SystemExit(PluginError.exit_code)


def _owners(plugin: object) -> tuple[str, str]:
    return plugin.name, plugin.distribution  # type: ignore[attr-defined]
