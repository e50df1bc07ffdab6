"""Whole runs with a cold, a warm and no cache end in the same bits, alone and in company, and cost what they cost."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.training.teacher_cache import CachePlace
from kdbench.training.teacher_cache.entries import HEADER
from kdbench.training.teacher_cache.filling import fill
from kdbench.training.teacher_cache.shapes import safe_shapes
from kdbench.training.trainer import Interrupted
from kdbench.types import Features

LOGITS, EMBEDDING, MAPS = ("vanilla_kd", "dkd"), "crd", "fitnet"
ALL = (*LOGITS, EMBEDDING, MAPS)
TRAIN, EPOCHS, CROPS = 160, 3, 9  # digits are not mirrored, and 8x8 images are padded by 1


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    return CachePlace(tmp_path / "cache", 2**30)


def results(lab: Any, trained: list[Any]) -> dict[str, str]:
    """Digests of all that a run leaves behind, but for what it cost."""
    found = {}
    for entry in trained:
        assert entry.lane.failure is None
        state = lab.timeless(entry.lane.state())
        del state["counters"]
        found[entry.lane.spec.method] = lab.digest_of(state)
    return found


def costs(trained: list[Any]) -> list[tuple[float, float]]:
    counters = [entry.lane.counters for entry in trained]
    return [(each.teacher_forwards, each.teacher_cached) for each in counters]


@pytest.mark.parametrize("changes", [{}, {"step__teacher_cache": "half"}, {"step__channels_last": False}])
def test_cold_warm_and_no_cache_give_the_same_bits(lab: Any, place: CachePlace, changes: dict[str, Any]) -> None:
    anchor = lab.anchor(**changes)
    specs = [lab.spec(method, anchor=anchor) for method in ALL]
    without = {}
    for spec in specs:
        without |= results(lab, lab.train([spec], "without"))
    together = lab.train(specs[:3], "together", cache=place)
    assert results(lab, together) == {method: without[method] for method in ALL[:3]}
    cold = sum(live for live, _ in costs(together))
    assert 0 < cold < EPOCHS * TRAIN, "some crops come again within three epochs"
    for spec in specs:
        warm = lab.train([spec], "warm", cache=place)
        assert results(lab, warm) == {spec.method: without[spec.method]}
        expected = (EPOCHS * TRAIN, 0) if spec.method == MAPS else (0, EPOCHS * TRAIN)
        assert costs(warm) == [expected]


def test_a_run_that_was_stopped_ends_in_the_same_bits(lab: Any, place: CachePlace) -> None:
    specs = [lab.spec(method) for method in LOGITS]
    expected = results(lab, lab.train(specs, "whole"))
    with pytest.raises(Interrupted):
        lab.train(specs, "cut", should_stop=lab.stop_after(6), cache=place)
    resumed = lab.train(specs, "cut", cache=place)
    assert results(lab, resumed) == expected
    live, cached = map(sum, zip(*costs(resumed), strict=True))
    assert cached > 0
    # The second half of an epoch that was stopped is new; what was done before it is on no account twice.
    assert live + cached >= EPOCHS * TRAIN


def test_half_is_another_protocol(lab: Any) -> None:
    exact, half = lab.anchor(), lab.anchor(step__teacher_cache="half")
    assert exact.sha256 != half.sha256
    found = [
        results(lab, lab.train([lab.spec("dkd", anchor=anchor)], anchor.step.teacher_cache)) for anchor in (exact, half)
    ]
    assert found[0] != found[1]


def filled(lab: Any, place: CachePlace, *, embedding: bool = False, **changes: Any) -> Any:
    """Fill the cache of the lab's teacher in advance."""
    anchor = lab.anchor(**changes)
    manifest = lab.place.teachers.manifest(lab.dataset, lab.teacher)
    return fill(manifest, lab.dataset, anchor, replace(lab.place, cache=place), embedding=embedding)


