"""Every dependency says from which version on it is supported, so that ``make test-lowest`` can test that one."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
lowest = runpy.run_path(str(ROOT / "tests" / "versions" / "lowest.py"))["lowest"]


def test_every_dependency_has_a_lowest_version() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pins = lowest(declared)
    assert len(pins) == len(declared)
    assert {pin.partition("==")[0] for pin in pins} >= {"torch", "torchvision", "timm", "numpy", "pydantic"}


@pytest.mark.parametrize("requirement", ["torch", "torch<3", "torch>=2,<3", "torch==2.6"])
def test_a_dependency_without_one_is_named(requirement: str) -> None:
    with pytest.raises(ValueError, match=f"{requirement}: write it as NAME>=VERSION"):
        lowest([requirement])


def test_bounds_are_pinned() -> None:
    assert lowest(["a-b>=1.2", "c>=3"]) == ["a-b==1.2", "c==3"]
