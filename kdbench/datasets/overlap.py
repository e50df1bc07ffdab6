"""``overlap:PCT,SEED,PART:DATASET``: the classes of one of two teachers whose class sets overlap by a share.

All classes are shuffled; the first share of them belongs to both teachers, and of the rest each gets half. Labels and
class names stay those of the whole dataset, so that logits of networks trained on different parts can be compared.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cached_property
from typing import Final, Literal

import torch

from kdbench.datasets.base import Dataset, DatasetInfo, Source, Split
from kdbench.datasets.checks import bad
from kdbench.datasets.identity import fingerprint
from kdbench.hooks import hookimpl

NAME = "overlap"
UNION: Final = "union"
Part = Literal[1, 2, "union"]
_PARTS: dict[str, Part] = {"1": 1, "2": 2, UNION: UNION}
_USAGE = "PCT,SEED,PART:DATASET"
_LONGEST_SLUG = 64


@hookimpl
def kdbench_datasets() -> list[Dataset]:
    """Return the wrapper."""
    what = "the classes of part 1 or 2 (or their union) of another dataset, PCT % of them common to both parts"
    return [Dataset(NAME, description=what, wrap=open_overlap, usage=_USAGE)]


def overlap_classes(count: int, pct: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sorted classes of the first and of the second part.

    With an odd rest, one class belongs to neither part.

    Args:
        count: Number of classes, >= 1.
        pct: Share of the classes in both parts, in percent, in 0..100; rounded down to whole classes.
        seed: Seed of the shuffle, >= 0.

    Source:
        Specification of the ASIB benchmark, 7.2: Python's ``random.Random(seed).shuffle`` of 0..count-1.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    common = count * pct // 100
    shared, rest, half = order[:common], order[common:], (count - common) // 2
    return tuple(sorted(shared + rest[:half])), tuple(sorted(shared + rest[half : 2 * half]))


def classes_of(part: Part, count: int, pct: int, seed: int) -> tuple[int, ...]:
    """Return the sorted classes of a part, or of both together."""
    first, second = overlap_classes(count, pct, seed)
    return {1: first, 2: second, UNION: tuple(sorted({*first, *second}))}[part]


def part_name(base: str, pct: int, seed: int, part: Part) -> str:
    """Return the name of a part of the dataset ``base``, as a user would write it."""
    return f"{NAME}:{pct},{seed},{part}:{base}"


def teacher_names(base: str, pct: int, seed: int) -> tuple[str, str]:
    """Return the names of the datasets of two teachers; with all classes in common it is the whole one for both."""
    if pct == 100:
        return base, base
    return part_name(base, pct, seed, 1), part_name(base, pct, seed, 2)


def student_name(base: str, pct: int, seed: int, count: int) -> str:
    """Return the name of the dataset of a student of both: the whole one, unless a class belongs to no teacher."""
    union = classes_of(UNION, count, pct, seed)
    return base if len(union) == count else part_name(base, pct, seed, UNION)


def open_overlap(argument: str, base: Source) -> Overlap:
    """Open a part of a dataset.

    Args:
        argument: ``PCT,SEED,PART``.
        base: The whole dataset.

    Raises:
        ConfigError: If the argument says anything else.
    """
    where = f"{NAME}:{argument}"
    remedy = f"Write: {NAME}:{_USAGE} with PCT in 0..100, SEED >= 0 and PART {', '.join(_PARTS)}"
    pct, seed, part, *more = [*argument.split(","), "", "", ""][: max(3, argument.count(",") + 1)]
    for key, text, most in (("PCT", pct, 100), ("SEED", seed, None)):
        if not (text.isascii() and text.isdigit()) or (most is not None and int(text) > most):
            raise bad(where, f"{key} is '{text}'", remedy)
    if part not in _PARTS or more:
        raise bad(where, f"PART is '{','.join([part, *more])}'", remedy)
    return Overlap(base, int(pct), int(seed), _PARTS[part])


class Overlap:
    """The images of a dataset whose class belongs to a part.

    Args:
        base: The whole dataset.
        pct, seed: As of :func:`overlap_classes`.
        part: Which of the two parts, or their union.
    """

    def __init__(self, base: Source, pct: int, seed: int, part: Part) -> None:
        self._base = base
        self._pct, self._seed, self._part = pct, seed, part

    @cached_property
    def info(self) -> DatasetInfo:
        """Describe the part; unless the dataset is known to be balanced, its labels are counted for that.

        Raises:
            ConfigError: If fewer than two classes are left.
        """
        whole, present = self._base.info, self.classes
        name = part_name(whole.name, self._pct, self._seed, self._part)
        if len(present) < 2:
            problem = f"{len(present)} of {len(whole.classes)} classes are left"
            raise bad(name, problem, "At least 2 are needed: raise PCT.")
        if whole.balanced:
            train, test = (size // whole.occurring * len(present) for size in (whole.train_size, whole.test_size))
        else:
            train, test = len(self.train()), len(self.test())
        mark = fingerprint([f"{whole.fingerprint} {','.join(map(str, present))}".encode()])
        return replace(
            whole, name=name, slug=self._slug(whole.slug, mark), train_size=train, test_size=test, fingerprint=mark,
            present=present,
        )  # fmt: skip

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """Labels of the part that the dataset has images of, sorted."""
        whole = self._base.info
        wanted = classes_of(self._part, len(whole.classes), self._pct, self._seed)
        return wanted if whole.present is None else tuple(sorted({*wanted} & {*whole.present}))

    def train(self) -> Split:
        """Return the training images of the part; they share the memory of the whole dataset's."""
        return self._of(self._base.train())

    def test(self) -> Split:
        """Return the test images of the part; they share the memory of the whole dataset's."""
        return self._of(self._base.test())

    def _of(self, split: Split) -> Split:
        return split.select(torch.isin(split.labels, torch.tensor(self.classes)).nonzero().flatten())

    def _slug(self, whole: str, mark: str) -> str:
        own = f"-overlap{self._pct}-s{self._seed}-{self._part}"
        if len(whole) + len(own) <= _LONGEST_SLUG:
            return whole + own
        own = f"-ov{self._pct}-{self._part}-{mark[:8]}"  # the mark depends on the seed, too
        return whole[: _LONGEST_SLUG - len(own)].rstrip("-.") + own
