"""Casting of a configuration, and the lock."""

from __future__ import annotations

import hashlib
import json

import pytest

from kdbench.methods.asib.config import cast, changes, locked_sha256, sanitise

CONFIG = {"kd_alpha": "0.35", "tau": 4, "dataset": {"name": "cifar100", "optimizer": "x"}, "optimizer": "sgd"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("-3", -3), ("5e-05", 5e-5), ("1.5", 1.5), (".5", 0.5), ("2.", 2.0), ("1E3", 1000.0)]
    + [("true", True), ("Yes", True), ("on", True), ("false", False), ("NO", False), ("off", False)]
    + [("on a line", "on a line"), ("", ""), ("nan", "nan"), ("inf", "inf"), ("1_0", "1_0"), ("0x1", "0x1")]
    + [("1e", "1e"), ("e5", "e5"), ("1.2.3", "1.2.3"), (".", "."), ("²", "²")],
)
def test_texts_that_are_numbers_or_truth_values_are_cast(text: str, value: object) -> None:
    found = cast(text)
    assert (found, type(found)) == (value, type(value))


def test_casting_reaches_every_depth_and_leaves_other_values() -> None:
    given = {"a": {"b": ["1", ("2.5", None)]}, "c": True, "d": 3}
    assert cast(given) == {"a": {"b": [1, [2.5, None]]}, "c": True, "d": 3}
    assert given["a"] == {"b": ["1", ("2.5", None)]}


def test_the_lock_covers_the_cast_configuration_without_runtime_keys_of_the_top_level() -> None:
    expected = {"kd_alpha": 0.35, "tau": 4, "dataset": {"name": "cifar100", "optimizer": "x"}}
    assert sanitise(CONFIG) == expected
    text = json.dumps(expected, sort_keys=True)
    assert locked_sha256(CONFIG) == hashlib.sha256(text.encode()).hexdigest()
    assert locked_sha256(dict(reversed(CONFIG.items()))) == locked_sha256(CONFIG)


def test_metrics_leave_the_lock_alone() -> None:
    later = {**CONFIG, "student_ep3_acc": 1.0, "teacher_ep1_loss": 2, "epoch1_tau": 3, "csv_x": 4, "kd_gate_on": 1}
    assert locked_sha256(later) == locked_sha256(CONFIG)
    assert not changes(CONFIG, later)
    assert str(changes(CONFIG, later)) == "no changes"


def test_changes_are_named_by_kind_with_dotted_keys() -> None:
    after = {"kd_alpha": 0.35, "dataset": {"name": "digits", "root": "./data", "optimizer": "x"}, "tau": 4.0}
    found = changes(CONFIG, after)
    assert found
    assert (found.added, found.removed, found.changed) == (("dataset.root",), (), ("dataset.name", "tau"))
    assert str(found) == "added: dataset.root; changed: dataset.name, tau"
    assert changes(after, {}).removed == ("dataset.name", "dataset.optimizer", "dataset.root", "kd_alpha", "tau")


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), ({}, None), ([], {}), ("a", ["a"])])
def test_changes_are_found_wherever_the_hash_differs(before: object, after: object) -> None:
    assert locked_sha256({"key": before}) != locked_sha256({"key": after})
    assert changes({"key": before}, {"key": after}).changed == ("key",)
