"""Bridge and head are there wherever they are needed, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.methods.asib.method import ASIB
from kdbench.methods.asib.options import ASIBOptions
from kdbench.testing.bench import TWO_TEACHERS, Bench

PLAIN = {"use_distillation_adapter": True, "distill_out_dim": 8, "ib_mbm_out_dim": 8}


@pytest.mark.parametrize(
    ("options", "built"),
    [
        ({"teacher_adapt_epochs": 1}, True),  # the A-Step alone: row 25
        ({"use_ib": True}, True),
        ({"use_ib": True, "kd_target": "synergy", "ib_epochs_per_stage": 1}, True),
        ({}, False),
        ({"kd_target": "weighted_conf"}, False),
    ],
)
def test_the_bridge_is_built_wherever_something_needs_it(options: dict[str, Any], built: bool) -> None:
    bench = Bench(ASIB, TWO_TEACHERS)
    bench.__dict__["options"] = ASIBOptions(**PLAIN, **options)
    method = bench.build()
    assert isinstance(method, ASIB)
    assert (method.bridge is not None, method.head is not None, method.has_bridge) == (built,) * 3
    for place in bench.start().places():
        run = bench.start()
        assert all(term.value.isfinite() for term in run.losses(place, run.batch(place)).values())
