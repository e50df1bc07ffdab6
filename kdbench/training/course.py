"""Where a lane stands in its phases, and what follows from that: epochs, data order, learning rate."""

from __future__ import annotations

from kdbench.config.schema import Anchor
from kdbench.method import AnyMethod, Phase
from kdbench.records import EpochReport
from kdbench.schedule import Within, phase_rate
from kdbench.spec import RunSpec
from kdbench.training.meters import Position
from kdbench.types import Context


class Course:
    """The way through a method's phases; the trainer moves ``position`` along it."""

    spec: RunSpec
    anchor: Anchor
    context: Context
    phases: tuple[Phase, ...]
    position: Position
    history: list[EpochReport]
    method: AnyMethod
    looking: bool

    @property
    def phase(self) -> Phase:
        """The running phase."""
        return self.phases[self.position.phase]

    @property
    def epochs(self) -> int:
        """Epochs of the running phase."""
        return self._epochs_of(self.phase)

    def share(self, within: float) -> float:
        """Return the share of all epochs of all phases that is done.

        Args:
            within: Share of the running epoch that is done, in [0, 1].
        """
        epochs = [self._epochs_of(phase) for phase in self.phases]
        return (sum(epochs[: self.position.phase]) + self.position.epoch + within) / max(1, sum(epochs))

    def _epochs_of(self, phase: Phase) -> int:
        return self.anchor.schedule.epochs if phase.epochs is None else phase.epochs

    @property
    def finished(self) -> bool:
        """Whether all phases are done."""
        return self.position.phase >= len(self.phases)

    @property
    def taught(self) -> bool:
        """Whether the shared teachers run in this phase."""
        return self.method.uses_teacher and self.phase.teachers

    @property
    def precision(self) -> str:
        """Precision of the networks, as things stand."""
        return "fp32" if self.looking or self.finished or self.phase.full_precision else self.anchor.step.precision

    @property
    def teacher_precision(self) -> str:
        """Precision of the shared teachers in this phase."""
        return "fp32" if self.phase.full_precision else self.anchor.step.teacher_precision or self.precision

    @property
    def student_epoch(self) -> int:
        """Epochs of the student that are done, in all parts of the main phase."""
        whole = self.anchor.schedule.epochs
        before = [phase for phase in self.phases[: self.position.phase] if phase.is_main]
        done = sum(whole if phase.epochs is None else phase.epochs for phase in before)
        return done + (self.position.epoch if self.phase.is_main else 0)

    @property
    def stream_key(self) -> int | str:
        """Key of the epoch's data order: the main phase's is the same for all methods."""
        return self.student_epoch if self.phase.is_main else f"{self.phase.name}:{self.position.epoch}"

    def rate(self, step: int = 0) -> float:
        """Return the learning rate of the running epoch, at its first step or another one."""
        phase, schedule = self.phase, self.anchor.schedule
        base = phase.optimizer.lr if phase.optimizer else self.anchor.learning_rate_of(self.spec.student)
        steps = self.context.steps_per_epoch
        if phase.is_main:
            within = Within(step, steps, self.accuracies)
            return phase_rate(schedule, phase, base, self.student_epoch, schedule.epochs, within)
        # In other phases nothing is measured that the rate could follow.
        return phase_rate(schedule, phase, base, self.position.epoch, self.epochs, Within(step, steps))

    @property
    def accuracies(self) -> list[float]:
        """Validation accuracies of the main phase so far, in percent."""
        return [r.validation_accuracy for r in self.history if r.validation_accuracy is not None]

    def skip_empty_phases(self) -> None:
        """Go on to the next phase that has epochs, if the one it stands at has none."""
        while not self.finished and self.epochs == 0:
            self.position.phase += 1
