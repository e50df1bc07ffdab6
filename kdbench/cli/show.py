"""``kdbench list`` and ``kdbench show``."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click

from kdbench.cli.arguments import WhereType
from kdbench.cli.main import Commands, State, add_commands
from kdbench.errors import PluginError
from kdbench.storage.places import Where

KINDS = (
    "methods", "backbones", "pairs", "datasets", "anchors", "recipes", "presets", "ladders", "executors", "plugins",
    "teachers",
)  # fmt: skip


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--teachers", default="teachers", type=WhereType(), help="Folder or URL of the artefacts.")
@click.pass_obj
def list_command(state: State, kind: str, teachers: Where) -> None:
    """List methods, backbones, pairs, datasets, anchors, recipes, presets, ladders, executors, plugins or teachers."""
    from tabulate import tabulate

    if kind == "teachers":
        from kdbench.cli.teacher import print_teachers

        print_teachers(teachers)
        return
    headers, rows = getattr(_Lists, kind)(state.registry())
    click.echo(tabulate(rows, headers=headers))


class _Lists:
    """One table per kind."""

    @staticmethod
    def methods(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [(m.name, m.version, m.source.year, m.source.title, registry.methods.owner(m.name).distribution)
                for m in registry.methods.values()]  # fmt: skip
        return ("method", "version", "year", "source", "distribution"), rows

    @staticmethod
    def backbones(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [(b.name, b.family, b.min_size, registry.backbones.owner(b.name).distribution)
                for b in registry.backbones.values()]  # fmt: skip
        return ("backbone", "family", "min pixels", "distribution"), rows

    @staticmethod
    def pairs(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [(p.name, " + ".join(p.teachers), p.student, p.dataset, p.description) for p in registry.pairs.values()]
        return ("pair", "teachers", "student", "dataset", "description"), rows

    @staticmethod
    def datasets(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [(d.form, d.description) for d in registry.datasets.values()]
        return ("dataset", "description"), rows

    @staticmethod
    def anchors(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        loaded = [_anchor(name, registry) for name in registry.anchors]
        rows = [(a.name, a.version, a.schedule.epochs, a.sha256[:12], a.description) for a in loaded]
        return ("anchor", "version", "epochs", "sha256", "description"), rows

    @staticmethod
    def recipes(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [
            (r.name, r.version, r.backbone, r.dataset, "pretrained" if r.pretrained else "random", r.schedule.epochs,
             r.anchor().sha256[:12])
            for r in registry.recipes.values()
        ]  # fmt: skip
        return ("recipe", "version", "backbone", "dataset", "start", "epochs", "sha256"), rows

    @staticmethod
    def presets(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [(p.name, p.method or "any", p.pair or "any", p.anchor_name, p.description)
                for p in registry.presets.values()]  # fmt: skip
        return ("preset", "method", "pair", "anchor", "description"), rows

    @staticmethod
    def ladders(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [(ladder.method, ladder.name, "yes" if ladder.default else "", len(ladder.steps), ladder.anchor,
                 ladder.description) for ladder in registry.ladders.values()]  # fmt: skip
        return ("method", "ladder", "default", "steps", "anchor", "description"), rows

    @staticmethod
    def executors(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = [(e.name, e.description, e.missing() or "yes", registry.executors.owner(e.name).distribution)
                for e in registry.executors.values()]  # fmt: skip
        return ("executor", "description", "installed", "distribution"), rows

    @staticmethod
    def plugins(registry: Any) -> tuple[tuple[str, ...], list[Any]]:
        group, hooked = Commands(), registry.hook.kdbench_commands.get_hookimpls()
        commands = {found.plugin_name: _added(group, found) for found in hooked}
        rows = [
            (p.name, p.distribution, p.version, p.ref().file_sha256[:12], commands.get(p.name, ""), p.file)
            for p in registry.plugins
        ]
        return ("plugin", "distribution", "version", "sha256", "commands", "file"), rows


def _added(group: click.Group, implementation: Any) -> str:
    """Let a plugin add its commands to a group; return their names."""
    before = set(group.commands)
    try:
        add_commands(group, implementation)
    except PluginError:
        return "cannot be added"
    return ", ".join(sorted({*group.commands} - before))


def _anchor(name: str, registry: Any) -> Any:
    from kdbench.config.loading import load_anchor

    return load_anchor(name, registry.anchors.as_mapping())


@click.command("show")
@click.argument("name")
@click.option("--size", type=click.IntRange(1), default=32, show_default=True, help="Pixels of a backbone's input.")
@click.option("--classes", type=click.IntRange(1), default=100, show_default=True, help="Classes of its head.")
@click.option("--channels", type=click.IntRange(1), default=3, show_default=True, help="Channels of its input.")
@click.pass_obj
def show_command(state: State, name: str, size: int, classes: int, channels: int) -> None:
    """Show a method, backbone, pair, dataset, anchor, recipe, preset, ladder (METHOD.LADDER) or executor by NAME."""
    from kdbench.errors import ConfigError, nearest

    registry = state.registry()
    views = {
        "methods": _show_method, "anchors": _show_anchor, "recipes": _show_recipe, "pairs": _show_pair,
        "datasets": _show_dataset, "presets": _show_preset, "ladders": _show_ladder, "executors": _show_executor,
    }  # fmt: skip
    found = False
    for kind, view in views.items():
        if name in getattr(registry, kind):
            view(name, registry)
            found = True
    if name in registry.backbones or (":" in name and not found):  # of a library's names the table says what is wrong
        from kdbench.cli.backbone_page import backbone_page
        from kdbench.types import StageShape

        for line in backbone_page(registry.backbones[name], classes, StageShape((channels, size, size))):
            click.echo(line)
        found = True
    if not found:
        known = [n for kind in (*views, "backbones") for n in getattr(registry, kind)]
        raise ConfigError(f"unknown name '{name}'.{nearest(name, known)} All: kdbench list {'|'.join(KINDS[:-2])}")


def _show_method(name: str, registry: Any) -> None:
    method, owner = registry.methods[name], registry.methods.owner(name)
    source = method.source
    click.echo(f"method {name} (version {method.version}, {owner.distribution} {owner.version})")
    click.echo((method.__doc__ or "").strip().partition("\n")[0])
    click.echo(f"source: {source.title} ({source.year}) {source.url} {source.code}".rstrip())
    if source.deviations:
        click.echo(f"deviations from it: {source.deviations}")
    _print_options(method.options_type)
    for line in _recommended(method, registry):
        click.echo(line)
    if method.owns:
        click.echo(f"its own business, whatever the anchor says: {', '.join(method.owns)}")
    for deviation in method.deviations:
        click.echo(f"deviates from the anchor: {deviation.key} = {deviation.value} ({deviation.reason})")


def _print_options(options_type: Any) -> None:
    from tabulate import tabulate

    rows = [
        (key, kind, field.default, ", ".join([*map(_bound, field.metadata), *bounds]), field.description)
        for key, field in options_type.model_fields.items()
        for kind, bounds in [_type(field.annotation)]
    ]
    if rows:
        click.echo(tabulate(rows, headers=("option", "type", "default", "range", "meaning")))


def _recommended(method: Any, registry: Any) -> list[str]:
    """Return a line for each set of values that differ from the defaults, with the protocols and pairs it holds for."""
    pairs, found = registry.pairs.as_mapping(), dict[str, list[str]]()
    families = sorted({_anchor(name, registry).family for name in registry.anchors})
    for family in families:
        values: dict[str, list[str]] = {}
        for name, pair in pairs.items():
            recommended = method.recommended(family, pair)
            text = ", ".join(f"{key}={value}" for key, value in recommended.items())
            values.setdefault(text, []).append(name)
        for text, names in values.items():
            where = "" if len(values) == 1 else f" ({', '.join(names)})"
            found.setdefault(text, []).append(family + where)
    return [
        "recommended: " + text if where == families else f"under {', '.join(where)}: {text}"
        for text, where in found.items()
        if text
    ]


def _type(annotation: Any) -> tuple[str, list[str]]:
    """Return a type as people write it (of a choice, what there is to choose from), and the bounds inside it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner)), []
    if origin is Annotated:
        kind, bounds = _type(inner[0])
        constraints = [c for extra in inner[1:] for c in getattr(extra, "metadata", [extra])]
        return kind, [*bounds, *map(_bound, constraints)]
    if origin in {Union, UnionType} and NoneType in inner:
        kind, bounds = _type(next(part for part in inner if part is not NoneType))
        return f"{kind} | null", bounds
    if origin is tuple:
        kinds = [_type(part) for part in inner if part is not Ellipsis]
        listed = kinds[0][0] if Ellipsis in inner else ", ".join(kind for kind, _ in kinds)
        return f"list of {listed}", list(dict.fromkeys(bound for _, bounds in kinds for bound in bounds))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation), []


