"""What ASIB remembers from epoch to epoch besides weights: accuracies, references, snapshots (2.3, 3.7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from kdbench.methods.asib.guard import Guard

State = dict[str, Any]


@dataclass
class Snapshot:
    """The best one of several states of some modules.

    Args:
        best: Its measure: larger is better.
        state: The modules' states on the host, or None before the first one.
    """

    best: float = -math.inf
    state: list[State] | None = None

    def offer(self, measure: float, modules: list[nn.Module]) -> None:
        """Copy the modules if the measure exceeds the best one so far."""
        if measure > self.best:
            self.best, self.state = measure, copies(modules)

    def restore(self, modules: list[nn.Module]) -> None:
        """Put the best state back, where there is one."""
        if self.state is not None:
            for module, state in zip(modules, self.state, strict=True):
                module.load_state_dict(state)


def copies(modules: list[nn.Module]) -> list[State]:
    """Return copies of the modules' states on the host."""
    return [{key: value.detach().cpu().clone() for key, value in module.state_dict().items()} for module in modules]


@dataclass
class Memory:
    """All of it; part of the checkpoint.

    Args:
        last_synergy_acc: Moving average of the synergy's accuracy, a share; None = never measured.
        synergy: Best weights of the running A-Step by that accuracy.
        guard: Reference of the loss guard.
        guarded: Weights after the guard's best epoch; the measure is the negative loss.
        rate: Factor on the A-Step's learning rates, halved by the guard.
        terms: Names of the loss terms of the running A-Step epoch.
        student: Best student of the running stage by validation accuracy.
    """

    last_synergy_acc: float | None = None
    synergy: Snapshot = field(default_factory=Snapshot)
    guard: Guard = Guard()
    guarded: Snapshot = field(default_factory=Snapshot)
    rate: float = 1.0
    terms: frozenset[str] = frozenset()
    student: Snapshot = field(default_factory=Snapshot)

    def end_adaptation(self) -> None:
        """Forget what an A-Step measured: the next has references of its own, and no B-Step's checkpoint the copies."""
        self.synergy, self.guard, self.guarded = Snapshot(), Guard(), Snapshot()

    def to_state(self) -> State:
        """Return it in types that a checkpoint holds."""
        snapshots = {name: [kept.best, kept.state] for name, kept in self._snapshots().items()}
        return {
            "last_synergy_acc": self.last_synergy_acc,
            "guard": [self.guard.best, sorted(self.guard.terms)],
            "rate": self.rate,
            "terms": sorted(self.terms),
            "snapshots": snapshots,
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Return the memory of a state."""
        best, terms = state["guard"]
        kept = {name: Snapshot(*pair) for name, pair in state["snapshots"].items()}
        return cls(
            last_synergy_acc=state["last_synergy_acc"],
            guard=Guard(best, frozenset(terms)),
            rate=state["rate"],
            terms=frozenset(state["terms"]),
            **kept,
        )

    def _snapshots(self) -> Mapping[str, Snapshot]:
        return {"synergy": self.synergy, "guarded": self.guarded, "student": self.student}
