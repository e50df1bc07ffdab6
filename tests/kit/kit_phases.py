"""Methods for the tests of the kit: those that are broken in what they say of phases, or do between epochs."""

# ruff: noqa: ARG002 (a subject is broken by what it leaves out)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from kit_subjects import Plain, Sound, broken
from torch import Tensor, nn

import kdbench
from kdbench.backbones.freezing import FreezeLevel
from kdbench.method import Group, Interlude, Losses

EPOCHS = 4  # of the kit's anchor


class Staged(Plain):
    """Sound: a main phase in parts, a helper's phase between and after, groups, notes, looks and a memory of them."""

    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.helper = nn.Linear(context.student.classes, context.student.classes)
        self.register_buffer("seen", torch.zeros(()))

    def phases(self) -> tuple[kdbench.Phase, ...]:
        return (
            self.head("before"),
            kdbench.Phase("early", 1, groups=lambda: [Group(self.helper.parameters, 10.0, 0.0)], main=True),
            self.head("between", continues="before"),
            kdbench.Phase("late", EPOCHS - 1, groups=lambda: [Group(self.helper.parameters, 10.0, 0.0)], main=True),
            self.head("after"),
        )

    def head(self, name: str, continues: str = "") -> kdbench.Phase:
        return kdbench.Phase(
            name, 1, self.head_losses, self.helper.parameters, student="eval", continues=continues, mixes=False
        )

    def head_losses(self, batch: kdbench.Batch) -> Losses:
        return {"head": batch.supervised(self.helper(batch.student.logits))}

    def losses(self, batch: kdbench.Batch) -> Losses:
        batch.note("share", 0.5, batch.student.logits.new_tensor(1.0))
        return {"ce": batch.supervised(), "head": batch.supervised(self.helper(batch.student.logits))}

    def before_phase(self, interlude: Interlude) -> None:
        self.seen += self.look(interlude)

    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:
        self.seen += self.look(interlude) + interlude.means["total"]
        if interlude.phase.name == "early":
            interlude.student.get_parameter("conv1.weight").mul_(0.5)
        return {"seen": float(self.seen), "phase": interlude.phase.name}

    def look(self, interlude: Interlude) -> Tensor:
        return sum((batch.student.logits.mean() for batch in interlude.look(None)), torch.zeros(()))


@broken("phases", "the parts of the main phase have [1, 1] epochs, the anchor has 4")
class ForgetsEpochs(Plain):
    def phases(self) -> tuple[kdbench.Phase, ...]:
        return (kdbench.Phase("a", 1, main=True), kdbench.Phase("b", 1, main=True))


@broken("phases", "phase 'between': continues 'late', which is no phase before it that began an optimizer of its own")
class ContinuesTheMainPhase(Staged):
    def phases(self) -> tuple[kdbench.Phase, ...]:
        before, early, _, late, after = super().phases()
        return (before, early, late, self.head("between", continues="late"), after)


@broken(
    "phases",
    "method 'plain': phase 'late': goes on with an optimizer, but trains other parameters, or other groups of them",
)
class RegroupsInTheSecondPart(Staged):
    def phases(self) -> tuple[kdbench.Phase, ...]:
        before, early, between, _, after = super().phases()
        return (before, early, between, kdbench.Phase("late", EPOCHS - 1, main=True), after)


@broken("phases", "method 'plain': group: rate factor -1.0")
class NegativeRate(Staged):
    def phases(self) -> tuple[kdbench.Phase, ...]:
        return (kdbench.Phase(groups=lambda: [Group(self.helper.parameters, -1.0)]),)


@broken("phases", "phase 'main' freezes parts of the student (level 1) though context.freezing is False")
class FreezesAnyway(Plain):
    def phases(self) -> tuple[kdbench.Phase, ...]:
        return (kdbench.Phase(freeze=FreezeLevel(1)),)


@broken("interludes", "after_epoch() returned NoneType None; return a dict of name to number or word")
class ReportsNothing(Plain):
    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:
        return None  # type: ignore[return-value]


@broken("interludes", "after_epoch() reports 'student' as a tensor of shape (5,)")
class ReportsATensor(Plain):
    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:
        return {"student": torch.zeros(5)}  # type: ignore[dict-item]


@broken("interludes", "after_epoch() changed 'conv1.weight' of the student after its last epoch")
class RestoresTooLate(Plain):
    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:
        interlude.student.get_parameter("conv1.weight").mul_(0.5)
        return {}


@broken("interludes", "before_phase() changed 'conv1.weight' of the student after its last epoch")
class PrunesAtTheEnd(Staged):
    def before_phase(self, interlude: Interlude) -> None:
        interlude.student.get_parameter("conv1.weight").mul_(0.5)


@broken("interludes", "NeedsASplit: raised ZeroDivisionError")
class NeedsASplit(Plain):
    def before_phase(self, interlude: Interlude) -> None:
        right = [float((b.student.logits.argmax(1) == b.labels).float().mean()) for b in interlude.look(None)]
        sum(right) / len(right)


@broken("interludes", "ComparesNone: raised TypeError")
class ComparesNone(Plain):
    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:
        return {"half": interlude.validation_accuracy / 2}  # type: ignore[operator]


@broken("resume", "attribute 'best' changes in training but is not in the state")
class RemembersInPython(Sound):
    best = 0.0

    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:
        self.best = max(self.best, interlude.validation_accuracy or 0.0, float(interlude.epoch))
        return {}


@dataclass(slots=True)
class Kept:
    weight: Tensor
    best: float = 0.0


@broken("resume", "attribute 'kept' changes in training but is not in the state")
class KeepsTensorsInADataclass(Sound):
    def before_phase(self, interlude: Interlude) -> None:
        self.kept = Kept(self.project.weight.clone())


@broken("resume", "attribute 'turns' changes in training but is not in the state")
class CountsPhases(Sound):
    turns = 0

    def before_phase(self, interlude: Interlude) -> None:
        self.turns += 1
