"""Methods that misbehave from their second epoch on, so that no rehearsal can know; and one that does so at once."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

import kdbench
from kdbench.methods.vanilla_kd import VanillaKD


def _crash() -> None:
    ctypes.string_at(0)


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def _flood() -> None:
    for _ in range(200):
        sys.stdout.write("x" * 100_000)
        sys.stdout.write('\n{"kind":"record","data":{}}\n')


def _reseed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _hang() -> None:
    time.sleep(3600)


ACTS: dict[str, Callable[[], None]] = {
    "raises": _raise(ValueError("it raises")),
    "memory": _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")),
    "exits": _raise(SystemExit(0)),
    "vanishes": lambda: os._exit(0),
    "crashes": _crash,
    "hangs": _hang,
    "floods": _flood,
    "reseeds": _reseed,
}


class BadOptions(kdbench.Options):
    act: str = ""


class Bad(VanillaKD):
    """Vanilla KD that does what its option says."""

    name = "bad"
    baseline = False
    options_type = BadOptions

    def __init__(self, options: BadOptions, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.act, self.begun = options.act, False
        if self.act == "raises in init":
            raise ValueError("it raises")

    def losses(self, batch: kdbench.Batch) -> kdbench.Losses:
        losses = super().losses(batch)
        if batch.epoch == 0:
            return losses
        self.begun = True
        if self.act in ACTS:
            ACTS[self.act]()
        if self.act == "wrong shape":
            return {name: kdbench.Term(term.value.expand(3), term.weight) for name, term in losses.items()}
        if self.act == "detached":
            return {name: kdbench.Term(term.value.detach(), term.weight) for name, term in losses.items()}
        if self.act == "not finite":
            return {name: kdbench.Term(term.value * float("nan"), term.weight) for name, term in losses.items()}
        if self.act == "changes its options":
            self.options.act = "other"
        if self.act == "changes the batch":
            batch.images.zero_()
        if self.act == "changes the teacher's features":
            batch.teacher.logits.zero_()
        return losses

    def after_step(self, batch: kdbench.Batch) -> None:
        if self.act == "raises in after_step" and batch.epoch:
            raise ValueError("it raises")

    def after_epoch(self, interlude: kdbench.Interlude) -> dict[str, float]:  # noqa: ARG002
        if self.act == "raises in after_epoch":
            raise ValueError("it raises")
        return {}

    def deploy(self, student: nn.Module) -> nn.Module:
        if self.act == "raises in evaluation" and self.begun:
            raise ValueError("it raises")
        return student

    def get_extra_state(self) -> Tensor:
        if self.act == "raises in state_dict" and self.begun:
            raise ValueError("it raises")
        return torch.zeros(1)

    def set_extra_state(self, state: Tensor) -> None:
        pass


@kdbench.hookimpl
def kdbench_methods() -> Iterable[type[kdbench.AnyMethod]]:
    return [Bad]