def _bound(constraint: object) -> str:
    """Return a constraint of a field as people write it."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name)]
    return ", ".join(found) or str(constraint)


def _show_anchor(name: str, registry: Any) -> None:
    from tabulate import tabulate

    anchor = _anchor(name, registry)
    click.echo(f"anchor {anchor.label}, sha256 {anchor.sha256}\n{anchor.description}\n{registry.anchors[name]}")
    if anchor.lineage:
        click.echo(f"extends {' < '.join(anchor.lineage)}")
    rows = [(key, value, "locked" if key in anchor.locked else "") for key, value in anchor.keys().items()]
    click.echo(tabulate(rows, headers=("key", "value", ""), disable_numparse=True))


def _show_recipe(name: str, registry: Any) -> None:
    from tabulate import tabulate

    recipe = registry.recipes[name]
    anchor = recipe.anchor()
    click.echo(f"recipe {anchor.label}, sha256 {anchor.sha256}\n{recipe.description}")
    click.echo(f"trains {recipe.backbone} on {recipe.dataset} ({registry.recipes.owner(name).distribution})")
    click.echo(tabulate(list(anchor.keys().items()), headers=("key", "value"), disable_numparse=True))


def _show_pair(name: str, registry: Any) -> None:
    pair = registry.pairs[name]
    click.echo(f"pair {name}: {' + '.join(pair.teachers)} -> {pair.student} on {pair.dataset}\n{pair.description}")
    if pair.overlap_pct is not None:
        from kdbench.datasets.overlap import teacher_names

        names = teacher_names(pair.dataset, pair.overlap_pct, pair.overlap_seed)
        click.echo(
            f"overlap of the teachers' classes: {pair.overlap_pct} %, seed {pair.overlap_seed}; teachers trained on "
            f"{' and '.join(names)}, the student on the classes of both"
        )
    from kdbench.cli.claims_page import claims_page

    for line in claims_page(name):
        click.echo(line)


def _show_preset(name: str, registry: Any) -> None:
    from kdbench.cli.preset_page import preset_page

    for line in preset_page(registry.presets[name]):
        click.echo(line)


def _show_ladder(name: str, registry: Any) -> None:
    from kdbench.cli.preset_page import ladder_page

    for line in ladder_page(registry.ladders[name], registry.presets.as_mapping()):
        click.echo(line)


def _show_dataset(name: str, registry: Any) -> None:
    dataset = registry.datasets[name]
    click.echo(f"dataset {dataset.form}: {dataset.description}")
    if dataset.form == name:  # it needs no argument
        info = dataset.open("", Path("data")).info
        click.echo(
            f"{info.train_size} training and {info.test_size} test images {info.image}, {len(info.classes)} classes, "
            f"horizontal flips {'allowed' if info.mirror else 'not allowed'}"
        )


def _show_executor(name: str, registry: Any) -> None:
    engine, owner = registry.executors[name], registry.executors.owner(name)
    click.echo(f"executor {name} ({owner.distribution} {owner.version}): {engine.description}")
    if missing := engine.missing():
        click.echo(f"not installed: {missing}; pip install '{engine.requirement}'")
    _print_options(engine.options_type)
