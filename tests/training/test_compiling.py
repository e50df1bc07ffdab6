"""Compiled networks: other last bits, but the same names, checkpoints, averages and deployment."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.config.schema import Step
from kdbench.errors import ConfigError
from kdbench.training.compiling import prepare_compiler
from kdbench.training.trainer import Interrupted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run(lab: Any) -> None:
    """With taps, a deployment of its own, an average and an interruption; torch counts what it compiled."""
    changes = {"schedule__epochs": 2, "step__ema_decay": 0.9}
    plain, compiled = lab.anchor(**changes), lab.anchor(**changes, step__compile=True)
    eager = lab.train([lab.spec("simkd", anchor=plain)], "eager")[0].lane
    spec = lab.spec("simkd", anchor=compiled)
    assert spec.config_sha256 != lab.spec("simkd", anchor=plain).config_sha256
    torch._dynamo.utils.counters.clear()
    whole = lab.train([spec], "whole")[0].lane
    assert whole.failure is None, whole.failure
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2, "the student's and the teacher's"
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(whole.state()["student"]) == list(eager.state()["student"])
    assert list(whole.deployed().state_dict()) == list(eager.deployed().state_dict())
    for key, value in eager.deployed().state_dict().items():
        torch.testing.assert_close(whole.deployed().state_dict()[key], value, rtol=0.05, atol=0.05)
    with pytest.raises(Interrupted):
        lab.train([spec], "parts", should_stop=lab.stop_after(5))
    assert lab.digest_after(spec, "parts") == lab.digest(whole)


def test_a_machine_without_a_compiler_is_told_at_once(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"cannot compile for cpu: RuntimeError: No working C\+\+.*install a C\+\+"):
        prepare_compiler(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"^step\.compile: this machine cannot compile"):
        lab.train([lab.spec("student", anchor=lab.anchor(step__compile=True))], "refused")


def test_compiling_and_recomputing_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="compile and checkpointing both decide"):
        Step(compile=True, checkpointing=True)


def test_teachers_have_a_precision_of_their_own(lab: Any) -> None:
    """Null is the step's precision; the student's own passes, and looks between epochs, are none of its business."""
    digests = {}
    for student, teacher in (("fp32", None), ("fp32", "fp32"), ("fp32", "bf16"), ("bf16", None), ("bf16", "fp32")):
        anchor = lab.anchor(schedule__epochs=1, step__precision=student, step__teacher_precision=teacher)
        lane = lab.train([lab.spec("vanilla_kd", anchor=anchor)], f"{student}-{teacher}")[0].lane
        assert lane.failure is None
        digests[student, teacher] = lab.digest_of(lane.student.state_dict())
    assert digests["fp32", None] == digests["fp32", "fp32"]
    assert len(set(digests.values())) == 4
