"""Every registered method passes every check of the kit; the example plugin does, installed or not."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from kdbench import registry
from kdbench.method import AnyMethod
from kdbench.testing import METHOD_CHECKS

EXAMPLE = Path(__file__).resolve().parents[2] / "plugins" / "kdbench-dist" / "kdbench_dist.py"


def example() -> list[ModuleType]:
    """Return the example plugin's module, unless it is installed and thus registered anyway."""
    if any(entry.value == EXAMPLE.stem for entry in metadata.entry_points(group=registry.GROUP)):
        return []
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[EXAMPLE.stem] = module
    spec.loader.exec_module(module)
    return [module]


METHODS = registry.load(extra=example()).methods.values()


def test_the_known_methods_are_among_them() -> None:
    assert {"student", "vanilla_kd", "dkd", "dist"} <= {method.name for method in METHODS}


@pytest.mark.parametrize("check", METHOD_CHECKS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_method(method: type[AnyMethod], check: str) -> None:
    METHOD_CHECKS[check](method)
