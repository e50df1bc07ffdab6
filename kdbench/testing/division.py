"""Check of what a method says about several devices: losses of a batch are those of its parts, or it says otherwise."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdbench.method import Batch, Mix, Viewed, total
from kdbench.modes import evaluating
from kdbench.testing.bench import BATCH, Bench, Place, Run
from kdbench.testing.failure import CheckFailure
from kdbench.testing.outcome import check
from kdbench.testing.structure import losses_name

DECLARED = (None, "slices", "gathered")
TOLERANCE = 1e-4  # relative; rounding is far below it


@check()
def check_distributed(bench: Bench) -> None:
    """Where a method says that devices may compute its losses of their own images, those of a batch are their mean."""
    declared = bench.method_type.distributed
    if declared not in DECLARED:
        raise CheckFailure(
            f"{bench}: distributed is {declared!r}; set it to 'slices' (each loss is a mean over images), 'gathered' "
            "(losses see the whole batch), or None (runs on several devices are refused)"
        )
    if declared != "slices":
        return
    for place in bench.start().places():
        run = bench.start()
        batch = run.batch(place, mixed=True)
        halves = [_rows(batch, slice(0, BATCH // 2)), _rows(batch, slice(BATCH // 2, BATCH))]
        whole, parts = _loss(run, place, batch), [_loss(run, place, half) for half in halves]
        if _loss(run, place, batch, seed=1) != whole:
            continue  # it draws random numbers, and other ones for each part
        mean = sum(parts) / len(parts)
        if abs(mean - whole) > TOLERANCE * max(abs(whole), 1.0):
            raise CheckFailure(
                f"{bench}: distributed is 'slices', but {losses_name(run, place)} of a batch are {whole:.6g} and the "
                f"mean of those of its halves is {mean:.6g}; losses that compare images, or are no mean over them, "
                "need distributed = 'gathered'"
            )


def _loss(run: Run, place: Place, batch: Batch, seed: int = 0) -> float:
    """Return the loss of a batch; in eval mode, as devices share what BatchNorm measures."""
    torch.manual_seed(seed)
    with torch.no_grad(), evaluating(run.method):
        return total(run.losses(place, batch)).item()


def _rows(batch: Batch, part: slice) -> Batch:
    views = tuple(
        Viewed(view.images[part], view.student.rows(part), tuple(one.rows(part) for one in view.teachers))
        for view in batch.views
    )
    return replace(
        batch,
        images=batch.images[part],
        labels=batch.labels[part],
        index=batch.index[part],
        student=batch.student.rows(part),
        teachers=tuple(one.rows(part) for one in batch.teachers),
        mix=None if batch.mix is None else Mix(batch.mix.labels[part], batch.mix.share),
        views=views,
    )
