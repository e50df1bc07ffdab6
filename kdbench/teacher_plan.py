"""From ``kdbench teacher train`` to dataset and protocol, or everything that is wrong with the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdbench.config.loading import load_anchor
from kdbench.config.recipes import TeacherRecipe, from_scratch, load_recipe
from kdbench.config.schema import Anchor
from kdbench.errors import ConfigError, Problems, unknown
from kdbench.opening import open_whole
from kdbench.plan import check_warmup
from kdbench.registry import Registry
from kdbench.spec import DatasetRef

DEFAULT_ANCHOR = "fair_baseline"


@dataclass(frozen=True)
class TeacherRequest:
    """A training of a teacher as the user asked for it.

    Args:
        backbone: What to train.
        dataset: On what: a name, or with a path as in ``npz:PATH``.
        per_class: Training images kept per class.
        recipe: Name or file of a recipe.
        anchor: Name or file of an anchor, instead of a recipe.
        scratch: Whether to start from random weights where the recipe takes pretrained ones.
        data_root: Where datasets live.
    """

    backbone: str
    dataset: str
    per_class: int | None = None
    recipe: str | None = None
    anchor: str | None = None
    scratch: bool = False
    data_root: Path = Path("data")


def teacher_cell(request: TeacherRequest, registry: Registry) -> tuple[DatasetRef, Anchor]:
    """Return dataset and protocol of one teacher training, checked.

    Raises:
        ProblemList: With everything that is wrong.
    """
    problems = Problems()
    network = problems.attempt(lambda: registry.backbones[request.backbone])
    protocol = problems.attempt(lambda: _protocol(request, registry))
    opened = problems.attempt(lambda: open_whole(request.dataset, request.per_class, registry, request.data_root))
    if network and opened and (reason := network.unfit(opened.info.image)):
        problems.messages.append(reason)
    check_warmup(protocol, problems)
    problems.raise_if_any()
    assert protocol is not None
    assert opened is not None
    return opened.reference, protocol


def _protocol(request: TeacherRequest, registry: Registry) -> Anchor:
    if request.recipe and request.anchor:
        raise ConfigError("--recipe and --anchor exclude each other: a recipe is the whole protocol; give one")
    recipe = None
    if request.recipe:
        recipe = _recipe_named(request.recipe, registry)
        if recipe.backbone != request.backbone:
            raise ConfigError(
                f"--recipe {request.recipe}: trains '{recipe.backbone}', not '{request.backbone}'; take another "
                "recipe (kdbench list recipes), or leave --recipe out"
            )
    elif not request.anchor:
        recipe = recipe_for(request.backbone, request.dataset, registry)
    if recipe is not None:
        protocol = recipe.anchor()
    else:
        protocol = load_anchor(request.anchor or DEFAULT_ANCHOR, registry.anchors.as_mapping())
    return from_scratch(protocol) if request.scratch else protocol


def _recipe_named(name: str, registry: Registry) -> TeacherRecipe:
    if name in registry.recipes:
        return registry.recipes[name]
    if name.endswith((".yaml", ".yml")):
        return load_recipe(Path(name))
    raise ConfigError(unknown("recipe", name, registry.recipes.as_mapping()))


def recipe_for(backbone: str, dataset: str, registry: Registry) -> TeacherRecipe | None:
    """Return the registered recipe of a backbone and a dataset, if there is one; a dataset's path does not matter.

    Raises:
        ConfigError: If there are several.
    """
    kind = dataset.partition(":")[0]
    found = [recipe for recipe in registry.recipes.values() if (recipe.backbone, recipe.dataset) == (backbone, kind)]
    if len(found) > 1:
        names = ", ".join(recipe.name for recipe in found)
        raise ConfigError(f"backbone '{backbone}' has several recipes for '{kind}': {names}; choose one by --recipe")
    return found[0] if found else None
