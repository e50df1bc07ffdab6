"""The registry: everything plugins bring, under unique names, with the package each came from.

Nothing is imported before :func:`load` is called. Built-ins are modules of ``kdbench.methods``, ``.backbones``,
``.datasets`` and ``.execution``; they are found by listing the packages and registered through the same hooks as entry
points.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from kdbench import __version__, hooks
from kdbench.backbones.base import Backbone, Library
from kdbench.config.ladders import Ladder, load_ladder
from kdbench.config.pairs import load_pair
from kdbench.config.presets import Preset, load_preset
from kdbench.config.recipes import TeacherRecipe, check_names, load_recipe
from kdbench.datasets.base import Dataset
from kdbench.engine import Engine
from kdbench.errors import FAULTS, ConfigError, PluginError, nearest, unknown
from kdbench.method import AnyMethod
from kdbench.spec import PluginRef
from kdbench.types import Pair

GROUP = "kdbench"
OWN = "kdbench"  # distribution of the built-ins
_BUILT_IN_PACKAGES = ("kdbench.methods", "kdbench.backbones", "kdbench.datasets", "kdbench.config", "kdbench.execution")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")  # names become parts of paths
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugin:
    """One loaded plugin: a module and the distribution it was installed with."""

    name: str
    distribution: str
    version: str
    file: str

    def ref(self) -> PluginRef:
        """Return how records name this plugin."""
        parts = [file.read_bytes() for file in self._code() if file.is_file()]
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest() if parts else ""
        return PluginRef(distribution=self.distribution, version=self.version, file_sha256=digest)

    def _code(self) -> list[Path]:
        """Return the files it is made of: the one that registers a method says nothing of what others compute."""
        path = Path(self.file)
        if self.distribution == OWN:
            return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
        package = path.parent
        if not (package / "__init__.py").is_file():
            return [path]
        while (package.parent / "__init__.py").is_file():
            package = package.parent
        return sorted(package.rglob("*.py"))


class Table(Generic[T]):
    """Values of one kind by name, each with its owner; looking up an unknown name is a clear error."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, tuple[T, Plugin]] = {}

    def add(self, name: str, value: T, owner: Plugin) -> None:
        """Add a value.

        Raises:
            PluginError: If the name is taken.
        """
        if not _NAME.match(name):
            raise PluginError(
                f"plugin '{owner.name}' ({owner.distribution}): {self.kind} name '{name}' is not allowed; use up to 64 "
                "letters, digits, '.', '_' and '-', first a letter or digit"
            )
        if name in self._entries:
            other = self._entries[name][1]
            raise PluginError(
                f"{self.kind} '{name}' is registered twice: by plugin '{other.name}' ({other.distribution}) and by "
                f"'{owner.name}' ({owner.distribution}); leave one out with kdbench --no-plugin {owner.name}"
            )
        self._entries[name] = (value, owner)

    def __getitem__(self, name: str) -> T:
        return self._entry(name)[0]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def owner(self, name: str) -> Plugin:
        """Return the plugin that brought a name."""
        return self._entry(name)[1]

    def values(self) -> list[T]:
        """Return all values, sorted by name."""
        return [self._entries[name][0] for name in sorted(self._entries)]

    def as_mapping(self) -> Mapping[str, T]:
        """Return names and values, read-only."""
        return MappingProxyType({name: value for name, (value, _) in self._entries.items()})

    def _entry(self, name: str) -> tuple[T, Plugin]:
        if name not in self._entries:
            raise ConfigError(unknown(self.kind, name, self._entries))
        return self._entries[name]


class Backbones(Table[Backbone]):
    """Backbones by name, and those of libraries as ``LIBRARY:MODEL``: the library is imported when one is asked for."""

    def __init__(self) -> None:
        super().__init__("backbone")
        self.libraries: Table[Library] = Table("library of backbones")
        self._opened: dict[str, Backbone] = {}

    def owner(self, name: str) -> Plugin:
        """Return the plugin that brought a backbone, or its library."""
        return self.libraries.owner(name.partition(":")[0]) if ":" in name else super().owner(name)

    def __getitem__(self, name: str) -> Backbone:
        library, colon, model = name.partition(":")
        if not colon:
            return super().__getitem__(name)
        if name not in self._opened:
            if library not in self.libraries:
                known = ", ".join(f"{known}:MODEL" for known in self.libraries)
                raise ConfigError(
                    f"backbone '{name}': unknown library '{library}'.{nearest(library, self.libraries)} All: {known}"
                )
            self._opened[name] = self.libraries[library].open(model)
        return self._opened[name]

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self[name])
        except ConfigError:
            return False


