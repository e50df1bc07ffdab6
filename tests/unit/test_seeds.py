"""Named streams: frozen values, independence of the method, and equal generators for equal keys."""

from __future__ import annotations

import hashlib
from itertools import combinations

import pytest
import torch

from kdbench.seeds import numpy_generator, stream, torch_generator

# Frozen: a change here changes every published result.
FROZEN = {
    (0, "init"): 8774053890452566133,
    (0, "order", 0): 8491302041919598752,
    (0, "order", 239): 9207924653890133960,
    (7, "augment", 3): 5138497753924760278,
    (2147483647, "mix", 1): 3227805819533433033,
    (1, "method", "main"): 982683100610616342,
    (1, "dropout"): 2445488529739965285,
    (0, "split", "digits"): 1760004769736304357,
    (0, "subset"): 4243566488798529257,
}


@pytest.mark.parametrize("key", FROZEN)
def test_frozen_keys(key: tuple[int, str, int | str]) -> None:
    assert stream(*key) == FROZEN[key]  # type: ignore[arg-type]


def test_a_key_is_the_first_63_bits_of_a_sha256() -> None:
    digest = hashlib.sha256(b"kdbench/7/augment/3").hexdigest()
    assert stream(7, "augment", 3) == int(digest[:16], 16) // 2
    assert 0 <= stream(7, "augment", 3) < 2**63


def test_keys_differ_in_every_part() -> None:
    keys = {stream(s, n, e) for s in range(20) for n in ("init", "order", "mix") for e in range(20)}  # type: ignore[arg-type]
    assert len(keys) == 20 * 3 * 20


def test_frozen_draws() -> None:
    assert torch.randperm(8, generator=torch_generator(0, "order", 0)).tolist() == [1, 3, 7, 4, 6, 5, 2, 0]
    assert numpy_generator(0, "mix", 0).integers(0, 1000, 5).tolist() == [186, 624, 101, 439, 79]


def test_generators_of_one_key_are_equal_and_independent_of_each_other() -> None:
    first, second = (torch_generator(3, "order", 5) for _ in range(2))
    drawn = torch.rand(4, generator=first)
    assert torch.equal(drawn, torch.rand(4, generator=second))
    assert not torch.equal(drawn, torch.rand(4, generator=first))
    a, b = (numpy_generator(3, "mix", 5) for _ in range(2))
    assert a.beta(0.2, 0.2, 3).tolist() == b.beta(0.2, 0.2, 3).tolist()


def test_streams_of_one_seed_are_not_correlated() -> None:
    names = ("init", "order", "augment", "mix", "method", "dropout")
    draws = [torch.rand(2000, generator=torch_generator(0, name)) for name in names]  # type: ignore[arg-type]
    for a, b in combinations(draws, 2):
        # 2000 pairs: the correlation of independent numbers has standard deviation 0.022.
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.11


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    state = torch.get_rng_state()
    key = stream(0, "init")
    torch_generator(0, "init")
    numpy_generator(0, "init")
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert stream(0, "init") == key
    torch.set_rng_state(state)


def test_what_a_method_draws_moves_no_other_stream() -> None:
    order = torch.randperm(50, generator=torch_generator(4, "order", 1))
    greedy = torch_generator(4, "method", "greedy")
    torch.rand(1000, generator=greedy)
    assert torch.equal(order, torch.randperm(50, generator=torch_generator(4, "order", 1)))
