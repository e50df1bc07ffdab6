"""Which freeze level holds in which stage (4.4)."""

from __future__ import annotations

from kdbench.backbones.freezing import FreezeLevel
from kdbench.methods.asib.options import ASIBOptions

WHO = ("student", "teacher1", "teacher2")


def freezes(options: ASIBOptions) -> bool:
    """Return whether levels hold at all."""
    return options.use_partial_freeze and not options.force_ppf_off


def schedule_of(options: ASIBOptions, who: str) -> tuple[int, ...]:
    """Return the level of each stage, as given.

    Args:
        options: The method's options.
        who: ``student``, ``teacher1``, or ``teacher2`` (all teachers but the first).
    """
    given: tuple[int, ...] | None = getattr(options, f"{who}_freeze_level_schedule")
    if given is not None:
        return given
    level: int = getattr(options, f"{who}_freeze_level")
    return (level,) * options.num_stages


def level_of(options: ASIBOptions, who: str, stage: int) -> FreezeLevel:
    """Return how much trains in a 0-based stage; everything where levels do not hold."""
    if not freezes(options):
        return FreezeLevel()
    return FreezeLevel(schedule_of(options, who)[stage], getattr(options, f"{who}_freeze_bn"))