@pytest.mark.parametrize("changes", [{}, {"data__crop_padding": 8, "data__padding_mode": "reflect"}])
def test_after_filling_no_seed_runs_the_teacher(lab: Any, place: CachePlace, changes: dict[str, Any]) -> None:
    specs = [[lab.spec(method, seed=seed, anchor=lab.anchor(**changes)) for method in ALL[:3]] for seed in (0, 5)]
    expected = [results(lab, lab.train(seed, f"live{n}")) for n, seed in enumerate(specs)]
    done = filled(lab, place, embedding=True, **changes)
    crops = 25 if changes else CROPS
    assert (done.entries, done.known) == (TRAIN * crops, 0)
    for number, seed in enumerate(specs):
        trained = lab.train(seed, f"kept{number}", cache=place)
        assert results(lab, trained) == expected[number]
        assert [live for live, _ in costs(trained)] == [0, 0, 0]
        assert sum(cached for _, cached in costs(trained)) == EPOCHS * TRAIN


def test_filling_goes_on_where_it_was(lab: Any, place: CachePlace) -> None:
    def after_three(done: int, total: int) -> None:
        assert total == TRAIN * CROPS
        if done == 3 * 40:
            raise KeyboardInterrupt

    manifest = lab.place.teachers.manifest(lab.dataset, lab.teacher)
    with pytest.raises(KeyboardInterrupt):
        fill(manifest, lab.dataset, lab.anchor(), replace(lab.place, cache=place), done=after_three)
    assert filled(lab, place).known == 3 * 40
    assert filled(lab, place).known == TRAIN * CROPS


def test_filling_is_refused_where_runs_would_not_read_it(lab: Any, place: CachePlace) -> None:
    with pytest.raises(ConfigError, match="use no teacher cache here: the anchor mixes images"):
        filled(lab, place, data__mixup_alpha=0.2)
    with pytest.raises(ConfigError, match=r"step\.teacher_cache exact is for fp32 on the CPU \(here bf16 on the CPU\)"):
        filled(lab, place, step__precision="bf16")
    with pytest.raises(ConfigError, match="the warning above says why"):
        filled(lab, CachePlace(place.folder, 1000))
    assert not list(place.folder.rglob("*.entries"))


def test_half_holds_for_bf16(lab: Any, place: CachePlace) -> None:
    changes = {"step__teacher_cache": "half", "step__precision": "bf16"}
    specs = [lab.spec(method, anchor=lab.anchor(**changes)) for method in LOGITS]
    expected = results(lab, lab.train(specs, "live"))
    assert results(lab, lab.train(specs, "cold", cache=place)) == expected
    filled(lab, place, **changes)
    warm = lab.train(specs, "warm", cache=place)
    assert results(lab, warm) == expected
    assert [live for live, _ in costs(warm)] == [0, 0]


def test_mixed_images_are_never_looked_up(lab: Any, place: CachePlace) -> None:
    anchor = lab.anchor(data__cutmix_alpha=1.0)
    (trained,) = lab.train([lab.spec("dkd", anchor=anchor)], "runs", cache=place)
    assert costs([trained]) == [(EPOCHS * TRAIN, 0)]
    assert not place.folder.exists()


def test_beside_a_method_that_needs_maps_the_teacher_runs_and_what_it_says_is_kept(lab: Any, place: CachePlace) -> None:
    both = lab.train([lab.spec("dkd"), lab.spec(MAPS)], "both", cache=place)
    assert costs(both) == [(EPOCHS * TRAIN / 2, 0)] * 2
    (alone,) = lab.train([lab.spec("vanilla_kd")], "alone", cache=place)
    assert costs([alone]) == [(0, EPOCHS * TRAIN)]


def test_for_maps_alone_nothing_is_kept(lab: Any, place: CachePlace) -> None:
    lab.train([lab.spec(MAPS)], "runs", cache=place)
    assert not place.folder.exists()


