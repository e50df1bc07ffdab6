"""ASIB's numbers against golden files of its specification, and that the comparison itself can fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from case import read  # noqa: E402
from run import json_verdict, verdict  # noqa: E402
from topic import TOPIC_TOLERANCE, results  # noqa: E402

FOLDER = HERE.parents[2] / "shared" / "goldens" / "asib"
FILES = sorted(FOLDER.glob("*.npz"))
needs_shared = pytest.mark.skipif(not FILES, reason="needs the shared reference files")


@needs_shared
@pytest.mark.parametrize("dtype", TOPIC_TOLERANCE, ids=str)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path, dtype: torch.dtype) -> None:
    assert verdict(path, dtype).problems == ()


@needs_shared
def test_every_topic_has_its_adapter() -> None:
    adapters = {path.stem for path in (HERE / "adapters" / "asib").glob("*.py")}
    assert {path.stem.rsplit("_", 1)[0] for path in FILES} <= adapters


def ce_file(folder: Path, **changes: np.ndarray) -> Path:
    """Write a file of the topic ce, computed here in plain numpy."""
    logits, labels = np.array([[1.0, 2.0, 4.0], [0.0, -1.0, 3.0]]), np.array([2, 0])
    weights = np.array([0.5, 1.5])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ce = -np.log(p[[0, 1], labels])
    arrays = {
        "meta": np.array('{"topic": "ce"}'),
        "in.s_logit": logits,
        "in.y": labels,
        "in.y_b": labels[::-1].copy(),
        "in.w": weights,
        "v0.hp": np.array("{}"),
        "v0.out.ce": np.array((weights * ce).mean()),
        "v0.out.ce_vec": ce,
        "v0.grad.ce.s_logit": (p - np.eye(3)[labels]) * weights[:, None] / 2,
    }
    np.savez(folder / "ce_9.npz", **{**arrays, **changes})
    return folder / "ce_9.npz"


def test_a_file_from_anywhere_passes_and_a_changed_number_fails(tmp_path: Path) -> None:
    for dtype in TOPIC_TOLERANCE:
        assert verdict(ce_file(tmp_path), dtype).problems == ()
    off = ce_file(tmp_path, **{"v0.grad.ce.s_logit": np.zeros((2, 3))})
    assert any("v0.grad.ce.s_logit" in problem for problem in verdict(off, torch.float64).problems)
    nan = ce_file(tmp_path, **{"v0.out.ce": np.array(np.nan)})
    assert verdict(nan, torch.float64).problems != ()


@pytest.mark.parametrize("key", ["v0.out.more", "v0.grad.ce.w", "out.more"])
def test_what_is_not_compared_fails(tmp_path: Path, key: str) -> None:
    assert any(
        key.rsplit(".", maxsplit=1)[-1] in p
        for p in verdict(ce_file(tmp_path, **{key: np.array(1.0)}), torch.float64).problems
    )


def test_a_json_value_that_is_not_compared_fails(tmp_path: Path) -> None:
    more = ce_file(tmp_path, cases=np.array('[{"kind": "new", "out": 1.0}]'))
    assert verdict(more, torch.float64).problems == ("cases[0].out: not compared",)
    assert results({"cfg": {}, "sha256": "x"}, "config") == ["config.sha256"]


@needs_shared
@pytest.mark.parametrize("stem", ["scalars_11", "schedules_11", "misc_11"])
def test_each_changed_json_result_fails(tmp_path: Path, stem: str) -> None:
    arrays = read(FOLDER / f"{stem}.npz")
    for key in [key for key in arrays if key != "meta"]:
        names = results(json.loads(str(arrays[key])), key)
        for name in names[:: max(1, len(names) // 12)]:
            stored = json.loads(str(arrays[key]))
            inner = stored if isinstance(stored, dict) else stored[int(name.split("[")[1].split("]")[0])]
            inner[name.rsplit(".", 1)[1]] = changed(inner[name.rsplit(".", 1)[1]])
            np.savez(tmp_path / "off.npz", **{**arrays, key: np.array(json.dumps(stored))})
            problems = verdict(tmp_path / "off.npz", torch.float64).problems
            assert any(problem.startswith(name) for problem in problems), name


def changed(value: object) -> object:
    """Return another value of the same form."""
    if isinstance(value, dict):
        return {**value, "more": 1}
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])]
    if isinstance(value, bool):
        return not value
    return value * 1.001 + 1e-6 if isinstance(value, float) else value + 1 if isinstance(value, int) else f"{value}x"


def test_a_json_file_without_an_adapter_fails(tmp_path: Path) -> None:
    (tmp_path / "nothing_1.json").write_text("{}", encoding="utf-8")
    (problem,) = json_verdict(tmp_path / "nothing_1.json").problems
    assert problem.startswith("not built")


@needs_shared
def test_the_adapter_of_names_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = tmp_path / "adapters_of_test.py"
    adapters.write_text("def run(path):\n    return [path.name]\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import adapters_of_test

    monkeypatch.setitem(sys.modules, "adapters.ppf", adapters_of_test)
    shutil.copy(FOLDER / "ppf.json", tmp_path / "ppf.json")
    assert json_verdict(tmp_path / "ppf.json").problems == ("ppf.json",)
