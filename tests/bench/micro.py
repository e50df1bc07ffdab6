"""The small parts by themselves, timed by pytest-benchmark: ``python tests/bench/micro.py``.

Also a test file for ``pytest tests/bench/micro.py``, with pytest-benchmark's options; ``make test`` does not run it.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))  # as a script and under pytest alike

from workbench import CPU, random_split

from kdbench import stats
from kdbench.config.loading import load_anchor
from kdbench.losses import cross_entropy, kd_loss
from kdbench.registry import load
from kdbench.training.inputs import BatchStream

CLASSES, SEEDS = 100, 10


def protocol_stream(anchor: str) -> BatchStream:
    registry = load()
    data = load_anchor(anchor, registry.anchors.as_mapping()).data
    return BatchStream(random_split(10_240), data, 0, CPU, mirror=True)


def scores(methods: int) -> dict[str, dict[int, float]]:
    draws = random.Random(0)
    return {
        f"method_{index}": {seed: 70 + index / 10 + draws.gauss(0, 0.3) for seed in range(SEEDS)}
        for index in range(methods)
    }


@pytest.mark.parametrize("anchor", ["crd", "fair_baseline"])
def test_batch(benchmark: BenchmarkFixture, anchor: str) -> None:
    """One batch of the anchor's size, cropped and flipped; fair_baseline's are mixed, too."""
    stream = protocol_stream(anchor)
    stream.start_epoch(0)
    benchmark(stream.batch, 0, 0)


def test_start_of_an_epoch(benchmark: BenchmarkFixture) -> None:
    """Everything random of an epoch of 10,240 images."""
    stream = protocol_stream("fair_baseline")
    benchmark(stream.start_epoch, 0)


@pytest.mark.parametrize("loss", ["cross_entropy", "kd"])
def test_loss(benchmark: BenchmarkFixture, loss: str) -> None:
    """Value and gradient at batch 128."""
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(128, CLASSES, generator=draws, requires_grad=True)
    target, labels = torch.randn(128, CLASSES, generator=draws), torch.randint(CLASSES, (128,), generator=draws)

    def step() -> None:
        logits.grad = None
        value = cross_entropy(logits, labels, label_smoothing=0.05) if loss != "kd" else kd_loss(logits, target, 4.0)
        value.backward()

    benchmark(step)


def test_paired_difference(benchmark: BenchmarkFixture) -> None:
    """Two methods over ten seeds."""
    first, second = scores(2).values()
    benchmark(stats.paired_difference, first, second)


def test_bold_set(benchmark: BenchmarkFixture) -> None:
    """The analysis of variance of 50 methods over ten seeds, and the honest difference of their means."""
    blocks = stats.complete_blocks(scores(50))
    benchmark(lambda: stats.honest_difference(stats.blocked_anova(blocks)))


def main() -> None:
    """Run the file under pytest and report its medians."""
    from report_lines import Sheet

    with (
        Sheet("micro", "Small parts", "Medians of pytest-benchmark.") as sheet,
        tempfile.TemporaryDirectory() as folder,
    ):
        out = Path(folder) / "micro.json"
        options = ["-q", "-p", "no:xdist", "--benchmark-disable-gc", f"--benchmark-json={out}"]
        if status := pytest.main([__file__, *options]):
            sys.exit(int(status))
        for found in json.loads(out.read_text(encoding="utf-8"))["benchmarks"]:
            name = found["name"].removeprefix("test_").replace("_", " ")
            sheet.add(name, 1e6 * found["stats"]["median"], unit="us")


if __name__ == "__main__":
    main()
