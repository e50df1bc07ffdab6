"""Every method's losses, gradients and buffers against numbers from the reference implementations."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from case import TOLERANCE, read  # noqa: E402
from run import verdict  # noqa: E402

from kdbench.losses import kd_loss  # noqa: E402
from kdbench.methods.dkd import dkd_parts  # noqa: E402

FOLDER = HERE.parents[2] / "shared" / "goldens" / "kd"
FILES = sorted(FOLDER.glob("*.npz"))
needs_shared = pytest.mark.skipif(not FILES, reason="needs the shared reference files")


@needs_shared
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path, dtype: torch.dtype) -> None:
    assert verdict(path, dtype).problems == ()


@needs_shared
def test_every_kind_of_file_has_its_adapter() -> None:
    kinds = {path.stem.rsplit("_", 1)[0] for path in FILES}
    adapters = {path.stem for path in (HERE / "adapters").glob("*.py")} - {"__init__", "ppf"}  # ppf reads JSON
    assert kinds == adapters


@needs_shared
@pytest.mark.parametrize("path", [p for p in FILES if p.stem.startswith(("kd_", "dkd_"))], ids=lambda path: path.stem)
def test_kd_is_tckd_plus_the_weighted_nckd(path: Path) -> None:
    case = read(path)
    student, teacher = (torch.tensor(case[f"in.{who}_logits"]) for who in ("student", "teacher"))
    target = torch.tensor(case["in.target"])
    rows = []
    for row in range(len(target)):
        one = slice(row, row + 1)
        tckd, nckd = dkd_parts(student[one], teacher[one], target[one], 4.0)
        rows.append(tckd + (1 - (teacher[row] / 4).softmax(0)[target[row]]) * nckd)
    torch.testing.assert_close(torch.stack(rows).mean(), kd_loss(student, teacher, 4.0))


def golden_file(folder: Path, **changes: np.ndarray) -> Path:
    """Write a file of kind KD, computed here in plain numpy."""
    draws = np.random.default_rng(0)
    student, teacher = draws.normal(size=(2, 4, 5))
    target, tau = np.array([0, 1, 4, 2]), 4.0

    def softmax(logits: np.ndarray) -> np.ndarray:
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q, hit = softmax(student), softmax(student / tau), np.eye(5)[target]
    t = softmax(teacher / tau)
    ce, kl = -np.log(p[hit > 0]).mean(), tau**2 * (t * np.log(t / q)).sum(1).mean()
    of_ce, of_kl = (p - hit) / 4, tau * (q - t) / 4
    arrays = {
        "meta": np.array('{"method": "KD", "case": "kd_9"}'),
        "in.student_logits": student,
        "in.teacher_logits": teacher,
        "in.target": target,
        "hp.kd_T": np.array(tau),
        "hp.weight_ce": np.array(0.1),
        "hp.weight_kl": np.array(0.9),
        "out.loss_ce": np.array(ce),
        "out.loss_kl": np.array(kl),
        "out.loss_total": np.array(0.1 * ce + 0.9 * kl),
        "grad.ce.in.student_logits": of_ce,
        "grad.kl.in.student_logits": of_kl,
        "grad.total.in.student_logits": 0.1 * of_ce + 0.9 * of_kl,
    }
    np.savez(folder / "kd_9.npz", **{**arrays, **changes})
    return folder / "kd_9.npz"


def test_a_file_from_anywhere_passes_and_a_changed_number_fails(tmp_path: Path) -> None:
    assert verdict(golden_file(tmp_path), torch.float64).problems == ()
    off = golden_file(tmp_path, **{"out.loss_kl": np.array(1.0)})
    assert any("out.loss_kl" in problem for problem in verdict(off, torch.float64).problems)


def test_what_is_not_compared_fails(tmp_path: Path) -> None:
    more = golden_file(tmp_path, **{"out.something_else": np.array(1.0)})
    assert verdict(more, torch.float64).problems == ("out.something_else: not compared",)
    nan = golden_file(tmp_path, **{"out.loss_ce": np.array(np.nan)})
    assert verdict(nan, torch.float64).problems != ()


def run_folder(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "run.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_pass_or_fail(tmp_path: Path) -> None:
    golden_file(tmp_path)
    done = run_folder(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("pass") == 2
    shutil.copy(golden_file(tmp_path, **{"out.loss_total": np.array(2.0)}), tmp_path / "kd_8.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    failed = run_folder(tmp_path)
    assert failed.returncode == 1
    assert "out.loss_total" in failed.stdout
    assert "cannot be read" in failed.stdout


def test_an_empty_folder_fails(tmp_path: Path) -> None:
    assert run_folder(tmp_path).returncode == 1
