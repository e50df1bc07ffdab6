"""Teacher recipes: files that say how a backbone becomes a teacher of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdbench.config.loading import read_yaml, validate
from kdbench.config.pairs import Names
from kdbench.config.schema import (
    Anchor,
    Data,
    Evaluation,
    Fraction,
    Name,
    Optimizer,
    Schedule,
    Section,
    Step,
    Stopping,
)
from kdbench.errors import ConfigError, ProblemList, unknown
from kdbench.hooks import hookimpl

_HERE = Path(__file__).parent
_SECTIONS = ("optimizer", "schedule", "data", "step", "evaluation", "stopping")


class RecipeLoss(Section):
    """The supervised term, which is all the loss a teacher has."""

    ce_label_smoothing: Fraction = Field(0.0, description="label smoothing")


class TeacherRecipe(Section):
    """The keys of a recipe file; sections of an anchor mean what they mean there."""

    name: Name
    version: int = Field(1, ge=1)
    description: str = ""
    backbone: str = Field(description="backbone it trains")
    dataset: Annotated[str, Field(pattern=r"^[^:]+$")] = Field(
        description="registered dataset it was made for, without a path"
    )
    pretrained: bool = Field(False, description="start from the backbone's pretrained weights, not from random ones")
    loss: RecipeLoss = RecipeLoss()
    optimizer: Optimizer
    schedule: Schedule
    data: Data
    step: Step = Step()
    evaluation: Evaluation = Evaluation()
    stopping: Stopping = Stopping()

    def anchor(self, where: str = "") -> Anchor:
        """Return the recipe as the protocol of a run without teachers.

        Args:
            where: What messages call it.

        Raises:
            ProblemList: If its sections do not fit together.
        """
        tree: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "pretrained": self.pretrained,
            "loss": {"ce_alpha": 1.0, "kd_alpha": 0.0, "ce_label_smoothing": self.loss.ce_label_smoothing},
            **{name: getattr(self, name).model_dump() for name in _SECTIONS},
        }
        return validate(Anchor, tree, where or f"recipe {self.name}")


def from_scratch(anchor: Anchor) -> Anchor:
    """Return a protocol for pretrained weights as one for random weights, under a name of its own.

    Raises:
        ConfigError: If it starts from random weights anyway.
    """
    if not anchor.pretrained:
        raise ConfigError(f"--scratch: '{anchor.name}' starts from random weights anyway; leave --scratch out")
    tree = {**anchor.model_dump(), "name": f"{anchor.name}-scratch", "pretrained": False}
    return validate(Anchor, tree, f"recipe {anchor.name} with --scratch")


def load_recipe(path: Path) -> TeacherRecipe:
    """Return the recipe a file holds.

    Raises:
        ConfigError: If the file is wrong.
    """
    recipe = validate(TeacherRecipe, read_yaml(path), str(path))
    recipe.anchor(str(path))
    return recipe


def check_names(recipe: TeacherRecipe, path: Path, backbones: Names, datasets: Names) -> None:
    """Refuse a recipe for what is not registered.

    Raises:
        ProblemList: Naming the backbone or dataset, and the nearest one there is.
    """
    named = (("backbone", recipe.backbone, backbones), ("dataset", recipe.dataset, datasets))
    if problems := [
        unknown(key, name, known, where=f"{path}: {key}") for key, name, known in named if name not in known
    ]:
        raise ProblemList(problems)


@hookimpl
def kdbench_recipes() -> list[Path]:
    """Register the recipe files that ship with kdbench."""
    return sorted((_HERE / "teachers").glob("*.yaml"))
