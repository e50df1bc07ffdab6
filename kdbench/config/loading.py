"""From YAML files to validated values: safe parsing, ``extends``, locks, and all problems of a file at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from kdbench.config.schema import Anchor
from kdbench.errors import ConfigError, ProblemList, nearest, unknown

Tree = dict[str, Any]
M = TypeVar("M", bound=BaseModel)
_MAX_BYTES = 1 << 20
_LONGEST_SHOWN = 100


class _Loader(yaml.SafeLoader):
    """Safe YAML without its traps.

    A repeated key is an error, so is an alias (a few of them unfold to gigabytes), and a tag (it asks for a type, and
    PyYAML fails in many ways on a value that is not of it); ``1e-3`` is a number, and neither is ``010`` octal nor
    ``1:30`` ninety.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, f"alias *{event.anchor}: write it out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, f"tag {event.tag}: write the value alone", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; raises one of ``NOT_YAML`` if it is none."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> Tree:
    """Return the mapping a YAML file holds.

    Raises:
        ConfigError: If the file is missing, too large, no YAML, or no mapping.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes; a configuration file is small text")
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; a configuration file is YAML") from error
    except NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, not a mapping of keys to values")
    return tree


def validate(model: type[M], tree: Mapping[str, Any], where: str) -> M:
    """Return ``tree`` as a ``model``.

    Raises:
        ProblemList: With one message per wrong key, each naming ``where``, the key and the nearest right name.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ProblemList(_explain(model, item, where) for item in error.errors()) from error


def _explain(model: type[BaseModel], item: Any, where: str) -> str:
    path = [text for part in item["loc"] if not (text := str(part)).startswith("<")]  # tags of alternatives
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _fields(model, path[:-1])
        return f"{where}: {key}: unknown key.{nearest(path[-1], known)} Allowed: {', '.join(sorted(known))}"
    if item["type"] == "missing":
        return f"{where}: {key}: required, but missing"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{where}: {key} is {_shown(item['input'])}: {message}" if key else f"{where}: {message}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}.."


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def load_anchor(name_or_path: str, known: Mapping[str, Path]) -> Anchor:
    """Return the anchor of that name, or of that YAML file, with everything it extends filled in.

    Args:
        name_or_path: A registered name, or a path that ends in ``.yaml`` or ``.yml``.
        known: Files of the registered anchors by name.

    Raises:
        ConfigError: If it is unknown or wrong, or if it changes a key that an anchor it extends has locked.
    """
    tree, _, lineage = _resolve(_locate(name_or_path, known, None), known, ())
    tree["lineage"] = lineage[1:]
    anchor = validate(Anchor, tree, f"anchor {name_or_path}")
    if name_or_path in known and anchor.name != name_or_path:
        raise ConfigError(f"{known[name_or_path]}: name: is '{anchor.name}', must be '{name_or_path}' like the file")
    return anchor


def _locate(name: str, known: Mapping[str, Path], said_in: Path | None) -> Path:
    """Return the file of an anchor that the user, or the ``extends`` of a file, names."""
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        return path if path.is_absolute() or said_in is None else said_in.parent / path
    raise ConfigError(unknown("anchor", name, known, where=f"{said_in}: extends" if said_in else ""))


def _resolve(path: Path, known: Mapping[str, Path], above: tuple[Path, ...]) -> tuple[Tree, dict[str, Path], list[str]]:
    """Return the merged tree, the file each dotted key comes from, and the names from this anchor up to its root."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(p.name for p in above)}")
    tree = _anchor_tree(path)
    parent_name = tree.pop("extends", None)
    name = str(tree.get("name", ""))
    if parent_name is None:
        return tree, dict.fromkeys(_leaves(tree), path), [name]
    parent_path = _locate(str(parent_name), known, path)
    parent, origin, lineage = _resolve(parent_path, known, (*above, path.resolve()))
    if not name or name in lineage:
        raise ConfigError(f"{path}: name: an anchor that extends '{parent_name}' needs a name of its own")
    merged = _merge({key: parent[key] for key in parent if key not in {"name", "version", "description"}}, tree)
    _refuse_locked(path, merged, parent, {"strict_mode": parent_path, **origin})
    if isinstance(locked := tree.get("locked", []), list):  # else it is refused with all that is wrong
        merged["locked"] = _unique([*_locked(parent), *locked])
    return merged, {**origin, **dict.fromkeys(_leaves(tree), path)}, [name, *lineage]


def _anchor_tree(path: Path) -> Tree:
    """Return the keys of an anchor: those of its file, or those a preset states, under the preset's name."""
    tree = read_yaml(path)
    inner = tree.get("anchor")
    if not isinstance(inner, dict):
        return tree
    if own := sorted({"name", "version"} & inner.keys()):
        raise ConfigError(f"{path}: anchor.{own[0]}: the anchor of a preset is named like it; state it above")
    return {**{key: tree[key] for key in ("name", "version", "description") if key in tree}, **inner}


def _refuse_locked(path: Path, merged: Tree, parent: Tree, origin: Mapping[str, Path]) -> None:
    """Refuse a file that gives another value to what an anchor it extends locks, be it stated there or a default."""
    if not parent.get("strict_mode", True):
        return
    problems = [
        f"{path}: {key} is {now!r}, but {origin.get(key, origin.get('locked'))} locks it at {fixed!r}; remove the key, "
        "or write an anchor that extends nothing"
        for key in _unique([*_locked(parent), "strict_mode"])
        if isinstance(merged.get(key.rpartition(".")[0], {}), dict)  # else the schema refuses the section
        and not same_value(now := _value(merged, key), fixed := _value(parent, key))
    ]
    if problems:
        raise ProblemList(problems)


def _locked(tree: Tree) -> list[str]:
    locked = tree.get("locked", [])
    return [key for key in locked if isinstance(key, str)] if isinstance(locked, list) else []


def _unique(items: list[Any]) -> list[Any]:
    return [item for place, item in enumerate(items) if item not in items[:place]]


def _value(tree: Tree, key: str) -> object:
    """Return what a tree says under a dotted key, or the schema's default."""
    section, _, leaf = key.rpartition(".")
    node = tree.get(section, {}) if section else tree
    if isinstance(node, dict) and leaf in node:
        return node[leaf]
    model = Anchor.model_fields[section].annotation if section in Anchor.model_fields else Anchor
    field = model.model_fields.get(leaf) if isinstance(model, type) and issubclass(model, BaseModel) else None
    return field.get_default(call_default_factory=True) if field and not field.is_required() else None


def same_value(a: object, b: object) -> bool:
    """Return whether two values say the same in YAML, which knows no tuples."""
    return _as_lists(a) == _as_lists(b)


def _as_lists(value: object) -> object:
    return [_as_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _leaves(tree: Tree) -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in _leaves(value).items()})
        else:
            flat[key] = value
    return flat


def _merge(low: Tree, high: Tree) -> Tree:
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        # Weights are those of one pair's teachers: a mixture of two files' would fit neither.
        whole = key == "teacher_weights" or not (isinstance(old, dict) and isinstance(value, dict))
        merged[key] = value if whole else _merge(merged[key], value)
    return merged
