"""No step waits for the device: not the pipeline, not the trainer, not a method in any of its phases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.registry import load
from kdbench.testing.waiting import Watch
from kdbench.training.environment import Machine
from kdbench.training.inputs import BatchStream
from kdbench.training.lane import Lane
from kdbench.training.trainer import Trainer

METHODS = sorted(load().methods)


FIRST_STEPS = 2  # those after them run the same code


class Asked:
    """The same on a GPU, which says itself where the host waits: as an error in the step."""

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield SimpleNamespace(found=[], allowed=self.allowed)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextmanager
    def allowed(self) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("default")
        yield
        torch.cuda.set_sync_debug_mode("error")


def watch_steps(monkeypatch: pytest.MonkeyPatch, watch: Callable[[], Any]) -> list[str]:
    """Watch the first steps of every epoch, and return what waits in them; what is done once an epoch may."""
    found: list[str] = []
    watches: list[Any] = []
    run_step, start_epoch, opening = Trainer._run_step, BatchStream.start_epoch, Lane._opening

    def watched_step(trainer: Trainer, group: Any, teach: Any, step: int) -> None:
        if step >= FIRST_STEPS:
            run_step(trainer, group, teach, step)
            return
        phase = group[0].phase.name
        with watch() as waits:
            watches.append(waits)
            run_step(trainer, group, teach, step)
        watches.clear()
        found.extend(f"{phase}: {line}" for line in waits.found)

    def once(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with watches[0].allowed() if watches else nullcontext():
                return function(*arguments)

        return call

    monkeypatch.setattr(Trainer, "_run_step", watched_step)
    monkeypatch.setattr(BatchStream, "start_epoch", once(start_epoch))
    monkeypatch.setattr(Lane, "_opening", once(opening))
    return found


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch_steps(monkeypatch, Watch)


MIXED = {"data__cutmix_alpha": 1.0, "step__precision": "bf16", "step__grad_clip_norm": 1.0, "step__ema_decay": 0.9}
OTHER = {
    "data__mixup_alpha": 1.0,
    "data__padding_mode": "zeros",
    "step__precision": "fp16",
    "step__accumulate": 2,
    "step__checkpointing": True,
    "schedule__name": "onecycle",
    "optimizer__name": "adamw",
    "optimizer__nesterov": False,
}


@pytest.mark.parametrize("method", METHODS)
def test_no_step_of_a_method_waits(lab: Any, watched: list[str], method: str) -> None:
    lane = lab.train([lab.spec_for(method, lab.anchor(schedule__epochs=2, **MIXED))], "watched")[0].lane
    assert lane.failure is None, lane.failure
    assert sorted(set(watched)) == []


@pytest.mark.parametrize("method", ["vanilla_kd", "sskd"])
def test_no_switch_of_a_protocol_makes_a_step_wait(lab: Any, watched: list[str], method: str) -> None:
    lane = lab.train([lab.spec(method, anchor=lab.anchor(schedule__epochs=2, **OTHER))], "watched")[0].lane
    assert lane.failure is None, lane.failure
    assert sorted(set(watched)) == []


VALUES = torch.tensor([3.0, 1.0, 2.0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_a_gpu(lab: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    watch_steps(monkeypatch, Asked())
    spec = lab.spec_for(method, lab.anchor(schedule__epochs=2, **MIXED))
    lane = lab.train([spec], "gpu", machine=Machine(torch.device("cuda"), 1))[0].lane
    assert lane.failure is None, lane.failure


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "if": lambda x: 1 if x[0] > 0 else 2,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "nonzero": lambda x: (x > 0).nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "mask assigned": lambda x: x.__setitem__(x > 0, torch.ones(3)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().abs().bincount(),
    "repeat": lambda x: x.repeat_interleave(x.long().abs()),
    "equal": lambda x: torch.equal(x, x.clone()),
    "allclose": lambda x: torch.allclose(x, x.clone()),
    "made of numbers": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "made on the device": lambda x: x + torch.tensor(2.0, device=x.device),
    "list as index": lambda x: x[[0, 2]],
    "backward": lambda x: _Reading.apply(x.clone().requires_grad_()).sum().backward(),
}


class _Reading(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float(gradients[0].sum())


@pytest.mark.parametrize("name", READS)
def test_what_waits_is_noticed(name: str) -> None:
    with Watch() as waits:
        READS[name](VALUES.clone())
    assert waits.found
    assert all(line.startswith("test_waiting.py:") for line in waits.found)


def test_what_does_not_wait_is_not_counted() -> None:
    x, index = VALUES.clone(), torch.tensor([2, 0])
    with Watch() as waits:
        y = torch.where(x > 0, x, 0.0).masked_fill(x > 2, 1.0)[index] + torch.full((2,), 0.5) + torch.as_tensor(0.5)
        y = y[0:1].to(torch.float64).sum() + x[..., None].repeat(1, 2).sum() + len(x)
        x.repeat_interleave(torch.ones_like(x).long(), output_size=3)
        with waits.allowed():
            y.item()
    assert waits.found == []
