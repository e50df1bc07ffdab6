"""A small batch with a bridge and a head, all in float64 and fixed; and whole runs with two teachers on digits."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.method import LossProtocol
from kdbench.methods.asib.a_step import AInputs
from kdbench.methods.asib.b_step import BInputs
from kdbench.methods.asib.bridge import Bridge, ask
from kdbench.methods.asib.head import SynergyHead
from kdbench.methods.asib.method import ASIB
from kdbench.methods.asib.options import ASIBOptions
from kdbench.training.lane import Lane

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


# --- whole runs -------------------------------------------------------------------------------------------------------


def _load(name: str, path: Path) -> ModuleType:
    """Import a helper of other tests, which are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_TESTS = Path(__file__).resolve().parents[2]
_laboratory = _load("asib_laboratory", _TESTS / "training" / "conftest.py")
lab, teacher_store = _laboratory.lab, _laboratory.teacher_store

NETWORKS = ("resnet8_w4", ("resnet14_w8", "resnet8_w4"))
# Small, quick, and with everything on: an A-Step of two epochs, adapters that learn, a gate that any accuracy opens.
SMALL: dict[str, Any] = {
    "teacher_adapt_epochs": 2,
    "synergy_only_epochs": 1,
    "distill_out_dim": 8,
    "a_step_lr": 0.01,
    "ib_beta": 1e-3,
    "ib_beta_warmup_epochs": 0,
    "enable_kd_after_syn_acc": 0.0,
    "kd_warmup_epochs": 0,
    "teacher_adapt_kd_warmup": 0,
}


@dataclass
class Two:
    """Runs of a student with two teachers, the second of which knows nothing."""

    lab: Any
    teachers: tuple[str, ...]

    def spec(self, *, method: str = "asib", anchor: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> Any:
        """Return the spec of a run.

        Args:
            method: Its method.
            anchor: Keys of the anchor that differ, e.g. ``{"schedule__epochs": 2}``.
            seed: Its seed.
            options: Options of the method; of ASIB, besides ``SMALL``.
        """
        given = {**SMALL, **options} if method == "asib" else options
        protocol = self.lab.anchor(**{"schedule__epochs": 2, **(anchor or {})})
        words = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        return self.lab.spec(method, *words, anchor=protocol, seed=seed, networks=NETWORKS, teachers=self.teachers)

    def train(self, spec: Any, where: str = "runs", **changes: Any) -> Any:
        """Return the lane of a run at its end."""
        (trained,) = self.lab.train([spec], where, **changes)
        assert trained.lane.failure is None, trained.lane.failure
        assert not trained.lane.diverged
        return trained.lane

    def run(self, **options: Any) -> Any:
        """Return the lane of a run with these options at its end."""
        return self.train(self.spec(**options))


@pytest.fixture
def two(lab: Any) -> Two:
    return Two(lab, (lab.teacher, lab.make_teacher("resnet8_w4")))


@dataclass(frozen=True)
class Moment:
    """What there was before a phase (epoch 0) or after one of its epochs, when the method had done its part."""

    phase: str
    epoch: int
    student: dict[str, Tensor]
    method: dict[str, Tensor]
    rate: float


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's tensors."""
    return {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)}


def moved(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Return the names of tensors that differ in any bit."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[Moment]:
    """Return a list that grows with each phase that begins and each epoch that ends."""
    seen: list[Moment] = []
    before, after = ASIB.before_phase, ASIB.after_epoch

    def note(method: ASIB, interlude: Any) -> None:
        student, own = tensors(interlude.student), tensors(method)
        seen.append(Moment(interlude.phase.name, interlude.epoch, student, own, method.memory.rate))

    def before_phase(self: ASIB, interlude: Any) -> None:
        before(self, interlude)
        note(self, interlude)

    def after_epoch(self: ASIB, interlude: Any) -> Any:
        said = after(self, interlude)
        note(self, interlude)
        return said

    monkeypatch.setattr(ASIB, "before_phase", before_phase)
    monkeypatch.setattr(ASIB, "after_epoch", after_epoch)
    return seen


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[float]], None]:
    """Return what makes measured accuracies up: the synergy's in A-Steps, or the student's after its epochs."""

    def write(whose: str, values: list[float]) -> None:
        left = iter(values)
        if whose == "synergy":
            monkeypatch.setattr(ASIB, "_synergy_accuracy", lambda _self, _interlude: next(left))
        else:
            own = Lane._validation_accuracy
            monkeypatch.setattr(
                Lane, "_validation_accuracy", lambda self, on: None if own(self, on) is None else next(left)
            )

    return write


@pytest.fixture
def helpers() -> SimpleNamespace:
    """What tests of whole runs share."""
    return SimpleNamespace(moved=moved, tensors=tensors, networks=NETWORKS, small=SMALL)
