"""Tie groups are what their definition says, and counted bits give what the differences themselves give."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from kdbench.stats import Arm, crossed_error, crossed_error_of_arms, crossed_error_of_bits, tie_groups


@pytest.mark.parametrize("seed", range(20))
def test_two_methods_share_a_letter_if_and_only_if_they_are_near(seed: int) -> None:
    random = np.random.default_rng(seed)
    means = {f"m{index}": float(value) for index, value in enumerate(random.normal(70, 1, 12))}
    groups = tie_groups(means, 0.8)
    for first, second in combinations(means, 2):
        assert bool(set(groups[first]) & set(groups[second])) == (abs(means[first] - means[second]) <= 0.8)
    assert "a" in groups[max(means, key=lambda method: means[method])]


def test_letters_by_hand_and_beyond_the_alphabet() -> None:
    assert tie_groups({"low": 1.0, "mid": 1.4, "high": 1.8}, 0.5) == {"high": "a", "mid": "ab", "low": "b"}
    assert tie_groups({"low": 1.0, "high": 1.8}, 5.0) == {"high": "a", "low": "a"}
    far = tie_groups({f"m{index:02}": -index for index in range(28)}, 0.1)
    assert (far["m00"], far["m25"], far["m26"], far["m27"]) == ("a", "z", "(27)", "(28)")


@pytest.mark.parametrize(("seeds", "images"), [(2, 2), (5, 1000), (3, 1003), (10, 17)])
def test_bits_give_what_the_differences_give(seeds: int, images: int) -> None:
    random = np.random.default_rng(images)
    first, second = random.random((2, seeds, images)) < np.array([0.7, 0.6])[:, None, None]
    expected = crossed_error(first.astype(float) - second)
    packed = ([np.packbits(run) for run in arm] for arm in (first, second))
    found = crossed_error_of_bits(*packed, images)
    for name in ("mean", "ms_seed", "ms_image", "ms_residual", "se_seeds", "se_images", "se_crossed"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-12)


def test_bits_of_other_sizes_are_refused() -> None:
    bits = np.zeros(2, dtype=np.uint8)
    for first, second, images in (([bits], [bits], 16), ([bits] * 2, [bits], 16), ([bits] * 2, [bits] * 2, 17)):
        with pytest.raises(ValueError, match=r"crossed error - .* two of each"):
            crossed_error_of_bits(first, second, images)
    with pytest.raises(ValueError, match=r"crossed error - 2 and 2 seeds, 16 and 15 images"):
        crossed_error_of_arms(Arm((bits, bits), 16), Arm((bits, bits), 15))
