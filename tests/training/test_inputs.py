"""The batch stream: every crop, flip and mix against one written out by hand, image by image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.config.schema import Data
from kdbench.datasets.base import Split
from kdbench.training.inputs import BatchStream, Inputs
from kdbench.training.mixing import MixPlan, apply_mix, cutmix_box, plan_mixing

COUNT, BATCH = 24, 8
GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "asib"


def images_of(size: int, count: int = COUNT) -> torch.Tensor:
    """Random images, so that a crop tells from where it was taken."""
    draws = torch.Generator().manual_seed(size)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=draws)


def stream_of(size: int = 8, seed: int = 0, *, mirror: bool = True, batch: int = BATCH, **data: Any) -> BatchStream:
    split = Split(images_of(size), torch.arange(COUNT) % 5)
    return BatchStream(split, Data(batch_size=batch, **data), seed, torch.device("cpu"), mirror=mirror)


def epoch_of(stream: BatchStream, epoch: int) -> list[Inputs]:
    return [stream.batch(epoch, step) for step in range(stream.steps)]


def variants(image: np.ndarray, padding: int, mode: str) -> dict[tuple[int, int, bool], np.ndarray]:
    """Every crop of one padded image (C,H,W), straight and mirrored."""
    size = image.shape[1]
    padded = np.pad(
        image, ((0, 0), (padding, padding), (padding, padding)), mode="constant" if mode == "zeros" else mode
    )  # type: ignore[call-overload]
    found = {}
    for y in range(2 * padding + 1):
        for x in range(2 * padding + 1):
            crop = padded[:, y : y + size, x : x + size]
            found[y, x, False], found[y, x, True] = crop, crop[:, :, ::-1]
    return found


@pytest.mark.parametrize(
    ("size", "crop_padding", "padding"), [(8, 4, 1), (16, 4, 2), (32, 4, 4), (24, 3, 2), (8, 0, 0)]
)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_each_image_is_a_crop_and_flip_of_its_own(size: int, crop_padding: int, padding: int, mode: str) -> None:
    stream, original = stream_of(size, crop_padding=crop_padding, padding_mode=mode), images_of(size).numpy()
    assert stream.padding == padding
    drawn = []
    for epoch in range(3):
        for inputs in epoch_of(stream, epoch):
            assert inputs.images.dtype == torch.float32
            for image, index, label in zip(inputs.images, inputs.index.tolist(), inputs.labels.tolist(), strict=True):
                assert label == index % 5
                pixels = {
                    key: torch.tensor(v.copy()).float() / 255
                    for key, v in variants(original[index], padding, mode).items()
                }
                (match,) = [key for key, value in pixels.items() if torch.equal(value, image)]
                drawn.append((index, match))
    drawn = [match for _, match in sorted(drawn)]
    rows, columns, flips = (set(values) for values in zip(*drawn, strict=True))
    assert rows == columns == set(range(2 * padding + 1)), "some offset was never drawn"
    assert flips == {False, True}
    thrice = [drawn[3 * index : 3 * index + 3] for index in range(COUNT)]
    assert any(len(set(one)) > 1 for one in thrice), "an image is cut the same way in every epoch"
    assert 0.25 < sum(flip for *_, flip in drawn) / len(drawn) < 0.75


@pytest.mark.parametrize(("anchor", "dataset"), [(False, True), (True, False), (False, False)])
def test_without_mirroring_no_image_is_flipped(*, anchor: bool, dataset: bool) -> None:
    stream, original = stream_of(crop_padding=0, mirror=dataset), images_of(8)
    stream = BatchStream(
        Split(original, torch.zeros(COUNT).long()),
        Data(batch_size=BATCH, crop_padding=0, mirror=anchor),
        0,
        torch.device("cpu"),
        mirror=dataset,
    )
    for inputs in epoch_of(stream, 0):
        assert torch.equal(inputs.images, original[inputs.index].float() / 255)


def test_every_image_comes_once_per_epoch_in_another_order() -> None:
    stream = stream_of()
    orders = [torch.cat([inputs.index for inputs in epoch_of(stream, epoch)]).tolist() for epoch in range(4)]
    assert stream.steps == 3
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_a_partial_last_batch_is_left_out_and_a_small_set_is_one_batch() -> None:
    stream = stream_of(batch=7)
    seen = torch.cat([inputs.index for inputs in epoch_of(stream, 0)]).tolist()
    assert (stream.steps, len(seen), len(set(seen))) == (3, 21, 21)
    small = stream_of(batch=1000)
    assert (small.steps, small.batch_size) == (1, COUNT)


MIXES = [{}, {"mixup_alpha": 0.5}, {"cutmix_alpha": 1.0}]


@pytest.mark.parametrize("mix", MIXES)
def test_a_batch_is_a_function_of_seed_and_epoch_alone(mix: dict[str, float]) -> None:
    straight = [[inputs.images for inputs in epoch_of(stream_of(**mix), epoch)] for epoch in range(3)]
    other = stream_of(**mix)
    for epoch, step in ((2, 1), (0, 2), (2, 0), (1, 1), (2, 1)):
        torch.manual_seed(epoch)
        assert torch.equal(other.batch(epoch, step).images, straight[epoch][step])
    assert not torch.equal(stream_of(seed=1, **mix).batch(0, 0).images, straight[0][0])
    assert not torch.equal(straight[0][0], straight[1][0])
    assert not torch.equal(stream_of(**mix).batch("init:0", 0).images, straight[0][0])


@pytest.mark.parametrize("mix", MIXES[1:])
def test_mixing_changes_neither_order_nor_crops(mix: dict[str, float]) -> None:
    for plain, mixed in zip(epoch_of(stream_of(), 0), epoch_of(stream_of(**mix), 0), strict=True):
        assert plain.mix is None
        assert torch.equal(plain.index, mixed.index)
        assert torch.equal(plain.labels, mixed.labels)


def _partners(plain: Inputs, mixed: Inputs, epoch: int, step: int, data: Data) -> torch.Tensor:
    plans = plan_mixing(data, 0, epoch, COUNT // BATCH, BATCH, (8, 8))
    assert plans is not None
    assert mixed.mix is not None
    assert sorted(plans[step].partners.tolist()) == list(range(BATCH))
    assert torch.equal(mixed.mix.labels, plain.labels[plans[step].partners])
    return plans[step].partners


def test_mixup_is_the_share_weighted_sum_of_two_images() -> None:
    data = Data(batch_size=BATCH, mixup_alpha=0.5)
    shares = []
    for epoch in range(2):
        pairs = zip(epoch_of(stream_of(), epoch), epoch_of(stream_of(mixup_alpha=0.5), epoch), strict=True)
        for step, (plain, mixed) in enumerate(pairs):
            partners = _partners(plain, mixed, epoch, step, data)
            assert mixed.mix is not None
            share = mixed.mix.share
            expected = share * plain.images.double() + (1 - share) * plain.images[partners].double()
            torch.testing.assert_close(mixed.images.double(), expected, rtol=0, atol=1e-6)
            shares.append(share)
    assert all(0 <= share <= 1 for share in shares)
    assert len(set(shares)) == len(shares)


def test_cutmix_pastes_one_exact_patch_and_its_area_is_the_share() -> None:
    data = Data(batch_size=BATCH, cutmix_alpha=1.0, mixup_alpha=0.5)
    areas = set()
    for epoch in range(4):
        stream = stream_of(cutmix_alpha=1.0, mixup_alpha=0.5)  # cutmix wins
        for step, (plain, mixed) in enumerate(zip(epoch_of(stream_of(), epoch), epoch_of(stream, epoch), strict=True)):
            other = plain.images[_partners(plain, mixed, epoch, step, data)]
            assert mixed.mix is not None
            pasted = (mixed.images != plain.images).any(0).any(0)
            rows, columns = torch.where(pasted.any(1))[0], torch.where(pasted.any(0))[0]
            expected = plain.images.clone()
            if len(rows):
                box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
                expected[:, :, box[0], box[1]] = other[:, :, box[0], box[1]]
            assert torch.equal(mixed.images, expected)
            assert mixed.mix.share == 1 - int(pasted.sum()) / 64
            areas.add(int(pasted.sum()))
    assert len(areas) > 4


def test_cutmix_of_a_share_of_one_or_nothing() -> None:
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([3, 4])
    box, share = cutmix_box(1.0, [0.5, 0.5], (8, 8))
    assert (box, share) == ((4, 4, 4, 4), 1.0)
    mixed, mix = apply_mix(MixPlan(torch.tensor([1, 0]), share, box), images.clone(), labels)
    assert torch.equal(mixed, images)
    assert (mix.labels.tolist(), mix.share) == ([4, 3], 1.0)
    assert cutmix_box(0.0, [0.5, 0.5], (8, 8)) == ((0, 0, 8, 8), 0.0)


def test_cutmix_box_of_an_image_that_is_not_square() -> None:
    # sqrt(1 - 0.75) = 1/2: 6 wide and 3 high of 12 x 6, rounded down to even around the centre (6, 3).
    assert cutmix_box(0.75, [0.5, 0.5], (6, 12)) == ((3, 2, 9, 4), 1 - 6 * 2 / 72)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="needs the shared reference files")
@pytest.mark.parametrize("file", ["scalars_11.npz", "scalars_12.npz"])
def test_cutmix_box_against_the_reference(file: str) -> None:
    with np.load(GOLDENS / file) as archive:
        cases = [case for case in json.loads(str(archive["cases"])) if case["kind"] == "cutmix_box"]
    assert len(cases) == 6
    for case in cases:
        # The middle of the pixel that the reference drew as the centre.
        centre = [(case["cx"] + 0.5) / case["W"], (case["cy"] + 0.5) / case["H"]]
        box, share = cutmix_box(case["lam"], centre, (case["H"], case["W"]))
        assert [*box, share] == case["out"]
