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


class _Loader(yaml.SafeLoader):
    """Safe YAML without its traps: a repeated key is an error, and ``1e-3`` is a number."""

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


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Tree:
    """Return the mapping a YAML file holds.

    Raises:
        ConfigError: If the file is missing, too large, no YAML, or no mapping.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes; a configuration file is small text")
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; a configuration file is YAML") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
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
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _fields(model, path[:-1])
        return f"{where}: {key}: unknown key.{nearest(path[-1], known)} Allowed: {', '.join(sorted(known))}"
    if item["type"] == "missing":
        return f"{where}: {key}: required, but missing"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{where}: {key} is {item['input']!r}: {message}" if key else f"{where}: {message}"


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
    return validate(Anchor, tree, f"anchor {name_or_path}")


def _locate(name: str, known: Mapping[str, Path], base: Path | None) -> Path:
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        return path if path.is_absolute() or base is None else base / path
    raise ConfigError(unknown("anchor", name, known))


def _resolve(path: Path, known: Mapping[str, Path], above: tuple[Path, ...]) -> tuple[Tree, dict[str, Path], list[str]]:
    """Return the merged tree, the file each dotted key comes from, and the names from this anchor up to its root."""
    if path in above:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(p.name for p in above)}")
    tree = read_yaml(path)
    parent_name = tree.pop("extends", None)
    name = str(tree.get("name", ""))
    if parent_name is None:
        return tree, dict.fromkeys(_leaves(tree), path), [name]
    if not name or name == parent_name:
        raise ConfigError(f"{path}: name: an anchor that extends '{parent_name}' needs a name of its own")
    parent, origin, lineage = _resolve(_locate(str(parent_name), known, path.parent), known, (*above, path))
    own = _leaves(tree)
    _refuse_locked(path, own, parent, origin)
    merged = _merge({key: parent[key] for key in parent if key not in {"name", "version", "description"}}, tree)
    merged["locked"] = list(dict.fromkeys([*parent.get("locked", []), *tree.get("locked", [])]))
    return merged, {**origin, **dict.fromkeys(own, path)}, [name, *lineage]


def _refuse_locked(path: Path, own: Tree, parent: Tree, origin: Mapping[str, Path]) -> None:
    if not parent.get("strict_mode", True):
        return
    inherited = _leaves(parent)
    problems = [
        f"{path}: {key} is {own[key]!r}, but {origin[key]} locks it at {inherited[key]!r}; remove the key, or write an "
        "anchor that extends nothing"
        for key in (*parent.get("locked", []), "strict_mode")
        if key in own and key in inherited and own[key] != inherited[key]
    ]
    if problems:
        raise ProblemList(problems)


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
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