class Registry:
    """All plugins of this process and what they bring.

    Args:
        manager: The pluggy manager, for the hooks that observe.
        plugins: Loaded plugins, in loading order.
    """

    def __init__(self, manager: pluggy.PluginManager, plugins: Iterable[Plugin]) -> None:
        self.hook = manager.hook
        self._failed: set[tuple[str, str]] = set()
        self.plugins = tuple(plugins)
        self.methods: Table[type[AnyMethod]] = Table("method")
        self.backbones = Backbones()
        self.datasets: Table[Dataset] = Table("dataset")
        self.pairs: Table[Pair] = Table("pair")
        self.anchors: Table[Path] = Table("anchor")
        self.recipes: Table[TeacherRecipe] = Table("recipe")
        self.presets: Table[Preset] = Table("preset")
        self.ladders: Table[Ladder] = Table("ladder")
        self.executors: Table[Engine] = Table("executor")
        by_name = {plugin.name: plugin for plugin in self.plugins}
        self._fill(manager, by_name, "kdbench_methods", self.methods, lambda m: m.name)
        for value, owner in self._returned(manager, by_name, "kdbench_backbones"):
            self._add_backbone(value, owner)
        self._fill(manager, by_name, "kdbench_datasets", self.datasets, lambda d: d.name)
        self._fill(manager, by_name, "kdbench_executors", self.executors, lambda engine: engine.name)
        self._fill(manager, by_name, "kdbench_anchors", self.anchors, lambda path: path.stem)
        for file, owner in self._returned(manager, by_name, "kdbench_pairs"):
            pair = load_pair(Path(file), self.backbones, self.datasets)
            self.pairs.add(pair.name, pair, owner)
        for file, owner in self._returned(manager, by_name, "kdbench_recipes"):
            recipe = load_recipe(Path(file))
            check_names(recipe, Path(file), self.backbones, self.datasets)
            self.recipes.add(recipe.name, recipe, owner)
        for file, owner in self._returned(manager, by_name, "kdbench_presets"):
            self._add_preset(load_preset(Path(file)), Path(file), owner)
        for file, owner in self._returned(manager, by_name, "kdbench_ladders"):
            ladder = load_ladder(Path(file))
            self.ladders.add(ladder.label, ladder, owner)

    @cached_property
    def guests(self) -> tuple[PluginRef, ...]:
        """Every loaded plugin that is not of kdbench, by name, with the hash of its files as they are now."""
        foreign = [plugin for plugin in self.plugins if plugin.distribution != OWN]
        return tuple(plugin.ref() for plugin in sorted(foreign, key=attrgetter("name")))

    def _add_backbone(self, value: Backbone | Library, owner: Plugin) -> None:
        if isinstance(value, Library):
            self.backbones.libraries.add(value.name, value, owner)
        elif isinstance(value, Backbone):
            self.backbones.add(value.name, value, owner)
        else:
            problem = f"kdbench_backbones returned {value!r}, which is no backbone"
            raise PluginError(_blame(owner.name, owner.distribution, problem, TypeError(type(value).__name__)))

    def _add_preset(self, preset: Preset, file: Path, owner: Plugin) -> None:
        self.presets.add(preset.name, preset, owner)
        if not isinstance(preset.anchor, str):  # it is a protocol of its own, which boards tell apart by its name
            self.anchors.add(preset.name, file, owner)

    def _fill(
        self,
        manager: pluggy.PluginManager,
        by_name: Mapping[str, Plugin],
        hook: str,
        table: Table[Any],
        name_of: Callable[[Any], str],
    ) -> None:
        for value, owner in self._returned(manager, by_name, hook):
            try:
                name = name_of(value)
            except AttributeError as error:
                problem = f"{hook} returned {value!r}, which is no {table.kind}"
                raise PluginError(_blame(owner.name, owner.distribution, problem, error)) from error
            table.add(name, value, owner)

    @staticmethod
    def _returned(manager: pluggy.PluginManager, by_name: Mapping[str, Plugin], hook: str) -> list[tuple[Any, Plugin]]:
        """Call a hook plugin by plugin, so that each value has an owner and each failure a culprit."""
        found: list[tuple[Any, Plugin]] = []
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            owner = by_name[implementation.plugin_name]
            try:
                found += [(value, owner) for value in implementation.function() or ()]
            except ConfigError:
                raise
            except FAULTS as error:
                raise PluginError(_blame(owner.name, owner.distribution, f"{hook} failed", error)) from error
        return found

    def tell(self, hook: str, **values: object) -> None:
        """Call a hook that observes. A plugin that fails there is named in the log, once; no run is lost by it.

        Args:
            hook: Name of the hook.
            values: Its arguments.
        """
        for implementation in getattr(self.hook, hook).get_hookimpls():
            try:
                implementation.function(*[values[name] for name in implementation.argnames])
            except FAULTS as error:
                name = implementation.plugin_name
                if (name, hook) not in self._failed:
                    self._failed.add((name, hook))
                    kind = type(error).__name__
                    _log.warning("plugin '%s': %s failed: %s: %s; the runs go on without it", name, hook, kind, error)


