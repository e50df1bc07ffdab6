"""Two processes that train one run together, against one that trains it alone; started once, about 40 s of a core."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow


ROUNDING = 1e-6  # of the whole gradient's length: that of a bias before BatchNorm is nothing else


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, whole: torch.Tensor) -> bool:
    """Return whether two gradients differ by little of the expected one's length, or of the ``whole`` one's."""
    return bool((found - expected).norm() <= tolerance * expected.norm() + ROUNDING * whole)


def length(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


# --- what members tell each other ---------------------------------------------------------------------------------


def test_members_hear_each_other(pair: Any) -> None:
    first, second = (found["words"] for found in pair.found)
    for heard in (first, second):
        assert heard["anyone"] == [True, False]
        assert heard["told"] == "by 0"
        assert heard["everyones"] == [0, 1]
        assert heard["everywhere"] == [True, False]
        gradient, none = heard["gradients"]
        assert gradient.tolist() == [1.5, 15.0]
        assert none is None
        assert heard["empty"] == (4, 0)
    # The losses are 1 x and 2 x the weighted sum of all rows: each row's gradient is three times its weight.
    assert first["rows"].flatten().tolist() == [3.0, 6.0]
    assert second["rows"].flatten().tolist() == [9.0, 12.0]


def test_members_that_differ_are_found_out(pair: Any) -> None:
    for found in (found["agreement"] for found in pair.found):
        assert found["local"].tolist() == [0.0, 0.0]  # the leader's
        assert found["buffer"].startswith("'running_mean' is not the same on all 2 devices after an epoch")
        assert found["parameter"].startswith("'weight' is not the same on all 2 devices after an epoch")


@pytest.mark.parametrize("name", ["maps", "vectors", "plain"])
def test_batchnorm_of_both_is_that_of_the_whole_batch(pair: Any, name: str) -> None:
    expected = pair.alone["normalised"][name]
    parts = [found["normalised"][name] for found in pair.found]
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), expected[key], rtol=1e-9, atol=1e-9)
    for index, gradient in enumerate(expected["parameters"]):
        torch.testing.assert_close(sum(part["parameters"][index] for part in parts), gradient, rtol=1e-9, atol=1e-9)
    for key, value in expected["state"].items():
        for part in parts:
            torch.testing.assert_close(part["state"][key], value, rtol=1e-9, atol=1e-9)


# --- gradients ----------------------------------------------------------------------------------------------------


def differences(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> list[str]:
    assert found.keys() == expected.keys()
    names = []
    for phase, gradients in expected.items():
        assert found[phase].keys() == gradients.keys(), phase
        size, others = length(gradients), found[phase]
        names += [f"{phase}: {key}" for key in gradients if not close(others[key], gradients[key], tolerance, size)]
    return names


def test_every_method_is_tried(pair: Any, member: Any, registry: Any) -> None:
    methods = [name for name in registry.methods if registry.methods[name].__module__.startswith("kdbench.methods.")]
    assert set(pair.alone["all_gradients"]) == set(methods)
    assert len(methods) >= 18
    assert all(registry.methods[name].distributed in {"slices", "gathered"} for name in methods)


def test_gradients_of_two_devices_are_those_of_one(pair: Any) -> None:
    wrong = {}
    for method, expected in pair.alone["all_gradients"].items():
        for found in pair.found:
            if names := differences(found["all_gradients"][method], expected, 1e-3):
                wrong[method] = names
    assert not wrong


def test_members_have_equal_gradients_to_the_bit(pair: Any) -> None:
    first, second = (found["all_gradients"] for found in pair.found)
    for method, phases in first.items():
        for phase, gradients in phases.items():
            assert all(torch.equal(value, second[method][phase][key]) for key, value in gradients.items()), method


def test_a_batch_in_parts_gives_the_gradients_of_one_device(pair: Any) -> None:
    for method, expected in pair.alone["accumulated"].items():
        assert not differences(pair.found[0]["accumulated"][method], expected, 1e-3), method


def test_losses_that_compare_images_are_wrong_if_they_are_computed_of_shares(pair: Any, member: Any) -> None:
    for method in member.MISTAKEN:
        expected = pair.alone["all_gradients"][method]["main"]
        found = pair.found[0]["mistaken"][method]["main"]
        assert differences({"main": found}, {"main": expected}, 0.02), method


# --- whole runs ---------------------------------------------------------------------------------------------------


def folder_of(pair: Any, where: str, method: str) -> Any:
    (path,) = (pair.shared / where).rglob(f"{method}/seed0/record.json")
    return path.parent


def epochs_of(folder: Any) -> list[dict[str, Any]]:
    lines = (folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    dropped = {"seconds", "images_per_second"}
    return [{key: value for key, value in json.loads(line).items() if key not in dropped} for line in lines]


@pytest.mark.parametrize("method", ["crd", "vanilla_kd"])
def test_a_run_that_was_stopped_ends_in_the_bits_of_one_that_was_not(pair: Any, method: str) -> None:
    assert all(found["cut_runs"] == {"crd": True, "vanilla_kd": True} for found in pair.found)
    whole, cut = (folder_of(pair, where, method) for where in ("whole", "cut"))
    for name in ("student.safetensors", "predictions.npz"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert epochs_of(whole) == epochs_of(cut)
    assert len(json.loads((cut / "record.json").read_text())["attempts"]) == 2


def test_the_record_says_how_many_devices_there_were(pair: Any) -> None:
    record = json.loads((folder_of(pair, "whole", "vanilla_kd") / "record.json").read_text())
    assert record["status"] == "ok"
    assert record["environment"]["world_size"] == 2
    images = 3 * 4 * 40  # epochs, steps, images of a batch
    assert record["cost"]["student_forwards"] == images
    assert record["cost"]["teacher_forwards"] == images


def test_a_member_that_fails_ends_the_run_with_its_words(pair: Any) -> None:
    leader, other = (found["fallen"] for found in pair.found)
    reason = "on device 1 of 2: ValueError: out of luck"
    assert leader.startswith("infra_failed: method 'vanilla_kd' failed in ")
    assert leader.endswith(f"RuntimeError: {reason}")
    assert other.endswith(": out of luck")
