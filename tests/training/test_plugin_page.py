"""The example of phases in docs/plugins.md is a method that works: on the kit, in a plan, and in a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdbench import registry as registries
from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod, check_phases
from kdbench.registry import Registry
from kdbench.testing import METHOD_CHECKS
from kdbench.testing.bench import Bench
from kdbench.training.trainer import Interrupted

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


@cache
def example() -> Any:
    """Return the example's class, made from the page as it stands there."""
    section = PAGE.read_text(encoding="utf-8").partition("### An example with all of it\n")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section.partition("\n### ")[0], re.DOTALL | re.MULTILINE)
    module = ModuleType("plugin_page_example")
    sys.modules[module.__name__] = module  # where pydantic looks annotations up
    exec(compile(code, str(PAGE), "exec"), vars(module))
    return module.Relay


@hookimpl
def kdbench_methods() -> Iterable[type[AnyMethod]]:
    return [example()]


@cache
def _registry(toys: Any) -> Registry:
    return registries.load(extra=[toys, sys.modules[__name__]])


@pytest.fixture
def lab(lab: Any, toys: Any) -> Any:
    lab.place = replace(lab.place, registry=_registry(toys))
    return lab


@pytest.mark.parametrize("check", METHOD_CHECKS)
def test_the_example_passes_the_kit(check: str) -> None:
    METHOD_CHECKS[check](example())


def test_the_example_trains_as_the_page_says(lab: Any) -> None:
    spec, plain = lab.spec("relay", "probe_lr=0.02", "probe_epochs=2"), lab.spec("student")
    together = lab.train([spec, plain], "together")
    history = together[0].lane.history
    fit0, fit1 = [("fit0", 0, None), ("fit0", 1, None)], [("fit1", 0, None), ("fit1", 1, None)]
    expected = [*fit0, ("teach0", 0, 0), *fit1, ("teach1", 0, 1), ("teach1", 1, 2)]
    assert [(report.phase, report.epoch, report.student_epoch) for report in history] == expected
    fits = [report for report in history if report.phase.startswith("fit")]
    assert all({"probe_acc", "probe_validation_acc"} < set(report.metrics) for report in fits)
    assert fits[-1].metrics["probe_validation_acc"] > fits[0].metrics["probe_validation_acc"]  # the probe goes on
    rates = [report.learning_rate for report in history if report.phase.startswith("teach")]
    assert rates == [report.learning_rate for report in together[1].lane.history]
    assert lab.digest_after(spec, "alone") == lab.digest(together[0].lane)


def test_stopped_in_every_epoch_it_ends_in_the_same_bits(lab: Any) -> None:
    spec = lab.spec("relay")
    (whole,) = lab.train([spec], "whole")
    for _ in whole.lane.history:
        with pytest.raises(Interrupted):
            lab.train([spec], "parts", should_stop=lab.stop_after(3))
    assert lab.digest_after(spec, "parts") == lab.digest(whole.lane)


def test_the_examples_caution_and_refusal() -> None:
    bench = Bench(example())
    method = bench.build()
    assert method.cautions() == ()
    check_phases(method.phases(), bench.context.epochs)
    blind = example()(bench.options, replace(bench.context, validation_size=0))
    assert blind.cautions() == ("without a validation split the probe never teaches",)
    with pytest.raises(Unsupported, match="rounds is 2, but the anchor has 1 epochs to share"):
        example()(bench.options, replace(bench.context, epochs=1))
