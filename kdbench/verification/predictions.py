"""Accuracies against the predictions they were counted from, and the predictions of all runs against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.archives import LARGEST, read_arrays
from kdbench.records import Record
from kdbench.store import PREDICTIONS, RECORD
from kdbench.verification.bundle import Bundle, Run
from kdbench.verification.report import Check, counted

_RESTORE = "bring back the published file, or publish the board again"


@dataclass(frozen=True)
class Answers:
    """What a run said about each test image.

    Args:
        correct: Whether it was right, bool (N,).
        predicted: The class it said, int64 (N,).
    """

    correct: NDArray[np.bool_]
    predicted: NDArray[np.int64]


def check_accuracy(bundle: Bundle, runs: Sequence[Run]) -> tuple[dict[str, Answers], Check]:
    """Return the runs' predictions by place, and whether they give the recorded accuracies and fit together."""
    problems: list[str] = []
    read: dict[str, Answers] = {}
    scored = [run for run in runs if run.record is not None and run.record.accuracy is not None]
    for run in scored:
        assert run.record is not None
        path = run.path / PREDICTIONS
        if path.relative_to(bundle.root).as_posix() not in bundle.files:
            problems.append(f"{path}: missing; a run with an accuracy has its predictions; {_RESTORE}")
            continue
        answers, found = recount(run.path, run.record)
        problems += [f"{problem}; {_RESTORE}" for problem in found]
        if answers is not None:
            read[run.place] = answers
    images = 0
    for members in _of_one_test_set(scored, read):
        labels, contradictions = _contradictions(members)
        images += labels
        problems += contradictions
    said = (
        f"counted again in {counted(len(read), 'run')}, labels of {counted(images, 'test image')} compared between them"
    )
    return read, Check("accuracy", said, problems)


def recount(folder: Path, record: Record) -> tuple[Answers | None, list[str]]:
    """Return the predictions in a run's folder, None if they cannot be read, and what is wrong with them or its record.

    Args:
        folder: The run's folder.
        record: Its record, with an accuracy.
    """
    path = folder / PREDICTIONS
    try:
        answers = read_answers(path, record.classes)
    except (ValueError, OSError) as error:
        return None, [f"{path}: not predictions of kdbench ({error}); expected are those of the run"]
    right, count = int(answers.correct.sum()), len(answers.correct)
    last = record.accuracy.last if record.accuracy else None
    if last == 100 * right / count:  # both come from the same integers, so that nothing may differ
        return answers, []
    return answers, [
        f"{folder / RECORD}: accuracy.last is {last}, its predictions give {100 * right / count} ({right} of {count})"
    ]


def read_answers(path: Path, classes: int) -> Answers:
    """Return the predictions of a run.

    Args:
        path: File written by ``kdbench.evaluation.Predictions.to_npz``.
        classes: Classes of its dataset.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If its arrays are not what they should be.
    """
    packed, predicted, total = read_arrays(path, ("correct", "predicted", "count"), LARGEST).values()
    if total.shape != () or not np.issubdtype(total.dtype, np.integer) or total < 1:
        raise ValueError("its count is no positive integer")
    count = int(total)
    _expect("predicted", predicted, (count,), np.integer)
    _expect("correct", packed, ((count + 7) // 8,), np.uint8)
    if predicted.min() < 0 or predicted.max() >= classes:
        raise ValueError(f"it names class {max(predicted.max(), -predicted.min())} of {classes}")
    return Answers(np.unpackbits(packed, count=count).astype(bool), predicted.astype(np.int64))


def _expect(name: str, array: NDArray[Any], shape: tuple[int, ...], kind: type[Any]) -> None:
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"its {name} is {array.dtype} {array.shape}, expected are {kind.__name__}s {shape}")


def _of_one_test_set(runs: Sequence[Run], read: Mapping[str, Answers]) -> list[list[tuple[Run, Answers]]]:
    """Return the runs that saw the same test images: those of one dataset, with as many answers."""
    groups: dict[tuple[str, int], list[tuple[Run, Answers]]] = {}
    for run in runs:
        if (answers := read.get(run.place)) is not None:
            groups.setdefault((run.spec.dataset.fingerprint, len(answers.correct)), []).append((run, answers))
    return [groups[key] for key in sorted(groups)]


def _contradictions(members: Sequence[tuple[Run, Answers]]) -> tuple[int, list[str]]:
    """Return how many labels the runs reveal, and which runs say of an answer what others deny.

    Whoever is right has said the label. So without the dataset, too, two runs cannot both be right with different
    classes, nor one right and one wrong with the same: one of them has changed predictions. The run that contradicts
    most is named first and then left out, so that the others are not blamed for its answers.
    """
    runs = [answers for _, answers in members]
    against = np.array([[int(_contrary(one, other).sum()) for other in runs] for one in runs])
    problems: list[str] = []
    while against.any():
        worst = int(against.sum(axis=1).argmax())
        others = counted(int(np.count_nonzero(against[worst])), "other run")
        other = int(against[worst].argmax())
        image = int(_contrary(runs[worst], runs[other]).argmax())
        mine, theirs = (
            f"class {run.predicted[image]} as {_word(run.correct[image])}" for run in (runs[worst], runs[other])
        )
        problems.append(
            f"{members[worst][0].path / PREDICTIONS}: contradicts {others}, most of all that in "
            f"{members[other][0].path} on {counted(int(against[worst, other]), 'test image')}: it counts {mine} for "
            f"image {image}, the other {theirs}; {_RESTORE}"
        )
        against[worst], against[:, worst] = 0, 0
    return int(np.logical_or.reduce([run.correct for run in runs]).sum()), problems


def _contrary(one: Answers, other: Answers) -> NDArray[np.bool_]:
    """Return on which images two runs cannot both be right about being right, bool (N,)."""
    same = one.predicted == other.predicted
    found: NDArray[np.bool_] = np.where(same, one.correct != other.correct, one.correct & other.correct)
    return found


def _word(correct: np.bool_) -> str:
    return "right" if correct else "wrong"
