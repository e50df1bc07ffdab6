"""What a step of a ladder really changes, from the locked specs of its runs, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from kdbench.config.ladders import Ladder, Step
from kdbench.config.loading import same_value
from kdbench.options import apply_deviations
from kdbench.spec import RunSpec


@dataclass(frozen=True)
class Change:
    """One key that two specs do not agree on.

    Args:
        key: Option of the method, or ``anchor.KEY``.
        before: Its value in the spec that is compared against.
        after: Its value in the other one.
    """

    key: str
    before: JsonValue
    after: JsonValue

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.before)} -> {json.dumps(self.after)}"


@dataclass(frozen=True)
class Difference:
    """What a step changes; nothing where it is compared with none."""

    step: Step
    changes: tuple[Change, ...] = ()


def differences(ladder: Ladder, specs: Mapping[str, RunSpec]) -> list[Difference]:
    """Return what each step changes against the one it is compared with.

    Args:
        ladder: The ladder.
        specs: One spec of each step, by its name; all of one seed.
    """
    return [
        Difference(step, _changes(specs[step.against], specs[step.name]) if step.against else ())
        for step in ladder.steps
    ]


def _changes(before: RunSpec, after: RunSpec) -> tuple[Change, ...]:
    old, new = _values(before), _values(after)
    keys = dict.fromkeys((*old, *new))
    return tuple(Change(key, old.get(key), new.get(key)) for key in keys if not same_value(old.get(key), new.get(key)))


def _values(spec: RunSpec) -> dict[str, JsonValue]:
    """Return everything that a spec says about its training: options, and the protocol it really follows."""
    anchor = apply_deviations(spec.anchor, spec.deviations)
    protocol = json.loads(json.dumps(anchor.keys()))
    return {**spec.options, **{f"anchor.{key}": value for key, value in protocol.items()}}


def refusals(ladder: Ladder, found: Iterable[Difference]) -> Iterator[str]:
    """Yield why steps are not what they declare; of a verbatim ladder nothing is asked."""
    for difference in found:
        step = difference.step
        if ladder.verbatim or step.against is None or step.factor is None:
            continue
        where = f"ladder '{ladder.label}': step '{step.name}'"
        allowed = ladder.factors[step.factor]
        factor = f"its factor '{step.factor}' ({', '.join(allowed)})"
        if outside := [str(change) for change in difference.changes if change.key not in allowed]:
            yield (
                f"{where} changes {'; '.join(outside)} against '{step.against}', which is outside {factor}; hold the "
                "key equal, give it a step of its own, or add it to the factor"
            )
        elif not difference.changes:
            yield f"{where} changes nothing against '{step.against}'; set a key of {factor}, or leave the step out"


def described(ladder: Ladder, found: Iterable[Difference]) -> Iterator[str]:
    """Yield the differences as lines of text."""
    if ladder.verbatim:
        yield f"ladder {ladder.label} is verbatim: its steps may change several factors, so no gain is that of one"
    for difference in found:
        step = difference.step
        if step.against is None:
            yield f"{step.name}: compared with none"
            continue
        several = ""
        if ladder.verbatim and len(difference.changes) > 1:
            several = f", changes several factors ({len(difference.changes)} keys)"
        yield f"{step.name} against {step.against}: {step.factor or 'no factor named'}{several}"
        yield from (f"  {change}" for change in difference.changes)
        if not difference.changes:
            yield "  nothing"
