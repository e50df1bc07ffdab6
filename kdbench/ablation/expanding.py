"""From a ladder to the runs of all its steps: variants of one method, which differ as the ladder declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdbench.ablation.differences import Difference, differences, refusals
from kdbench.config.ladders import Ladder
from kdbench.config.loading import load_anchor
from kdbench.config.presets import as_settings, whole
from kdbench.errors import ConfigError, ProblemList, unknown
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.spec import RunSpec


@dataclass(frozen=True)
class Ablation:
    """A ladder with the runs of its steps.

    Args:
        ladder: The ladder.
        plan: All runs, step by step.
        found: What each step changes.
    """

    ladder: Ladder
    plan: Plan
    found: tuple[Difference, ...]

    def specs(self, step: str) -> list[RunSpec]:
        """Return the runs of a step."""
        return [spec for spec in self.plan.runs if spec.variant == variant_of(self.ladder, step)]


def variant_of(ladder: Ladder, step: str) -> str:
    """Return the variant that the runs of a step are stored as."""
    return f"{ladder.name}.{step}"


def ladder_of(method: str, name: str | None, registry: Registry) -> Ladder:
    """Return the ladder of that name; without one the method's default, or its only one.

    Raises:
        ConfigError: If there is no such method or ladder, or no telling which one is meant.
    """
    if method not in registry.methods:
        raise ConfigError(unknown("method", method, registry.methods))
    own = {ladder.name: ladder for ladder in registry.ladders.values() if ladder.method == method}
    known = f"its ladders: {', '.join(own) or 'none'} (kdbench list ladders)"
    if name is not None:
        if name not in own:
            raise ConfigError(f"--ladder {name}: method '{method}' has no ladder of that name; {known}")
        return own[name]
    chosen = [ladder for ladder in own.values() if ladder.default or len(own) == 1]
    if len(chosen) != 1:
        raise ConfigError(f"method '{method}': --ladder is needed, no default can be told; {known}")
    return chosen[0]


def expand(ladder: Ladder, request: Request, registry: Registry) -> Ablation:
    """Return the runs of all steps.

    Args:
        ladder: The ladder.
        request: Pair, seeds, dataset and settings that hold for every step; its methods are not looked at.
        registry: Loaded plugins.

    Raises:
        ProblemList: With everything that is wrong with it, and every step that is not what it declares.
    """
    if len(request.pairs) != 1 or request.pairs == ("all",):
        raise ConfigError(f"--pair {','.join(request.pairs)}: an ablation is of one pair; name one")
    anchor = load_anchor(request.anchor, registry.anchors.as_mapping())
    presets = registry.presets.as_mapping()
    options_type = registry.methods[ladder.method].options_type
    plans: dict[str, Plan] = {}
    problems: dict[str, list[str]] = {}
    for step in ladder.steps:
        try:
            options = ladder.options_of(
                step.name, (anchor.name, *anchor.lineage), presets, where=f"ladder '{ladder.label}'"
            )
            settings = (*as_settings(ladder.method, whole(options, options_type)), *request.settings)
            asked = replace(request, methods=(ladder.method,), settings=settings, variant=variant_of(ladder, step.name))
            plans[step.name] = make_plan(asked, registry)
        except ConfigError as error:
            for problem in getattr(error, "problems", (str(error),)):
                problems.setdefault(problem, []).append(step.name)
    if problems:
        raise ProblemList(_told(ladder, problems))
    found = differences(ladder, {name: plan.runs[0] for name, plan in plans.items()})
    if refused := list(refusals(ladder, found)):
        raise ProblemList(refused)
    return Ablation(ladder, _merged(list(plans.values())), tuple(found))


def _told(ladder: Ladder, problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each problem once, with the steps that have it unless all have."""
    return [
        problem if len(steps) == len(ladder.steps) else f"ladder '{ladder.label}': {', '.join(steps)}: {problem}"
        for problem, steps in problems.items()
    ]


def _merged(plans: Sequence[Plan]) -> Plan:
    passes = {cell: cost for plan in plans for cell, cost in plan.passes.items()}
    return replace(plans[0], runs=tuple(run for plan in plans for run in plan.runs), passes=passes)
