"""The training stages of a method: what runs in them, what is trained, how, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from kdbench.backbones.freezing import FreezeLevel
from kdbench.batch import Batch
from kdbench.config.schema import Optimizer
from kdbench.types import Term

Losses = Mapping[str, Term]
MAIN = "(main)"


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike.

    Args:
        parameters: Returns them; called once per optimizer.
        rate: Factor on the phase's learning rate, > 0.
        weight_decay: Weight decay, >= 0; None = the optimizer's.

    Raises:
        ValueError: If one of them is out of range.
    """

    parameters: Callable[[], Iterable[nn.Parameter]]
    rate: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf or not 0 <= (self.weight_decay or 0.0) < math.inf:
            raise ValueError(
                f"group: rate factor {self.rate} with weight decay {self.weight_decay}; a factor is above 0, and a "
                "weight decay is 0 or more, or None"
            )


@dataclass(frozen=True)
class Phase:
    """One training stage of a method. The default is a single main phase with the anchor's schedule.

    The main phase trains the student under the anchor. It may come in parts, with other phases between them: then each
    part has its ``epochs``, together the anchor's, and learning rate, data order and optimizer go on from part to part.

    Args:
        name: Unique within the method.
        epochs: Epochs; None = the anchor's, which only a main phase in one part has.
        losses: The phase's loss; None = the method's ``losses``.
        parameters: What is trained, in the main phase besides the student; None = the student and the method's own
            parameters.
        groups: The same in groups with learning rates of their own; instead of ``parameters``.
        learning_rate: Initial rate; None = the anchor's.
        rate_factor: Factor on the initial rate as a function of the share of the phase done, in [0, 1); None = the
            anchor's schedule, over the epochs of the phase.
        optimizer: Optimizer with its initial rate; None = the anchor's.
        continues: Name of the earlier phase that began the optimizer which goes on here, with the same parameters or
            groups but the learning rate of this phase; "" = a new one.
        student: ``train``; ``eval`` = it runs in eval mode without gradients, and nothing of it changes; ``off`` = it
            does not run, its features are empty (0 classes), and it costs nothing.
        freeze: How much of the student is trained, if its anchor allows partial freezing; None = all of it.
        teachers: Whether the shared teachers run. A method that runs copies of its own says False; its batches then
            have no teachers.
        own_forwards: Passes of networks of the method's own for each image of the batch; they are metered.
        mixes: Whether images are mixed as the anchor says; False = never.
        full_precision: Whether the networks run in float32 whatever the anchor's precision is.
        skips_nonfinite: Whether a step with a non-finite loss is left out and counted (``skipped_steps``), instead of
            ending the run; an epoch without any other step still does.
        main: Whether this is a part of the main phase.
    """

    name: str = "main"
    epochs: int | None = None
    losses: Callable[[Batch], Losses] | None = None
    parameters: Callable[[], Iterable[nn.Parameter]] | None = None
    groups: Callable[[], Sequence[Group]] | None = None
    learning_rate: float | None = None
    rate_factor: Callable[[float], float] | None = None
    optimizer: Optimizer | None = None
    continues: str = ""
    student: Literal["train", "eval", "off"] = "train"
    freeze: FreezeLevel | None = None
    teachers: bool = True
    own_forwards: int = 0
    mixes: bool = True
    full_precision: bool = False
    skips_nonfinite: bool = False
    main: bool = False

    def __post_init__(self) -> None:
        # The name is part of the keys of the phase's random streams.
        if not self.name.replace("_", "").isalnum():
            raise ValueError(f"phase name '{self.name}': letters, digits and '_' only")
        if self.parameters is not None and self.groups is not None:
            raise ValueError(f"phase '{self.name}': give parameters or groups, not both")
        if self.optimizer is not None and self.learning_rate is not None:
            raise ValueError(f"phase '{self.name}': its optimizer has the learning rate; leave learning_rate out")
        if self.own_forwards < 0:
            raise ValueError(f"phase '{self.name}': own_forwards is {self.own_forwards}; a phase has 0 or more")
        if self.is_main:
            self._keep_the_anchor()

    def _keep_the_anchor(self) -> None:
        if self.learning_rate is not None or self.rate_factor is not None:
            raise ValueError("the main phase has the anchor's learning rate; declare a Deviation to change it")
        if not self.runs_student:
            raise ValueError("the main phase trains the student, so it must run it")
        taken = {
            "student": self.student != "train",
            "optimizer": self.optimizer is not None,
            "continues": bool(self.continues),
            "mixes": not self.mixes,
            "full_precision": self.full_precision,
        }
        if changed := [name for name, found in taken.items() if found]:
            raise ValueError(f"phase '{self.name}': {changed[0]} is the anchor's in the main phase; leave it out")

    @property
    def is_main(self) -> bool:
        """Whether this phase, or part of one, trains the student under the anchor's schedule."""
        return self.main or self.epochs is None

    @property
    def runs_student(self) -> bool:
        """Whether the student runs."""
        return self.student != "off"

    @property
    def trains(self) -> Literal["student", "method"]:
        """Whose training it is, and whose time: a phase that leaves the student as it is trains the method."""
        return "student" if self.student == "train" else "method"

    @property
    def optimizer_key(self) -> str:
        """What phases have in common that share an optimizer; the main one's is no name that another may have."""
        return MAIN if self.is_main else self.continues or self.name


@dataclass(frozen=True)
class Interlude:
    """What a method may see and do between epochs: without gradients, in eval mode, networks in float32.

    Args:
        phase: The phase that begins or is under way.
        epoch: Epochs of it that are done.
        student: The student; a method may change its weights, but not once the last epoch of the main phase is over.
        means: Means of the epoch's loss terms and notes, ``total`` among them; empty before a phase.
        validation_accuracy: In percent, of what would be deployed after the epoch (of the average, where there is one);
            None outside the main phase or without a split.
        look: Yields batches of the validation split, in order and not augmented, with the taps of the method, but
            without views. Its argument limits the batches; None = all. The passes are metered, what is noted of such a
            batch is not reported. Without a validation split it yields nothing.
    """

    phase: Phase
    epoch: int
    student: nn.Module
    look: Callable[[int | None], Iterator[Batch]]
    means: Mapping[str, float]
    validation_accuracy: float | None = None


def check_phases(phases: Sequence[Phase], epochs: int) -> None:
    """Refuse phases that do not make one training of the student of the anchor's length.

    Args:
        phases: In order.
        epochs: The anchor's epochs.

    Raises:
        ValueError: Naming what is wrong.
    """
    for phase in phases:
        if phase.epochs is not None and phase.epochs < 0:
            raise ValueError(f"phase '{phase.name}': epochs is {phase.epochs}; a phase has 0 or more")
    names, mains = [phase.name for phase in phases], [phase for phase in phases if phase.is_main]
    whole = sum(phase.epochs is None for phase in mains)
    if len(set(names)) < len(names) or not mains or (whole and len(mains) > 1):
        raise ValueError(f"phases {names}: need unique names and one main phase (epochs=None), here {len(mains)}")
    parts = [phase.epochs or 0 for phase in mains]
    if not whole and sum(parts) != epochs:
        raise ValueError(f"phases {names}: the parts of the main phase have {parts} epochs, the anchor has {epochs}")
    for place, phase in enumerate(phases):
        before = [earlier.name for earlier in phases[:place] if not (earlier.is_main or earlier.continues)]
        if phase.continues and phase.continues not in before:
            raise ValueError(
                f"phase '{phase.name}': continues '{phase.continues}', which is no phase before it that began an "
                f"optimizer of its own; those are {', '.join(before) or 'none'}"
            )
