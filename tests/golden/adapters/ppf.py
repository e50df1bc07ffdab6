"""Freeze levels: names and numbers of the tensors of a library's plain models that train, at each level."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.backbones import timm_division, torchvision_models
from kdbench.backbones.division import Division
from kdbench.backbones.freezing import FreezeLevel, trainable_names

TIMM = "timm:"
BN = {"freeze_bn_false": False, "freeze_bn_true": True}


def plain_model(family: str, num_classes: int) -> tuple[nn.Module, Division]:
    """Return a library's own model without memory, and its division: torchvision's name, or timm's behind ``timm:``."""
    with torch.device("meta"):
        if family.startswith(TIMM):
            import timm

            model: nn.Module = timm.create_model(family.removeprefix(TIMM), num_classes=num_classes)
            return model, timm_division.division_of(model)
        from torchvision import models

        model = models.get_model(family, weights=None, num_classes=num_classes)
        return model, torchvision_models.division_of(model)


def trained(family: str, num_classes: int, policy: FreezeLevel) -> tuple[str, ...]:
    """Return the names of the parameters of a plain model that train under a policy."""
    return trainable_names(*plain_model(family, num_classes), policy)


def run(path: Path) -> list[str]:
    """Return the problems of a file: one for each family, level and BN policy that differs."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    problems = [] if stored else [f"{path.name}: holds no family"]
    for family, entry in stored.items():
        problems += [f"{family}: {problem}" for problem in _family(family, entry)]
    return problems


def _family(family: str, entry: dict[str, Any]) -> Iterator[str]:
    model, division = plain_model(family, entry["num_classes"])
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if [len(sizes), sum(sizes.values())] != [entry["n_params"], entry["numel"]]:
        yield f"{len(sizes)} tensors of {sum(sizes.values())} numbers, stored {entry['n_params']} of {entry['numel']}"
    if not entry["trainable"] or entry["trainable"].keys() != entry["trainable_count"].keys():
        yield "names and numbers are not of the same levels, or of none"
    for level, by_policy in entry["trainable"].items():
        for policy, names in by_policy.items():
            found = trainable_names(model, division, FreezeLevel(int(level), BN[policy]))
            where = f"level {level}, {policy}"
            if different := sorted({*found} ^ {*names}):
                yield f"{where}: {len(different)} names differ, first {different[0]}"
            numbers = [len(found), sum(sizes[name] for name in found)]
            if numbers != entry["trainable_count"][level][policy]:
                yield f"{where}: {numbers} tensors and numbers, stored {entry['trainable_count'][level][policy]}"
