"""What of a plan is left to do, as its stores say; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdbench.artefacts import TeacherStore
from kdbench.errors import ConfigError
from kdbench.records import Corrupt
from kdbench.spec import RunSpec
from kdbench.store import RunStore
from kdbench.training.teachers import Recipe, recipes_of

TO_DO = "to do"


@dataclass(frozen=True)
class Outstanding:
    """What of a plan is left.

    Args:
        runs: Runs without a result, in plan order.
        teachers: Recipes of the teachers they need and that are missing.
        states: How each run of the plan stands, by its id, in words.
    """

    runs: tuple[RunSpec, ...]
    teachers: tuple[Recipe, ...]
    states: Mapping[str, str]


def outstanding(
    specs: Sequence[RunSpec], runs: RunStore, teachers: TeacherStore, *, retry_failed: bool = False
) -> Outstanding:
    """Return what is left of some runs; what is damaged counts as missing: it is set aside and made again.

    Args:
        specs: All runs of the plan.
        runs: Where their results are.
        teachers: Where the teachers are.
        retry_failed: Whether runs that failed for outside reasons are to do, too.

    Raises:
        StoreError: If a file cannot be read, or a newer kdbench wrote it.
        ConfigError: If there is a teacher of a recipe's name that another one made.
    """
    states = {spec.run_id: _state(spec, runs, retry_failed=retry_failed) for spec in specs}
    todo = tuple(spec for spec in specs if states[spec.run_id].startswith(TO_DO))
    return Outstanding(todo, tuple(missing_teachers(todo, teachers)), states)


def _state(spec: RunSpec, store: RunStore, *, retry_failed: bool) -> str:
    try:
        record = store.folder(spec.run_id).peek()
    except Corrupt:
        return f"{TO_DO} (damaged record)"
    if record is None:
        return TO_DO
    return f"{TO_DO} again" if retry_failed and record.status == "infra_failed" else record.status


def missing_teachers(specs: Sequence[RunSpec], store: TeacherStore) -> list[Recipe]:
    """Return the recipes of teachers that runs need and the store lacks, or has damaged.

    Raises:
        ConfigError: If the store has an artefact of that name from another recipe.
    """
    missing = []
    for recipe in recipes_of(specs):
        if not store.exists(recipe.dataset, recipe.name) or store.is_damaged(recipe.dataset, recipe.name):
            missing.append(recipe)
        else:
            store.made_by(recipe.dataset, recipe.name, recipe.anchor.sha256)
    return missing


def refuse_missing(teachers: Sequence[Recipe]) -> None:
    """Raise the error of a command that may not train what is missing.

    Raises:
        ConfigError: If there is any.
    """
    if teachers:
        names = ", ".join(f"{recipe.name} for {recipe.dataset.label}" for recipe in teachers)
        raise ConfigError(
            f"teachers missing: {names}; leave out --no-train-teachers, or make them with kdbench teacher train"
        )
