"""A run that is killed anywhere ends in the bits, and the files, of one that was left alone."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdbench.store import PREDICTIONS, WEIGHTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

VARIANTS: dict[str, dict[str, Any]] = {
    "recommended": {"teacher_adapt_epochs": 3, "teacher_eval_every": 2, "anchor": {"data__mixup_alpha": 0.2}},
    "fine_tuned": {
        "use_teacher_finetuning": True,
        "num_stages": 2,
        "use_partial_freeze": True,
        "student_freeze_level_schedule": [-1, 1],
        "teacher1_freeze_level": 1,
        "reg_lambda": 1e-3,
        "teacher_lr": 1e-3,
        "anchor": {
            "freezing__use_partial_freeze": True,
            "step__accumulate": 2,
            "step__ema_decay": 0.9,
            "step__precision": "bf16",
        },
    },
    "sampled": {
        "use_mu_for_kd": False,
        "kd_target": "synergy",
        "synergy_temp_learnable": True,
        "synergy_temp_reg": 0.01,
        "synergy_head_dropout": 0.3,
        "anchor": {"step__ema_decay": 0.9},
    },
    "three_stages": {
        "num_stages": 3,
        "student_epochs_per_stage": [2, 1, 1],
        "teacher_adapt_epochs": 3,
        "a_step_lr": 0.5,  # so high that the guard has work to do
        "synergy_only_epochs": 0,
        "use_cccp": True,
        "use_cccp_in_a": True,
        "cccp_alpha": 0.2,
        "anchor": {"schedule__epochs": 4},
    },
}


def killed_after(steps: int, work: Callable[[Callable[[], bool]], object]) -> bool:
    """Run ``work`` in a child that kills itself after some steps, and return whether it came to that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which these children do not use
        pid = os.fork()
    if not pid:
        left = [steps]

        def stop() -> bool:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        try:
            work(stop)
        finally:
            os._exit(1)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.fixture(params=VARIANTS)
def spec(request: pytest.FixtureRequest, two: Any) -> Any:
    return two.spec(**VARIANTS[request.param])


def test_killed_in_every_epoch(two: Any, spec: Any) -> None:
    """In the middle of each epoch and in its last step: within A- and B-Steps, and between stages."""
    whole = two.train(spec, "whole")
    two.lab.run([spec], "whole")  # writes its record
    for epoch in range(len(whole.history)):
        for step in (2, two.lab.steps):  # the last one's work is lost: the checkpoint comes after it
            assert killed_after(step, lambda stop: two.lab.run([spec], "killed", should_stop=stop))
        last = epoch == len(whole.history) - 1
        # Into the next epoch, so that the checkpoint between the two is what the next attempt goes on from.
        assert last or killed_after(two.lab.steps + 1, lambda stop: two.lab.run([spec], "killed", should_stop=stop))
    (record,) = two.lab.run([spec], "killed")
    assert record.status in {"ok", "diverged"}
    assert len(record.attempts) == 3 * len(whole.history)
    folder, other = (two.lab.folders([spec], where)[0].path for where in ("killed", "whole"))
    for name in (WEIGHTS, PREDICTIONS):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("step", range(1, 8))
def test_the_whole_state_after_a_stop_at_each_step(two: Any, spec: Any, step: int) -> None:
    """Stopped with a checkpoint in the middle of an epoch: student, method, optimizers, meters, history."""
    from kdbench.training.trainer import Interrupted

    expected = _digest(two, spec)
    stop_at = step + {1: 0, 2: 4, 3: 9, 4: 3, 5: 0, 6: 6, 7: 5}[step]
    with pytest.raises(Interrupted):
        two.lab.train([spec], f"stopped{step}", should_stop=two.lab.stop_after(stop_at))
    assert two.lab.digest(two.train(spec, f"stopped{step}")) == expected


_digests: dict[str, str] = {}


def _digest(two: Any, spec: Any) -> str:
    if spec.config_sha256 not in _digests:
        _digests[spec.config_sha256] = two.lab.digest(two.train(spec, "undisturbed"))
    return _digests[spec.config_sha256]


def test_the_guard_had_work_to_do_before_the_last_a_step(two: Any) -> None:
    lane = two.train(two.spec(**VARIANTS["three_stages"]))
    assert any(report.metrics.get("guarded") for report in lane.history if report.phase in {"a1", "a2"})
    assert lane.method.memory.rate < 1


def test_what_is_remembered_survives_a_checkpoint(two: Any) -> None:
    """In the middle of an A-Step: both snapshots, the guard's reference, the halved rate."""
    from kdbench.training.trainer import Interrupted

    spec = two.spec(num_stages=2, teacher_adapt_epochs=3, teacher_eval_every=1, synergy_only_epochs=0)
    with pytest.raises(Interrupted):
        two.lab.train([spec], "stopped", should_stop=two.lab.stop_after(2 * two.lab.steps + 2))
    state = two.lab.checkpoints(spec, "stopped").newest()
    extra = state["method"]["_extra_state"]
    assert extra["snapshots"]["synergy"][1] is not None
    assert extra["snapshots"]["guarded"][1] is not None
    assert extra["last_synergy_acc"] > 0
    assert extra["guard"][1] == ["ce", "ib", "kd"]
    stored = [tensor for tensor in extra["snapshots"]["synergy"][1][0].values() if isinstance(tensor, torch.Tensor)]
    assert stored


def test_a_b_step_keeps_no_copies_of_the_a_step(two: Any) -> None:
    from kdbench.training.trainer import Interrupted

    spec = two.spec()
    with pytest.raises(Interrupted):
        two.lab.train([spec], "stopped", should_stop=two.lab.stop_after(2 * two.lab.steps + 2))
    snapshots = two.lab.checkpoints(spec, "stopped").newest()["method"]["_extra_state"]["snapshots"]
    assert [snapshots[name][1] for name in ("synergy", "guarded", "student")] == [None, None, None]