def load(*, without: Iterable[str] = (), extra: Iterable[ModuleType] = ()) -> Registry:
    """Import all plugins and return what they bring.

    Args:
        without: Plugin names (entry points or modules) to leave out.
        extra: Further modules to register, as a test or notebook would.

    Raises:
        PluginError: If a plugin fails on import, misspells a hook, or takes a name that exists; it names the culprit.
    """
    left_out = set(without)
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    plugins: list[Plugin] = []
    modules = [*_built_ins(), *extra]
    for module in modules:
        distribution = OWN if module.__name__.startswith("kdbench.") else module.__name__.partition(".")[0]
        _register(manager, plugins, left_out, module.__name__, module, distribution, __version__)
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda e: e.name):
        if entry.name not in left_out:
            distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "")
            _register(manager, plugins, left_out, entry.name, _import(entry, distribution), distribution, version)
    _check_hooks(manager, plugins)
    known = {module.__name__ for module in modules} | {entry.name for entry in metadata.entry_points(group=GROUP)}
    if missing := sorted(left_out - known):
        raise ConfigError(unknown("plugin", missing[0], known, where="--no-plugin"))
    return Registry(manager, plugins)


def _built_ins() -> list[ModuleType]:
    modules = []
    for package_name in _BUILT_IN_PACKAGES:
        package = importlib.import_module(package_name)
        names = [f"{package_name}.{info.name}" for info in pkgutil.iter_modules(package.__path__)]
        modules += [module for module in map(importlib.import_module, names) if _implements_a_hook(module)]
    return modules


def _implements_a_hook(module: ModuleType) -> bool:
    return any(hasattr(value, f"{hooks.PROJECT}_impl") for value in vars(module).values())


def _import(entry: metadata.EntryPoint, distribution: str) -> ModuleType:
    try:
        plugin: ModuleType = entry.load()
    except FAULTS as error:  # a module that exits must not end the command without a word
        raise PluginError(_blame(entry.name, distribution, "fails on import", error)) from error
    return plugin


def _register(
    manager: pluggy.PluginManager,
    plugins: list[Plugin],
    left_out: set[str],
    name: str,
    module: ModuleType,
    distribution: str,
    version: str,
) -> None:
    if name in left_out:
        return
    try:
        manager.register(module, name=name)
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(_blame(name, distribution, "does not fit the hooks", error)) from error
    file = inspect.getsourcefile(module) if getattr(module, "__file__", None) else None
    plugins.append(Plugin(name, distribution, version, file or ""))


def _check_hooks(manager: pluggy.PluginManager, plugins: Iterable[Plugin]) -> None:
    """Refuse what would never be called: functions that match no specification, or lack the decorator."""
    specified = {name for name in vars(hooks) if name.startswith("kdbench_")}
    for plugin in plugins:
        module = manager.get_plugin(plugin.name)
        for name in sorted(specified):
            if callable(function := getattr(module, name, None)) and not hasattr(function, f"{hooks.PROJECT}_impl"):
                raise PluginError(
                    f"plugin '{plugin.name}' ({plugin.distribution}): {name} lacks @kdbench.hookimpl, so it is "
                    "never called; add the decorator"
                )
        for implementation in manager.get_hookcallers(module) or []:
            if implementation.name not in specified:
                raise PluginError(
                    f"plugin '{plugin.name}' ({plugin.distribution}) implements {implementation.name}: "
                    + unknown("hook", implementation.name, specified).partition(" All:")[0]
                    + f" The hooks: {', '.join(sorted(specified))}"
                )


def _blame(name: str, distribution: str, what: str, error: BaseException) -> str:
    kind = type(error).__name__
    python = ".".join(map(str, sys.version_info[:2]))
    return (
        f"plugin '{name}' of distribution '{distribution}' {what}: {kind}: {error} (Python {python}). Repair or "
        f"uninstall it (pip uninstall {distribution}), or go on without it: kdbench --no-plugin {name} ..."
    )
