"""Boards of noise: their stars and bold sets are those whose error rates tests/stats/test_simulations.py measures."""

from __future__ import annotations

import numpy as np
from judged_boards import arm, judged

from kdbench.stats import bold_set, compare_with_baseline, with_stars

METHODS, SEEDS, BOARDS = 8, 5, 12
NAMES = ("alone", "plain", *(f"m{index}" for index in range(METHODS - 2)))


def test_boards_give_the_simulated_stars_and_bold_sets() -> None:
    random = np.random.default_rng(7)
    stars, sizes = 0, set()
    for board in range(BOARDS):
        spread = 0.1 + 0.1 * (board % 3)
        values = np.round(
            70 + np.linspace(0, board / 10, METHODS)[:, None] + random.normal(0, spread, (METHODS, SEEDS)), 2
        )
        scores = {name: dict(enumerate(row.tolist())) for name, row in zip(NAMES, values, strict=True)}
        table = judged([cell for name, runs in scores.items() for cell in arm(name, *runs.values())]).tables[0]
        best = bold_set(scores, planned=SEEDS)
        assert {row.method for row in table.rows if row.bold} == set(best.bold)
        for index, baseline in enumerate(("alone", "plain")):
            expected = with_stars(compare_with_baseline(scores, baseline, planned=SEEDS))
            starred = {row.method for row in table.rows if row.gains[index].star}
            assert starred == {comparison.method for comparison in expected if comparison.star}
            stars += len(starred)
        sizes.add(len(best.bold))
    assert stars > 5
    assert len(sizes) > 2