def test_what_another_teacher_said_is_set_aside_at_the_start(
    lab: Any, place: CachePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """A file with sound checksums whose entries are not the teacher's: only the self-check can tell."""
    expected = results(lab, lab.train([lab.spec("dkd")], "live"))
    filled(lab, place)
    (path,) = place.folder.rglob("*.entries")
    wrong = _shifted(path)
    trained = lab.train([lab.spec("dkd")], "kept", cache=place)
    assert results(lab, trained) == expected
    assert [each.read_bytes() for each in path.parent.glob("*.corrupt")] == [wrong]
    (message,) = caplog.messages
    assert "held other logits than teacher 'resnet14_w8-recipe-v1-seed0' gives now" in message
    assert lab.train([lab.spec("dkd")], "again", cache=place)
    assert len(caplog.messages) == 1, "the new file is sound"


def _shifted(path: Path) -> bytes:
    """Add 1 to every kept value, checksums included, and return the bytes."""
    from kdbench.training.teacher_cache.entries import Entries
    from kdbench.training.teacher_cache.key import CacheKey

    text = path.read_bytes()[:HEADER].decode()
    key = CacheKey.model_validate_json(text[text.index("{") :])
    file = Entries(path, key)
    numbers = torch.arange(key.entries).numpy()
    file.write(numbers, file.read(numbers)[0] + 1)
    file.close()
    return path.read_bytes()


def test_flipped_bits_change_no_result(lab: Any, place: CachePlace, caplog: pytest.LogCaptureFixture) -> None:
    expected = results(lab, lab.train([lab.spec("dkd")], "live"))
    filled(lab, place)
    (path,) = place.folder.rglob("*.entries")
    data = bytearray(path.read_bytes())
    for at in range(HEADER + 3, len(data), 88):  # every other entry
        data[at] ^= 16
    path.write_bytes(bytes(data))
    trained = lab.train([lab.spec("dkd")], "kept", cache=place)
    assert results(lab, trained) == expected
    (live, cached) = costs(trained)[0]
    assert 0.4 * EPOCHS * TRAIN < live < 0.8 * EPOCHS * TRAIN
    assert cached > 0.4 * EPOCHS * TRAIN
    (message,) = caplog.messages
    assert message.endswith("has damaged entries; they are computed and written again")


def test_a_full_disk_costs_one_warning(
    lab: Any, place: CachePlace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(lab, lab.train([lab.spec("dkd")], "live"))

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdbench.training.teacher_cache.entries.os.pwrite", full)
    assert results(lab, lab.train([lab.spec("dkd")], "kept", cache=place)) == expected
    (message,) = caplog.messages
    assert "cannot be written (No space left on device)" in message


def test_a_cache_that_was_removed_meanwhile_is_made_anew(lab: Any, place: CachePlace) -> None:
    expected = results(lab, lab.train([lab.spec("dkd")], "live"))

    def remove() -> bool:
        shutil.rmtree(place.folder, ignore_errors=True)
        return False

    assert results(lab, lab.train([lab.spec("dkd")], "kept", cache=place, should_stop=remove)) == expected


def test_a_teacher_whose_outputs_depend_on_their_place_runs_live() -> None:
    images = torch.rand(16, 3, 4, 4)

    def fickle(batch: torch.Tensor) -> Features:
        return Features(batch.mean((2, 3)) + torch.arange(len(batch))[:, None])

    def of_many(batch: torch.Tensor) -> Features:
        return Features(batch.mean((2, 3)) + (0.5 if len(batch) < 8 else 0.0))

    assert safe_shapes(fickle, images) == ()
    assert safe_shapes(of_many, images) == (8, 10, 12, 14, 16)
    assert safe_shapes(lambda batch: Features(batch.mean((2, 3))), images) == (4, 6, 8, 10, 12, 14, 16)


@pytest.fixture(autouse=True)
def _hear_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "kdbench")
