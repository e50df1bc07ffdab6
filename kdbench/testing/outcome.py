"""What a check is, how it fails, and the table of all checks."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from kdbench.method import AnyMethod
from kdbench.testing.bench import Bench
from kdbench.types import Pair


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Args:
        name: Name of the check, a key of ``METHOD_CHECKS``.
        ok: Whether the method keeps this part of the contract.
        message: What is wrong and what to do; empty if ok.
    """

    name: str
    ok: bool
    message: str = ""


class Check(Protocol):
    """A check: returns nothing, or raises."""

    def __call__(self, method: type[AnyMethod], pair: Pair | None = None) -> None:
        """Check one property of a method.

        Args:
            method: The method class.
            pair: Backbones to try it on; None = tiny CIFAR ResNets, one teacher or two.

        Raises:
            CheckFailure: If the method breaks its contract.
        """


METHOD_CHECKS: dict[str, Check] = {}
STRUCTURAL: set[str] = set()  # where one of these fails, the checks after it could only repeat it


def check(*, structural: bool = False) -> Callable[[Callable[[Bench], None]], Check]:
    """Register ``check_<property>`` in ``METHOD_CHECKS`` under its property.

    Args:
        structural: Whether a failure makes all later checks meaningless.
    """

    def register(function: Callable[[Bench], None]) -> Check:
        @functools.wraps(function)
        def run(method: type[AnyMethod], pair: Pair | None = None) -> None:
            with _undisturbed():
                function(Bench(method, pair))

        name = function.__name__.removeprefix("check_")
        METHOD_CHECKS[name] = run
        STRUCTURAL.update({name} if structural else ())
        return run

    return register


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run on one thread, and leave threads and random states of the process as they were."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numpy)
