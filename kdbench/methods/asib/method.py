"""ASIB as a method: builds the parts, names the phases, and does each step's loss and what comes between epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from kdbench.adapters import DistillAdapters
from kdbench.backbones import freezing
from kdbench.config.schema import Optimizer
from kdbench.errors import Unsupported
from kdbench.method import Batch, Group, Interlude, Losses, Method, Phase, Setup, TapRequest, trainable
from kdbench.methods.asib.a_step import AInputs, a_step_terms
from kdbench.methods.asib.b_step import BInputs, b_step_terms
from kdbench.methods.asib.bridge import Bridge, ask
from kdbench.methods.asib.checks import cautions, refuse
from kdbench.methods.asib.ensemble import query_of
from kdbench.methods.asib.freeze import freezes, level_of
from kdbench.methods.asib.gate import updated
from kdbench.methods.asib.head import SynergyHead
from kdbench.methods.asib.memory import Memory, Snapshot
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.recommended import recommended
from kdbench.methods.asib.report import gate_report, target_mode, trained_report
from kdbench.methods.asib.schedules import a_rate_factor
from kdbench.methods.asib.stages import Step, adaptation_epochs, steps
from kdbench.methods.asib.synergy import ensemble_logits
from kdbench.methods.asib.targets import OF_SYNERGY
from kdbench.methods.asib.teachers import EMBEDDING, OwnTeachers, Taught, taught
from kdbench.methods.asib.weights import disagreement_rate
from kdbench.methods.asib.widths import settle
from kdbench.types import Context, LossWeights, Pair, Source


class ASIB(Method[ASIBOptions]):
    """Two or more teachers, joined by an information-bottleneck bridge, teach the student together.

    In A-Steps bridge and synergy head learn from labels and, behind a gate, from the student; in B-Steps they stand
    still and the student learns from labels and from the KD target: teachers, synergy, or the nearer of both. The
    synergy's accuracy on the validation split opens the gate.
    """

    name = "asib"
    source = Source(
        title="ASIB: Adaptive Synergy Information-Bottleneck",
        year=2025,
        url="https://github.com/ssyounge/ASIB",
        code="ssyounge/ASIB@bcfd9ba",
        deviations="Corrected where the original contradicts itself (docs/asib.md lists each case); the student's "
        "score is that of its last epoch, the test split is read for nothing else.",
    )
    options_type = ASIBOptions
    published = LossWeights(ce=0.65, kd=0.35)
    distributed = "gathered"
    owns = ("loss.kd_target",)  # it builds its own target
    taps = TapRequest(student=EMBEDDING, teachers=EMBEDDING, every_teacher=True)

    def __init__(self, options: ASIBOptions, context: Context) -> None:
        super().__init__(options, context)
        refuse(options, context)
        self.steps = steps(options, context.epochs)
        self.has_bridge = bool(options.use_ib or options.kd_target in OF_SYNERGY or adaptation_epochs(options))
        self.widths = settle(options, context) if self.has_bridge else None
        self.trains_teachers = options.use_teacher_finetuning and adaptation_epochs(options) > 0
        self.memory = Memory()
        self.adapters = self._adapters() if options.use_distillation_adapter else None
        self.bridge, self.head = self._bridge()
        self.own_teachers: OwnTeachers | None = None  # see prepare
        self._posed = ""

    def _adapters(self) -> DistillAdapters:
        options = self.options
        trained = options.train_distill_adapter_only or options.use_teacher_finetuning
        try:
            return DistillAdapters(
                self.context, options.distill_out_dim, options.distill_hidden_dim, train_teachers=trained
            )
        except ValueError as error:
            raise Unsupported(str(error)) from error

    def _bridge(self) -> tuple[Bridge | None, SynergyHead | None]:
        o, w = self.options, self.widths
        if w is None:
            return None, None
        dropout = o.ib_mbm_dropout if o.synergy_head_dropout is None else o.synergy_head_dropout
        classes, learnable = self.context.student.classes, o.synergy_temp_learnable
        return (
            Bridge(w.query, w.token, w.code, o.ib_mbm_n_head, o.ib_mbm_logvar_clip, o.ib_mbm_min_std),
            SynergyHead(w.code, classes, dropout, learnable=learnable, log_temp=o.synergy_temp_init),
        )

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:  # noqa: ARG003
        """Return the method file's values; what an anchor locks, such as freezing, is not among them."""
        return recommended()

    def cautions(self) -> tuple[str, ...]:
        return tuple(cautions(self.options, self.context, self.widths))

    def prepare(self, setup: Setup) -> None:
        """Take copies of the teachers where they are trained."""
        if self.trains_teachers:
            device = setup.labels.device
            self.own_teachers = OwnTeachers(setup.teachers, setup.run).to(device)

    # --- phases --------------------------------------------------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        return tuple(self._a_phase(step) if step.kind == "a" else self._b_phase(step) for step in self.steps)

    def _a_phase(self, step: Step) -> Phase:
        o, first = self.options, next(step for step in self.steps if step.kind == "a")
        whole = sum(one.epochs for one in self.steps if one.kind == "a")
        rate = (o.a_step_lr or o.teacher_lr) * o.ib_mbm_lr_factor
        decay = o.teacher_weight_decay or o.a_step_weight_decay
        return Phase(
            step.name,
            epochs=step.epochs,
            losses=partial(self.a_losses, step),
            groups=lambda: [
                Group(self._synergy_parameters),
                Group(self._teacher_parameters, self._teacher_rate / rate),
            ],
            optimizer=Optimizer(name="adam", lr=rate, betas=(o.adam_beta1, o.adam_beta2), weight_decay=decay),
            rate_factor=lambda share: self.memory.rate * a_rate_factor(step.a + round(share * step.epochs), whole),
            continues="" if step is first else first.name,
            student="eval",
            teachers=not self.trains_teachers,
            own_forwards=len(self.context.teachers) if self.trains_teachers else 0,
            mixes=False,
            full_precision=not o.a_step_amp_enabled,
            skips_nonfinite=True,
        )

    def _b_phase(self, step: Step) -> Phase:
        return Phase(
            step.name,
            epochs=step.epochs,
            losses=partial(self.b_losses, step),
            main=True,
            freeze=level_of(self.options, "student", step.stage) if freezes(self.options) else None,
            teachers=not self.trains_teachers,
            own_forwards=len(self.context.teachers) if self.trains_teachers else 0,
        )

    @property
    def _teacher_rate(self) -> float:
        return self.options.teacher_lr or self.options.a_step_lr

    def _synergy_parameters(self) -> list[nn.Parameter]:
        return [parameter for part in (self.bridge, self.head) if part is not None for parameter in part.parameters()]

    def _teacher_parameters(self) -> list[nn.Parameter]:
        """Return what is trained of the teachers in some stage: adapters, and copies frozen or not in this one."""
        adapters = [] if self.adapters is None else trainable(self.adapters.teachers)
        return [*adapters, *([] if self.own_teachers is None else self.own_teachers.parameters())]

    def _adapted_parts(self) -> list[nn.Module]:
        """Return what A-Steps train, for snapshots."""
        adapters = self.adapters.teachers if self.adapters is not None and trainable(self.adapters.teachers) else None
        parts = (self.bridge, self.head, adapters, self.own_teachers)
        return [part for part in parts if part is not None]

    # --- losses --------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> Losses:
        return self.b_losses(next(step for step in self.steps if step.kind == "b"), batch)

    def a_losses(self, step: Step, batch: Batch) -> Losses:
        """Return the terms of an A-Step batch."""
        self._pose(step)
        said = self._taught(batch)
        with torch.no_grad():
            query = self._query(batch)
        bridge, head, tokens = self._joined(said)
        noise = torch.randn(len(query), self._code, device=query.device, dtype=query.dtype)
        bottleneck = ask(bridge, query, tokens, self.options.ib_mbm_feature_norm, noise=noise)
        inputs = AInputs(
            student=batch.student.logits,
            feature=query,
            labels=batch.labels,
            bottleneck=bottleneck,
            synergy=head(bottleneck.z),
            trained_teacher=[p for p in self._teacher_parameters() if p.requires_grad],
            trained_bridge=self._synergy_parameters(),
            log_temp=head.log_temp,
        )
        counters = step.counters(batch.epoch)
        found = a_step_terms(inputs, self.options, batch.protocol, counters, self.memory.last_synergy_acc)
        if torch.is_grad_enabled():
            self.memory.terms = found.composition
        for name, value in found.metrics.items():
            batch.note(name, value)
        return found.terms

    def b_losses(self, step: Step, batch: Batch) -> Losses:
        """Return the terms of a B-Step batch."""
        self._pose(step)
        with torch.no_grad():
            said = self._taught(batch)
        query = self._query(batch)
        noise = None
        if self.has_bridge and not self.options.use_mu_for_kd:
            noise = torch.randn(len(query), self._code, device=query.device, dtype=query.dtype)
        inputs = BInputs(batch.student.logits, query, said.logits, said.tokens, batch.labels, batch.mix, noise)
        found = b_step_terms(
            inputs,
            self.options,
            batch.protocol,
            step.counters(batch.epoch),
            self.memory.last_synergy_acc,
            self.bridge,
            self.head,
        )
        for name, value in found.metrics.items():
            batch.note(name, value, found.metric_weights.get(name, 1.0))
        return found.terms

    def _joined(self, said: Taught) -> tuple[Bridge, SynergyHead, Tensor]:
        """Return bridge, head and the teachers' tokens, which exist wherever the synergy is asked for."""
        assert self.bridge is not None
        assert self.head is not None
        assert said.tokens is not None
        return self.bridge, self.head, said.tokens

    @property
    def _code(self) -> int:
        assert self.widths is not None
        return self.widths.code

    def _query(self, batch: Batch) -> Tensor:
        return query_of(cast("Tensor", batch.student.embedding), self.adapters, self.options)

    def _taught(self, batch: Batch) -> Taught:
        features = batch.teachers if self.own_teachers is None else self.own_teachers(batch.images)
        return taught(features, self.adapters, tokens=self.has_bridge)

    # --- modes ---------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Change the mode; the copies of the teachers take theirs with the next batch."""
        self._posed = ""
        return super().train(mode)

    def _pose(self, step: Step) -> None:
        """Let copies of the teachers train in A-Steps at their levels, and look on in eval mode at all other times."""
        if self.own_teachers is None or self._posed == step.name:
            return
        adapting = step.kind == "a" and self.training
        who = ["teacher1", *["teacher2"] * (len(self.context.teachers) - 1)]
        levels = [level_of(self.options, one, step.stage) for one in who] if adapting else None
        self.own_teachers.pose(levels)
        self._posed = step.name

    # --- between epochs ------------------------------------------------------------------------------------------

    def before_phase(self, interlude: Interlude) -> None:
        """Make sure before a B-Step that the gate was measured once; a stage's first one begins its best student."""
        step = self._step(interlude)
        if step.kind == "a":
            return
        if step.turn == 0:
            self.memory.student = Snapshot(best=0.0)
        needs = self.options.use_ib and self.options.kd_target in OF_SYNERGY
        if needs and self.memory.last_synergy_acc is None:
            self.memory.last_synergy_acc = updated(None, self._synergy_accuracy(interlude), self.options)

    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:
        step = self._step(interlude)
        return self._after_a(step, interlude) if step.kind == "a" else self._after_b(step, interlude)

    def _step(self, interlude: Interlude) -> Step:
        return next(step for step in self.steps if step.name == interlude.phase.name)

    def _after_a(self, step: Step, interlude: Interlude) -> dict[str, float | str]:
        memory, parts, last = self.memory, self._adapted_parts(), interlude.epoch == step.epochs
        report: dict[str, float | str] = {"stage": step.stage + 1}
        if interlude.epoch == 1:
            copies = None if self.own_teachers is None else self.own_teachers.networks
            report |= trained_report(self.bridge, self.head, copies)
        # Where every step was left out, there is no mean.
        report |= self._guarded(interlude.means.get("total", math.nan), parts)
        if last or interlude.epoch % self.options.teacher_eval_every == 0:
            accuracy = self._synergy_accuracy(interlude)
            memory.last_synergy_acc = updated(memory.last_synergy_acc, accuracy, self.options)
            if accuracy is not None:
                memory.synergy.offer(accuracy, parts)
                report["syn_acc"] = accuracy
        if last:
            memory.synergy.restore(parts)
            report["best_synergy_acc"] = memory.synergy.best
            memory.end_adaptation()
        return {**report, **self._gate_report()}

    def _guarded(self, loss: float, parts: list[nn.Module]) -> dict[str, float | str]:
        """Undo an epoch that is worse than the best one with the same terms, or take it for the next ones' measure."""
        memory = self.memory
        if not self.options.a_step_loss_guard:
            return {}
        if memory.guard.worse(loss, memory.terms):
            memory.guarded.restore(parts)
            memory.rate /= 2
            return {"guarded": 1.0}
        if memory.guard.terms != memory.terms:
            memory.guarded = Snapshot()
        memory.guard = memory.guard.after(loss, memory.terms)
        memory.guarded.offer(-loss, parts)
        return {}

    def _after_b(self, step: Step, interlude: Interlude) -> dict[str, float | str]:
        last, count, means = self.memory.last_synergy_acc, len(self.context.teachers), interlude.means
        report: dict[str, float | str] = {
            "stage": step.stage + 1,
            "kd_tgt_mode": target_mode(self.options, last, count, means),
            "kd_scale_mean": means.get("kd_scale_mean", 1.0),
            "student_trainable": str(freezing.count(interlude.student)),
        }
        if interlude.epoch == 1 and step.turn == 0 and count > 1 and self.context.validation_size:
            report |= self._disagreement(interlude)
        accuracy, best = interlude.validation_accuracy, self.memory.student
        if self.options.restore_best_student and accuracy is not None and step.stage + 1 < self.options.num_stages:
            best.offer(accuracy, [interlude.student])
            if step.ends_stage and interlude.epoch == step.epochs and best.state is not None:
                best.restore([interlude.student])
                report["restored_student_acc"] = best.best
                self.memory.student = Snapshot()
        return {**report, **self._gate_report()}

    def _gate_report(self) -> dict[str, float | str]:
        return gate_report(self.options, self.memory.last_synergy_acc, len(self.context.teachers))

    def _synergy_accuracy(self, interlude: Interlude) -> float | None:
        """Return the synergy's top-1 on the validation split in percent; None without a split."""
        right = seen = 0
        for batch in interlude.look(None):
            said = self._taught(batch)
            bridge, head, tokens = self._joined(said)
            logits = ensemble_logits(bridge, head, self._query(batch), tokens, self.options)
            right += int((logits.argmax(1) == batch.labels).sum())
            seen += len(batch.labels)
        return 100 * right / seen if seen else None

    def _disagreement(self, interlude: Interlude) -> dict[str, float | str]:
        """Return how often the teachers disagree on the validation split, once a stage, always in the default mode."""
        o = self.options
        looks = ((self._taught(batch).logits, batch.labels) for batch in interlude.look(o.disagreement_max_batches))
        rate = disagreement_rate(looks, "both_wrong", o.disagreement_max_samples, o.disagreement_max_batches)
        return {"teacher_disagree": rate.percent, "teacher_disagree_n": float(rate.samples)}

    # --- checkpoint ----------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is remembered besides weights."""
        return self.memory.to_state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what was remembered."""
        self.memory = Memory.from_state(state)
