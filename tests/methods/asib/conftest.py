"""A small batch with a bridge and a head, all in float64 and fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.method import LossProtocol
from kdbench.methods.asib.a_step import AInputs
from kdbench.methods.asib.b_step import BInputs
from kdbench.methods.asib.bridge import Bridge, ask
from kdbench.methods.asib.head import SynergyHead
from kdbench.methods.asib.options import ASIBOptions

N, CLASSES, WIDTH, TOKEN = 6, 5, 4, 3
PROTOCOL = LossProtocol(ce_weight=0.65, kd_weight=0.35, tau=3.0, base_tau=4.0)


@dataclass
class World:
    """A batch of 6 images, 5 classes, 2 teachers."""

    draws: torch.Generator
    bridge: Bridge
    head: SynergyHead
    student: Tensor
    feature: Tensor
    teachers: tuple[Tensor, ...]
    tokens: Tensor
    labels: Tensor
    noise: Tensor
    protocol: LossProtocol = PROTOCOL

    def options(self, **values: Any) -> ASIBOptions:
        return ASIBOptions(**{"use_ib": True, "ib_mbm_out_dim": WIDTH, "kd_target": "synergy", **values})

    def b(self, **values: Any) -> BInputs:
        given = {"student": self.student, "feature": self.feature, "teachers": self.teachers, "tokens": self.tokens}
        return BInputs(**{**given, "labels": self.labels, "noise": self.noise, **values})

    def a(self, noise: Tensor | None = None, **values: Any) -> AInputs:
        """Return an A-Step's batch; without noise the code is sampled with the world's."""
        found = ask(self.bridge, self.feature, self.tokens, "l2", noise=self.noise if noise is None else noise)
        given = {"student": self.student, "feature": self.feature, "labels": self.labels, "bottleneck": found}
        return AInputs(**{**given, "synergy": self.head(found.z), **values})


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def world() -> World:
    draws = torch.Generator().manual_seed(3)
    bridge, head = Bridge(WIDTH, TOKEN, WIDTH, 2).double(), SynergyHead(WIDTH, CLASSES).double()
    for parameter in [*bridge.parameters(), *head.parameters()]:
        nn.init.normal_(parameter, generator=draws)
    # Uncertain enough that the A-Step's cap at 1 is not all there is.
    nn.init.normal_(bridge.logvar.weight, std=0.6, generator=draws)
    nn.init.constant_(bridge.logvar.bias, 1.6)
    return World(
        draws=draws,
        bridge=bridge,
        head=head,
        student=(2 * draw(draws, N, CLASSES)).requires_grad_(),
        feature=draw(draws, N, WIDTH).requires_grad_(),
        teachers=tuple(3 * draw(draws, 2, N, CLASSES)),
        tokens=draw(draws, N, 2, TOKEN),
        labels=torch.randint(0, CLASSES, (N,), generator=draws),
        noise=draw(draws, N, WIDTH),
    )


@pytest.fixture
def calls() -> Callable[[nn.Module], list[int]]:
    """Return a list that grows with each forward pass of a module."""

    def counted(module: nn.Module) -> list[int]:
        seen: list[int] = []
        module.register_forward_hook(lambda *_: seen.append(1))
        return seen

    return counted
