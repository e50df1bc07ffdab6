"""Which artefact teaches a run: the one made by the anchor's own recipe, unless others are asked for by name."""

from __future__ import annotations

from kdbench.config.schema import Anchor
from kdbench.spec import RunSpec

TEACHER_SEED = 0  # one teacher per recipe: students' seeds must not change it


def path_name(backbone: str) -> str:
    """Return a backbone's name as it stands in paths, which have no colon."""
    return backbone.replace(":", "-")


def recipe_name(backbone: str, anchor: Anchor, seed: int = TEACHER_SEED) -> str:
    """Return the name of the artefact that a recipe makes."""
    return f"{path_name(backbone)}-{anchor.label}-seed{seed}"


def artefact_names(spec: RunSpec) -> tuple[str, ...]:
    """Return the artefact names of a run's teachers, in the order of its pair."""
    return spec.teacher_names or tuple(recipe_name(backbone, spec.anchor) for backbone in spec.teachers)
