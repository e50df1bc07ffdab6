"""The student alone: what distillation has to beat."""

from __future__ import annotations

from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod, Supervised


class Student(Supervised):
    """The student trained on labels alone, under the same protocol."""

    name = "student"
    baseline = True


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register the baseline without a teacher."""
    return [Student]
