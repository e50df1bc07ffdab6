"""Conformance kit: does a method plugin keep its side of the contract?

The kit trains the method for a few steps on tiny real networks (CPU, one thread, under a second) and checks what a
method alone can break. What the trainer guarantees is tested there. In a plugin's tests::

    import pytest
    from kdbench.testing import METHOD_CHECKS

    @pytest.mark.parametrize("name", METHOD_CHECKS)
    def test_conformance(name):
        METHOD_CHECKS[name](MyMethod)

or, for a report, ``check_method(MyMethod)``.
"""

from __future__ import annotations

import traceback

from kdbench.errors import FAULTS
from kdbench.method import AnyMethod
from kdbench.testing.behaviour import (
    check_batch_unchanged,
    check_deploy,
    check_extreme_logits,
    check_mixed_images,
    check_same_seed,
    check_teacher_unchanged,
)
from kdbench.testing.bench import PAIR, Bench
from kdbench.testing.declarations import (
    check_deviations,
    check_name,
    check_options,
    check_source,
    check_supports,
)
from kdbench.testing.division import check_distributed
from kdbench.testing.failure import CheckFailure
from kdbench.testing.outcome import METHOD_CHECKS as _REGISTERED
from kdbench.testing.outcome import STRUCTURAL, Check, CheckResult
from kdbench.testing.resume import check_resume
from kdbench.testing.structure import check_builds, check_gradient, check_interludes, check_losses, check_phases
from kdbench.types import Pair

# In the order in which failures are best repaired: what a method says of itself, its structure, then its behaviour.
_ORDER = [
    "name",
    "source",
    "options",
    "deviations",
    "supports",
    "builds",
    "phases",
    "losses",
    "gradient",
    "interludes",
    "extreme_logits",
    "batch_unchanged",
    "teacher_unchanged",
    "same_seed",
    "mixed_images",
    "distributed",
    "resume",
    "deploy",
]
METHOD_CHECKS: dict[str, Check] = {name: _REGISTERED[name] for name in _ORDER}

__all__ = [
    "METHOD_CHECKS",
    "PAIR",
    "CheckFailure",
    "CheckResult",
    "check_batch_unchanged",
    "check_builds",
    "check_deploy",
    "check_deviations",
    "check_distributed",
    "check_extreme_logits",
    "check_gradient",
    "check_interludes",
    "check_losses",
    "check_method",
    "check_mixed_images",
    "check_name",
    "check_options",
    "check_phases",
    "check_resume",
    "check_same_seed",
    "check_source",
    "check_supports",
    "check_teacher_unchanged",
]


def check_method(method_class: type[AnyMethod], *, pair: Pair | None = None) -> list[CheckResult]:
    """Run all checks on a method; the first structural failure ends the list.

    Args:
        method_class: The method class, as the plugin's hook returns it.
        pair: Registered backbones to try it on, for a method that does not support CIFAR ResNets of 3 stages.

    Returns:
        One result per check that ran, in the order of ``METHOD_CHECKS``.

    Raises:
        ConfigError: If the pair names a backbone that is not registered.
    """
    if pair is not None:
        Bench(method_class, pair)  # a wrong pair is the caller's fault, not the method's
    results: list[CheckResult] = []
    for name, check in METHOD_CHECKS.items():
        results.append(_result(name, check, method_class, pair))
        if not results[-1].ok and name in STRUCTURAL:
            break
    return results


def _result(name: str, check: Check, method_class: type[AnyMethod], pair: Pair | None) -> CheckResult:
    try:
        check(method_class, pair)
    except CheckFailure as failure:
        return CheckResult(name, ok=False, message=str(failure))
    except FAULTS as error:  # whatever the plugin raises is its failure
        last = traceback.extract_tb(error.__traceback__)[-1]
        raised = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno}, in {last.name})"
        advice = f"kdbench.testing.check_{name}({method_class.__name__}) shows the traceback"
        return CheckResult(name, ok=False, message=f"{method_class.__name__}: raised {raised}; {advice}")
    return CheckResult(name, ok=True)
