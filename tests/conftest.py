"""Fixtures every test may use, and the one thread that keeps two test workers off each other's cores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench import registry as registries
from kdbench.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the reference files beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared reference files beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All installed plugins."""
    return registries.load()
