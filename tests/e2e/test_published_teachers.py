"""Published CIFAR-10 checkpoints, imported as anybody would: their published accuracy on all 10,000 test images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import kdbench

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="session")
def cifar10(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return CIFAR-10 (a tenth of its training images, the whole test split) as an archive."""
    path = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    command = [sys.executable, str(shared / "data" / "unpack.py"), "cifar10", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def import_(file: Path, cifar10: Path, *more: object) -> list[str]:
    outcome = kdbench("teacher", "import", file, "--dataset", f"npz:{cifar10}", "--threads", 1, *more)
    assert outcome.code == 0, outcome
    return outcome.out.splitlines()


def test_resnet56(shared: Path, cifar10: Path) -> None:
    file = shared / "data" / "checkpoints" / "resnet56-4bfd9763.th"
    found, imported = import_(file, cifar10, "--normalisation", "imagenet")
    assert found == "fits backbone resnet56_he"
    assert imported.startswith("imported resnet56-4bfd9763: resnet56_he, 93.39 % on 10000 test images, sha256 ")


def test_resnet20_with_the_constants_it_was_trained_with(shared: Path, cifar10: Path) -> None:
    found, normalisation, imported = import_(shared / "data" / "checkpoints" / "resnet20-12fca82f.th", cifar10)
    assert found == "fits backbone resnet20_he"
    assert normalisation.startswith("normalisation imagenet: smallest loss on 2500 training images (imagenet ")
    assert "resnet20_he, 91.73 % on 10000 test images" in imported
    (path,) = Path("teachers").rglob("teacher.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert manifest["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert manifest["classes"] == sorted(manifest["classes"])
