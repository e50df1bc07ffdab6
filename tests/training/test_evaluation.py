"""Predictions and evaluation, against values computed by hand."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.datasets.base import Split
from kdbench.evaluation import Predictions, TestSet, evaluate, logits_of, read_predicted
from kdbench.types import Features


def predictions(predicted: list[int], labels: list[int], confidence: list[float] | None = None) -> Predictions:
    given = confidence or [1.0] * len(labels)
    return Predictions(torch.tensor(predicted), torch.tensor(labels), torch.tensor(given, dtype=torch.float64), 0, 0.0)


class Echo(nn.Module):
    """Its logits are the first pixels of the image, times 255."""

    def __init__(self, classes: int, *, as_features: bool = True) -> None:
        super().__init__()
        self.classes, self.as_features = classes, as_features
        self.norm, self.drop, self.seen = nn.BatchNorm2d(1), nn.Dropout(0.5), []  # type: ignore[var-annotated]
        self.drop.eval()

    def forward(self, images: Tensor) -> Features | Tensor:
        self.seen.append((len(images), self.training, images.dtype, torch.is_grad_enabled()))
        self.norm(images)
        logits = self.drop(images.flatten(1)[:, : self.classes] * 255)
        return Features(logits) if self.as_features else logits


def split_of(logits: list[list[int]], labels: list[int]) -> Split:
    images = torch.zeros(len(labels), 1, 3, 4, dtype=torch.uint8)
    images.view(len(labels), -1)[:, : len(logits[0])] = torch.tensor(logits, dtype=torch.uint8)
    return Split(images, torch.tensor(labels))


def test_accuracies_come_from_integer_counts() -> None:
    made = Predictions(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), torch.ones(3, dtype=torch.float64), 2, 0.5)
    assert made.correct.tolist() == [True, True, False]
    assert made.accuracy == 100 * 2 / 3
    assert made.top5_accuracy == 100 * 2 / 3
    assert made.agreement(torch.tensor([0, 2, 2])) == 100 * 2 / 3


def test_calibration_error_by_hand() -> None:
    # Bins are (k/15, (k+1)/15]: 0.6 = 9/15 belongs to (8/15, 9/15], 0.62 and 0.65 to the next one, 1.0 to the last.
    made = predictions([0, 0, 0, 0], [0, 1, 0, 0], [0.6, 0.62, 0.65, 1.0])
    gaps = [1 - 0.6, abs((0 - 0.62) + (1 - 0.65)), 0.0]
    assert made.ece == pytest.approx(sum(gaps) / 4)
    assert predictions([0, 0], [0, 1], [1.0, 1.0]).ece == 0.5
    assert predictions([0], [0], [0.0]).ece == 1.0


def test_calibration_error_of_a_diverged_network_is_not_a_number() -> None:
    assert math.isnan(predictions([0, 0], [0, 1], [0.5, math.nan]).ece)


def test_evaluate_by_hand() -> None:
    made = evaluate(Echo(3), split_of([[2, 1, 0], [0, 3, 3], [5, 5, 6]], [0, 2, 0]), torch.device("cpu"), 2)
    assert made.predicted.tolist() == [0, 1, 2], "of equal logits the first"
    assert made.labels.tolist() == [0, 2, 0]
    e = math.e
    expected = [e**2 / (e**2 + e + 1), e**3 / (1 + 2 * e**3), e**6 / (2 * e**5 + e**6)]
    assert made.confidence.tolist() == pytest.approx(expected, rel=1e-6)
    nll = [-math.log(expected[0]), -math.log(expected[1]), -math.log(e**5 / (2 * e**5 + e**6))]
    assert made.nll == pytest.approx(sum(nll) / 3, rel=1e-6)
    assert made.confidence.dtype == torch.float64
    assert made.top5 == 3, "with three classes every label is among the best five"


def test_top5() -> None:
    logits = [[9, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7]]
    assert evaluate(Echo(7), split_of(logits, [4, 1]), torch.device("cpu"), 9).top5 == 1
    assert evaluate(Echo(7), split_of(logits, [5, 2]), torch.device("cpu"), 9).top5 == 1


def test_evaluate_leaves_the_module_as_it_was() -> None:
    module = Echo(3, as_features=False)
    assert (module.training, module.drop.training) == (True, False)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(module, split_of([[2, 1, 0]] * 5, [0] * 5), torch.device("cpu"), 2)
    assert module.seen == [(size, False, torch.float32, False) for size in (2, 2, 1)]
    assert (module.training, module.norm.training, module.drop.training) == (True, True, False)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_of_the_evaluation_changes_nothing(batch_size: int) -> None:
    split = split_of([[2, 1, 0], [0, 3, 3], [5, 5, 6]], [0, 2, 0])
    made, whole = (evaluate(Echo(3), split, torch.device("cpu"), size) for size in (batch_size, 3))
    assert (made.predicted.tolist(), made.nll, made.top5) == (whole.predicted.tolist(), whole.nll, whole.top5)


def test_logits_of() -> None:
    logits = torch.ones(2, 3)
    assert logits_of(logits) is logits
    assert logits_of(Features(logits)) is logits


@pytest.mark.parametrize("highest", [0, 9, 255, 256, 999])
def test_predictions_are_read_back(tmp_path: Path, highest: int) -> None:
    made = predictions([0, highest, 0, 0, highest, 0, 0, 0, highest], [0, 0, 0, 0, highest, 0, 1, 1, 1])
    (tmp_path / "p.npz").write_bytes(made.to_npz())
    assert read_predicted(tmp_path / "p.npz").tolist() == made.predicted.tolist()
    with np.load(io.BytesIO(made.to_npz())) as archive:
        bits = np.unpackbits(archive["correct"], count=int(archive["count"])).astype(bool)
    assert bits.tolist() == made.correct.tolist()


class Counting:
    """A source that counts how often its test split is read."""

    def __init__(self) -> None:
        self.reads = 0

    def test(self) -> Split:
        self.reads += 1
        return split_of([[2, 1, 0], [0, 3, 3]], [0, 2])


def test_the_test_split_is_read_once() -> None:
    source: Any = Counting()
    test = TestSet(source, torch.device("cpu"), 2)
    assert [test.predict(Echo(3)).accuracy for _ in range(3)] == [50.0] * 3
    assert (len(test), source.reads) == (2, 1)
