"""What the cache will do for the runs of a plan: said before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.options import apply_deviations
from kdbench.plan import Plan
from kdbench.spec import RunSpec
from kdbench.training.crops import Crops
from kdbench.training.teacher_cache.applies import why_live, why_not
from kdbench.training.teacher_cache.entries import HEADER, entry_bytes
from kdbench.training.teacher_cache.place import CachePlace, gibibytes


@dataclass(frozen=True)
class Outlook:
    """What the cache does for some methods on a pair.

    Args:
        pair: Name of the pair.
        methods: Rows it holds for.
        reason: Why their teachers run live; empty = they need not.
        size: Bytes on disk once every crop was seen.
        views: Whether they have views of their own, of which nothing is kept.
    """

    pair: str
    methods: tuple[str, ...]
    reason: str
    size: int
    views: bool

    def __str__(self) -> str:
        kept = f"kept, at most {gibibytes(self.size)} on disk{'; their views run live' if self.views else ''}"
        said = f"live, {self.reason}" if self.reason else kept
        return f"teacher cache on {self.pair}: {', '.join(self.methods)}: {said}"


def outlooks(plan: Plan, place: CachePlace, device: str) -> list[Outlook]:
    """Return what the cache does for the cells of a plan; those for which it does the same stand together.

    Args:
        plan: The plan.
        place: Where outputs are kept.
        device: Type of the device.
    """
    alike: dict[tuple[str, str, int, bool], list[str]] = {}
    for spec in {(spec.pair, spec.row): spec for spec in plan.runs}.values():
        reason, size = _of(spec, plan, place, device)
        views = not reason and plan.passes[spec.pair, spec.row].inputs > 1
        alike.setdefault((spec.pair, reason, size, views), []).append(spec.row)
    return [Outlook(pair, tuple(rows), reason, size, views) for (pair, reason, size, views), rows in alike.items()]


def _of(spec: RunSpec, plan: Plan, place: CachePlace, device: str) -> tuple[str, int]:
    """Return why the first teacher of a cell that runs live does, or '', and the bytes of what is kept."""
    passes, anchor = plan.passes[spec.pair, spec.row], apply_deviations(spec.anchor, spec.deviations)
    if not passes.taps:
        return "the shared teachers are not asked", 0
    if reason := why_not(anchor, device):
        return reason, 0
    info, item = plan.infos[spec.pair], 2 if anchor.step.teacher_cache == "half" else 4
    crops = Crops.of(anchor.data, info.image.height, mirror=plan.datasets[spec.pair].mirror)
    entries, size = plan.train_sizes[spec.pair] * crops.count, 0
    for teacher, taps in zip(info.teachers, passes.taps, strict=True):
        if reason := why_live(taps):
            return f"{reason} of {teacher.name}", 0
        widths = (teacher.classes, *((teacher.embedding,) if taps.embedding else ()))
        size += sum(HEADER + entries * entry_bytes(width, item) for width in widths)
    if size > place.size:
        return f"the outputs take {gibibytes(size)}, more than --cache-size {gibibytes(place.size)}", 0
    return "", size
