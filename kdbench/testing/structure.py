"""Checks of a method's structure: it builds, has phases, returns terms, and its gradient reaches the student."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.method import Losses, Phase, TapRequest, total, trainable
from kdbench.phases import check_phases as phases_fit
from kdbench.testing.bench import Bench, Place, Run, equal
from kdbench.testing.failure import CheckFailure
from kdbench.testing.outcome import check
from kdbench.types import Term


@check(structural=True)
def check_builds(bench: Bench) -> None:
    """The method builds from its default options, and asks only for stages that exist."""
    method = bench.build()
    if getattr(method, "options", None) != bench.options:
        raise CheckFailure(f"{bench}: its options are not those it was built with; call super().__init__(options, ...)")
    if not isinstance(method.taps, TapRequest):
        raise CheckFailure(f"{bench}: taps is {method.taps!r}; it must be a TapRequest(student=Taps, teachers=Taps)")
    sides = [("student", method.taps.student, bench.info.student)]
    sides += [("teachers", method.taps.of_teacher(i), teacher) for i, teacher in enumerate(bench.info.teachers)]
    for side, taps, info in sides:
        try:
            taps.resolve(len(info.stages))
        except IndexError as error:
            raise CheckFailure(
                f"{bench}: taps.{side} of {info.name}: {error}. Negative indices count from the deepest stage; "
                "decline pairs without that stage in supports()"
            ) from None


@check(structural=True)
def check_phases(bench: Bench) -> None:
    """Phases have unique names, exactly one is the main one, and what they train exists."""
    phases = bench.build().phases()
    if not (isinstance(phases, tuple) and phases and all(isinstance(phase, Phase) for phase in phases)):
        raise CheckFailure(f"{bench}: phases() returned {phases!r}; return a non-empty tuple of kdbench.Phase")
    names = [phase.name for phase in phases]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise CheckFailure(f"{bench}: two phases are named '{repeated[0]}'; give each a name of its own")
    main = [phase.name for phase in phases if phase.epochs is None]
    if len(main) != 1 and (main or not any(phase.is_main for phase in phases)):
        raise CheckFailure(
            f"{bench}: {len(main)} phases have epochs=None ({', '.join(main) or 'none'}); exactly one, the main phase, "
            "runs for the anchor's epochs"
        )
    try:
        phases_fit(phases, bench.context.epochs)
    except ValueError as error:
        raise CheckFailure(f"{bench}: {error}") from None
    for phase in phases:
        _check_phase(bench, phase)
    _check_trained(bench, phases)


def _check_phase(bench: Bench, phase: Phase) -> None:
    where = f"{bench}: phase '{phase.name}'"
    if phase.learning_rate is not None and not phase.learning_rate > 0:
        raise CheckFailure(f"{where}: learning_rate is {phase.learning_rate}; give a rate above 0, or None")
    if phase.losses is not None and not callable(phase.losses):
        raise CheckFailure(f"{where}: losses is {phase.losses!r}; give a function of the batch, or None")
    chosen = list(phase.parameters()) if phase.parameters else None
    if chosen is not None and not (chosen and all(isinstance(item, nn.Parameter) for item in chosen)):
        raise CheckFailure(f"{where}: parameters() must return at least one parameter, and only parameters")


def _check_trained(bench: Bench, phases: tuple[Phase, ...]) -> None:
    run = bench.start()
    for number, phase in enumerate(phases):
        if phase.freeze is not None and phase.freeze.level >= 0:
            raise CheckFailure(
                f"{bench}: phase '{phase.name}' freezes parts of the student (level {phase.freeze.level}) though "
                "context.freezing is False; freeze only where the anchor allows it"
            )
        try:
            run.optimizer(Place(number, 0))
        except ValueError as error:
            raise CheckFailure(f"{bench}: {error}") from None


@check(structural=True)
def check_losses(bench: Bench) -> None:
    """In every phase, first step and last, the losses are named terms: finite scalars with finite weights."""
    run = bench.start()
    for place in run.places():
        where = f"{bench}: {losses_name(run, place)}"
        require_terms(where, run.losses(place, run.batch(place)))
        last = run.last(place)
        require_terms(f"{where} in the last step", run.losses(last, run.batch(last)))


def losses_name(run: Run, place: Place) -> str:
    """Return how messages call the losses of a phase."""
    phase = run.phases[place.phase]
    return "losses()" if phase.losses is None else f"losses of phase '{phase.name}'"


def require_terms(where: str, losses: Losses) -> None:
    """Raise unless ``losses`` is what a method may return.

    Raises:
        CheckFailure: Naming the first term that is wrong.
    """
    if not (isinstance(losses, Mapping) and losses):
        raise CheckFailure(f"{where} returned {_short(losses)}; return a non-empty dict of name to kdbench.Term")
    for name, term in losses.items():
        if not (isinstance(name, str) and isinstance(term, Term)):
            raise CheckFailure(
                f"{where}: entry {name!r} is {_short(term)}; each entry is a name with a kdbench.Term(value, weight)"
            )
        value = term.value
        if not (isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()):
            raise CheckFailure(
                f"{where}: term '{name}' is {_short(value)}; a value is a floating-point scalar tensor, the mean over "
                "the batch"
            )
        if not value.isfinite():
            raise CheckFailure(f"{where}: term '{name}' is {value.item()}; a loss must be finite on ordinary batches")
        if not _is_weight(term.weight):
            raise CheckFailure(
                f"{where}: the weight of term '{name}' is {_short(term.weight)}; a weight is a finite Python number, "
                "so that no step waits for the device, or, if it depends on the batch, a scalar tensor without gradient"
            )


def _is_weight(weight: object) -> bool:
    if isinstance(weight, Tensor):
        return weight.ndim == 0 and not weight.requires_grad and bool(weight.isfinite())
    return not isinstance(weight, bool) and isinstance(weight, int | float) and math.isfinite(weight)


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    return f"{type(value).__name__} {value!r}"[:80]


@check(structural=True)
def check_gradient(bench: Bench) -> None:
    """The main phase's gradient reaches the student, the other phases' what they train; all of it is finite."""
    run = bench.start()
    for place in run.places():
        loss = total(run.losses(place, run.batch(place)))
        main = run.phases[place.phase].is_main
        trained = trainable(run.student) if main else run.parameters(place)
        whom = "the student" if main else "any parameter the phase trains"
        if not loss.requires_grad or not _reached(loss, trained):
            raise CheckFailure(
                f"{bench}: no gradient of {losses_name(run, place)} reaches {whom}; use batch.student without detach() "
                "or no_grad()"
            )
        named = [*run.student.named_parameters(), *run.method.named_parameters()]
        if bad := [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]:
            raise CheckFailure(
                f"{bench}: the gradient of {losses_name(run, place)} is not finite at '{bad[0]}'; look for sqrt, norm, "
                "log or division at 0"
            )
        run.student.zero_grad()
        run.method.zero_grad()


def _reached(loss: Tensor, parameters: list[nn.Parameter]) -> bool:
    loss.backward()  # type: ignore[no-untyped-call]
    return any(p.grad is not None and bool(torch.count_nonzero(p.grad)) for p in parameters)


@check(structural=True)
def check_interludes(bench: Bench) -> None:
    """Hooks between epochs report numbers and words, spare the student that is scored, and need no validation split."""
    for run in _with_and_without_a_split(bench):
        scored = max(i for i, phase in enumerate(run.phases) if phase.is_main)
        for first in run.places():
            last = run.last(first)
            _hook(run, "before_phase", partial(run.before, first), scored=first.phase > scored)
            run.train(last)
            said = _hook(run, "after_epoch", partial(run.after, last), scored=first.phase >= scored)
            if not isinstance(said, Mapping) or not all(isinstance(name, str) for name in said):
                raise CheckFailure(
                    f"{bench}: after_epoch() returned {_short(said)}; return a dict of name to number or word, {{}} if "
                    "there is nothing to report"
                )
            if odd := [name for name, value in said.items() if not _is_reported(value)]:
                raise CheckFailure(
                    f"{bench}: after_epoch() reports '{odd[0]}' as {_short(said[odd[0]])}; report numbers and words"
                )


def _with_and_without_a_split(bench: Bench) -> Iterator[Run]:
    yield bench.start()
    try:
        blind = Bench(bench.method_type, bench.pair, validation=0).start()
    except Unsupported:  # a method may say that it needs one
        return
    yield blind


def _hook(run: Run, name: str, call: Callable[[], object], *, scored: bool) -> object:
    before = {key: value.clone() for key, value in run.student.state_dict().items()}
    said = call()
    if scored and (moved := [key for key, value in run.student.state_dict().items() if not equal(value, before[key])]):
        raise CheckFailure(
            f"{run.bench}: {name}() changed '{moved[0]}' of the student after its last epoch, which is the one that is "
            "scored; restore weights before it"
        )
    return said


def _is_reported(value: object) -> bool:
    number = isinstance(value, Tensor) and value.ndim == 0
    return number or isinstance(value, str | int | float)
