"""What hooks between epochs see, keep and draw is the same after a resume at every point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.method import Interlude, Phase, Setup
from kdbench.training.trainer import Interrupted


def phases(self: Any) -> tuple[Phase, ...]:
    helper = Phase("helper", 1, self.of_helper, self.helper.parameters, student="off")
    return (helper, Phase("part0", 1, main=True), replace(helper, name="again"), Phase("part1", 2, main=True))


class Memory:
    """Hooks whose method keeps what it saw: a sum over looks, the best student, and random numbers."""

    @staticmethod
    def prepare(self: Any, _setup: Setup) -> None:  # noqa: PLW0211
        self.register_buffer("sums", torch.zeros(4, dtype=torch.float64))
        for key, value in self.helper.state_dict().items():
            self.register_buffer(f"best_{key}", value.clone())

    @staticmethod
    def before(self: Any, interlude: Interlude) -> None:  # noqa: PLW0211
        self.sums[0] += Memory.seen(interlude)
        self.sums[1] += torch.rand(())
        self.helper.bias.add_(torch.randn_like(self.helper.bias))

    @staticmethod
    def after(self: Any, interlude: Interlude) -> Mapping[str, float]:  # noqa: PLW0211
        self.sums[2] += Memory.seen(interlude)
        self.sums[3] += torch.rand(())
        self.best_weight.copy_(self.helper.weight)
        if not (interlude.phase.name == "part1" and interlude.epoch == 2):
            interlude.student.fc.weight.add_(0.01 * torch.randn_like(interlude.student.fc.weight))
        return {"sum": float(self.sums.sum())}

    @staticmethod
    def seen(interlude: Interlude) -> Tensor:
        parts: Iterator[Tensor] = (batch.student.logits.double().square().sum() for batch in interlude.look(2))
        return torch.stack([*parts, torch.zeros((), dtype=torch.float64)]).sum()


@pytest.fixture
def memory(lab: Any) -> Any:
    kind = lab.probe(
        "memory", phases=phases, prepare=Memory.prepare, before_phase=Memory.before, after_epoch=Memory.after
    )
    return lab.spec(kind.name, anchor=lab.anchor(step__ema_decay=0.9, evaluation__batch_size=16))


@pytest.mark.parametrize("stop", range(1, 20))
def test_what_hooks_see_and_do_is_the_same_after_a_resume(lab: Any, memory: Any, stop: int) -> None:
    """After each of the 20 steps: in the first of a phase, in the last of an epoch, which counts as not done."""
    lab.stopped(memory, "cut", stop)
    assert lab.digest_after(memory, "cut") == lab.digest_after(memory, "whole")


class Killed(Exception):
    """The process is no more."""


@pytest.mark.parametrize("epoch", range(1, 6))
def test_a_run_that_ends_between_two_epochs_goes_on_as_if_it_had_not(lab: Any, memory: Any, epoch: int) -> None:
    """Killed when the checkpoint of an epoch is written, so that what comes before the next is still to be done."""
    ends = [epoch]

    def ended(_report: Any) -> None:
        ends[0] -= 1

    def stop() -> bool:
        if ends[0] <= 0:
            raise Killed
        return False

    with suppress(Killed, Interrupted):
        lab.train([memory], "cut", epoch_ended=ended, should_stop=stop)
    assert lab.digest_after(memory, "cut") == lab.digest_after(memory, "whole")
