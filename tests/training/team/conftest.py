"""Two processes, started once, and their results."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdbench.artefacts import TeacherStore
from kdbench.training.team.members import ALONE

MEMBER = Path(__file__).with_name("member.py")
ROOT = Path(__file__).parents[3]


def _member() -> ModuleType:
    name = "kdbench_member"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, MEMBER)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@dataclass(frozen=True)
class Pair:
    """What two members found, and a laboratory to find the same alone.

    Args:
        found: Results by name, of each member.
        alone: Results by name, of a single process.
        shared: Folder of the runs.
    """

    found: tuple[dict[str, Any], ...]
    alone: dict[str, Any]
    shared: Path


@pytest.fixture(scope="session")
def member() -> ModuleType:
    return _member()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, teacher_store: TeacherStore) -> Pair:
    root, module = tmp_path_factory.mktemp("team"), _member()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(MEMBER), str(rank), str(root), str(teacher_store.root)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(module.SIZE)
    ]
    lab = module.lab_of(root / "alone", teacher_store.root, ALONE)
    alone = {
        "normalised": module.normalised(ALONE),
        "all_gradients": module.all_gradients(lab),
        "accumulated": module.accumulated(lab),
    }
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    found = tuple(torch.load(root / f"rank{rank}.pt", weights_only=False) for rank in range(module.SIZE))
    return Pair(found, alone, root / "shared")
