"""How timm's models are divided for partial freezing, read from what they list as features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from kdbench.backbones.division import Division, cut, lies_in, names_in, undivided

NUMBERED = re.compile(r"(.+)\.\d+")
GROUPS = 4  # stages a column of equal blocks is cut into


def depths(blocks: int) -> tuple[int, ...]:
    """Return the last block of each of four equal parts of a column."""
    groups = min(GROUPS, blocks)
    return tuple(blocks * (group + 1) // groups - 1 for group in range(groups))


def division_of(model: nn.Module) -> Division:
    """Return the parts of a timm model under its own names.

    Where features are numbered members of one sequence, each member is a block, listed or not; columns of equal
    blocks have four. Else a block ends where a feature does. What comes before belongs to the first block.

    Raises:
        Unsupported: If the model lists no features, or what is no module of it.
    """
    entries: list[Any] = list(getattr(model, "feature_info", None) or ())
    listed = [str(entry["module"]) for entry in entries]
    modules = dict(model.named_modules())
    if not listed or len(set(listed)) < len(listed) or any(name not in modules for name in listed):
        raise undivided(model, "timm does not list the modules in which its features end, each once")
    head = _head(model, listed)
    holder = _holder(modules, listed)
    if holder is None:
        return cut(model, [_whole(modules, name) for name in listed], head)
    members = [f"{holder}.{name}" for name, _ in modules[holder].named_children()]
    is_column = len({int(entry["reduction"]) for entry in entries}) == 1 and len(listed) > 1
    ends = [members[index] for index in depths(len(members))] if is_column else members
    return cut(model, ends, head, first=members[0])


def _head(model: Any, listed: Sequence[str]) -> str:
    """Return the largest module around the classifier, with the norm some have inside, that holds no feature."""
    found = names_in(model, (model.get_classifier(),))
    if not found:
        raise undivided(model, "it has no single classifier")
    parts = found[0].split(".")
    around = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next(name for name in around if not any(lies_in(feature, (name,)) for feature in listed))


def _holder(modules: dict[str, nn.Module], listed: Sequence[str]) -> str | None:
    """Return the one sequence of larger modules of which the listed ones are members."""
    holders = {match[1] for name in listed if (match := NUMBERED.fullmatch(name))}
    if len(holders) != 1:
        return None
    (holder,) = holders
    members = list(modules[holder].children())
    larger = isinstance(modules[holder], nn.Sequential | nn.ModuleList) and all(map(_has_parts, members))
    return holder if larger else None


def _has_parts(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _whole(modules: dict[str, nn.Module], name: str) -> str:
    """Return the largest module around a listed one that is not just a sequence of parts."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        outer = ".".join(parts[:length])
        if not isinstance(modules[outer], nn.Sequential | nn.ModuleList):
            return outer
    return name
