"""KD and DKD, values and gradients, against fixtures that the reference implementations produced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.dkd import dkd_loss, dkd_parts, warmup_factor

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "goldens" / "kd"
KD, DKD = sorted(FOLDER.glob("kd_*.npz")), sorted(FOLDER.glob("dkd_*.npz"))
needs_shared = pytest.mark.skipif(not (KD and DKD), reason="needs the shared reference files")
# (absolute, relative to the largest golden entry); the golden values themselves agree among references to 4e-15.
TOLERANCE = {torch.float64: (1e-11, 1e-9), torch.float32: (1e-6, 2e-5)}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

Case = dict[str, npt.NDArray[np.float64]]


def read(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files if key != "meta"}


def leaves(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (torch.tensor(case[f"in.{who}_logits"], dtype=dtype) for who in ("student", "teacher"))
    return student.requires_grad_(), teacher.requires_grad_(), torch.tensor(case["in.target"])


def check(found: Tensor, golden: npt.NDArray[np.float64], dtype: torch.dtype) -> None:
    absolute, relative = TOLERANCE[dtype]
    assert found.dtype == dtype
    assert found.shape == golden.shape
    error = np.abs(found.detach().double().numpy() - golden).max()
    assert error <= absolute + relative * np.abs(golden).max()


def check_terms(case: Case, terms: dict[str, Tensor], student: Tensor, teacher: Tensor) -> None:
    for name, value in terms.items():
        check(value, case[f"out.loss_{name}"], student.dtype)
        if f"grad.{name}.in.student_logits" in case:
            (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
            check(gradient, case[f"grad.{name}.in.student_logits"], student.dtype)
        (none,) = torch.autograd.grad(value, teacher, retain_graph=True, allow_unused=True)
        assert none is None


@needs_shared
def test_all_fixtures_are_there() -> None:
    assert {path.stem for path in (*KD, *DKD)} >= {"kd_0", "kd_1", "dkd_0", "dkd_1"}


@needs_shared
@both_types
@pytest.mark.parametrize("path", KD, ids=lambda path: path.stem)
def test_kd(path: Path, dtype: torch.dtype) -> None:
    case = read(path)
    student, teacher, target = leaves(case, dtype)
    ce, kl = cross_entropy(student, target), kd_loss(student, teacher, float(case["hp.kd_T"]))
    total = float(case["hp.weight_ce"]) * ce + float(case["hp.weight_kl"]) * kl
    check_terms(case, {"ce": ce, "kl": kl, "total": total, "kl_mdistiller": kl, "kl_simkd": kl}, student, teacher)


@needs_shared
@both_types
@pytest.mark.parametrize("path", DKD, ids=lambda path: path.stem)
def test_dkd(path: Path, dtype: torch.dtype) -> None:
    case = read(path)
    student, teacher, target = leaves(case, dtype)
    tau = float(case["hp.T"])
    tckd, nckd = dkd_parts(student, teacher, target, tau)
    dkd = dkd_loss(student, teacher, target, alpha=float(case["hp.alpha"]), beta=float(case["hp.beta"]), tau=tau)
    # The reference counts epochs from 1.
    ramp = warmup_factor(int(case["hp.epoch"]) - 1, float(case["hp.warmup"]))
    assert ramp == pytest.approx(float(case["out.warmup_factor"]), abs=1e-15)
    ce = cross_entropy(student, target)
    total = float(case["hp.weight_ce"]) * ce + ramp * dkd
    terms = {"ce": ce, "tckd": tckd, "nckd": nckd, "dkd": dkd, "kd_term": ramp * dkd, "total": total}
    check_terms(case, terms, student, teacher)


@needs_shared
@pytest.mark.parametrize("path", [*KD, *DKD], ids=lambda path: path.stem)
def test_kd_is_tckd_plus_the_weighted_nckd(path: Path) -> None:
    case = read(path)
    student, teacher, target = leaves(case, torch.float64)
    rows = []
    for row in range(len(target)):
        one = slice(row, row + 1)
        tckd, nckd = dkd_parts(student[one], teacher[one], target[one], 4.0)
        rows.append(tckd + (1 - (teacher[row] / 4).softmax(0)[target[row]]) * nckd)
    torch.testing.assert_close(torch.stack(rows).mean(), kd_loss(student, teacher, 4.0))
