"""Every built-in method on every kind of network: it trains the pair, or says in plain words why not; none crashes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from kdbench import registry as registries
from kdbench.backbones.base import Backbone, Network, by_channels
from kdbench.config.loading import load_anchor
from kdbench.errors import Unsupported
from kdbench.registry import Registry
from kdbench.rehearsal import Extras, Rehearsal
from kdbench.types import Context, NetworkInfo, PairInfo, Source, StageShape

SOURCE = Source("t", 2020, "https://example.org")
EXTRAS = Extras("meta")
IMAGE = StageShape((3, 32, 32))


class Tokens(Network):
    """A transformer's shapes: 16 tokens of 8 numbers in every stage."""

    stage_count, embedding_dim = 3, 8

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        self.patch, self.head = nn.Conv2d(in_channels, 8, 8, 8), nn.Linear(8, num_classes)
        self.mix = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        x = self.patch(x).flatten(2).transpose(1, 2) if index == 0 else self.mix[index - 1](x)
        return (x if pre else None), x

    def embed(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Maps(Network):
    """Convolutions whose maps have given channels and heights."""

    def __init__(self, shapes: tuple[tuple[int, int], ...], num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        self.stage_count, self.embedding_dim, self.sides = len(shapes), shapes[-1][0], [side for _, side in shapes]
        widths = [in_channels, *(channels for channels, _ in shapes)]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.head = nn.Linear(self.embedding_dim, num_classes)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        x = nn.functional.adaptive_avg_pool2d(self.layers[index](x), self.sides[index])
        return (x if pre else None), x.relu()


def maps(name: str, *shapes: tuple[int, int]) -> Backbone:
    return Backbone(name, "t", by_channels(partial(Maps, shapes)), SOURCE)


ODD = {
    "tokens": Backbone("tokens", "t", by_channels(Tokens), SOURCE),
    "one_channel": maps("one_channel", (4, 32), (1, 16), (1, 8), (1, 4)),
    "one_pixel": maps("one_pixel", (4, 32), (8, 1), (8, 1), (8, 1)),
    "other_sizes": maps("other_sizes", (4, 32), (8, 13), (8, 7), (8, 3)),
    "stem_only": maps("stem_only", (8, 8)),
}
SHIPPED = ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet8x4"]


@cache
def known() -> Registry:
    return registries.load()


@cache
def shapes(backbone: Backbone) -> NetworkInfo:
    return backbone.info(10, IMAGE)


def methods() -> Iterable[str]:
    return sorted(m.name for m in known().methods.values() if m.__module__.startswith("kdbench.methods."))


def outcome(method: str, student: str, *teachers: str, batch: int = 32, size: int = 500, **options: object) -> str:
    """Return why a method declines a cell, or nothing; whatever else is wrong raises."""
    backbones = [ODD.get(name) or known().backbones[name] for name in (student, *teachers)]
    infos = [shapes(backbone) for backbone in backbones]
    kind, anchor = known().methods[method], load_anchor("crd", known().anchors.as_mapping())
    taught = tuple(infos[1:]) if kind.uses_teacher else ()
    pair = PairInfo("-".join((student, *teachers)), infos[0], taught, IMAGE)
    context = Context(pair, size, 8, max(1, size // batch), batch, seed=0)
    if reason := kind.supports(pair):
        return reason
    rehearsal = Rehearsal(backbones[0], tuple(backbones[1:]) if taught else (), context, anchor, EXTRAS)
    try:
        rehearsal.passes(kind, kind.options_type.model_validate(options))
    except Unsupported as error:
        return str(error)
    return ""


@pytest.mark.parametrize("method", methods())
def test_shipped_families_on_one_another(method: str) -> None:
    # Each student has two of the others as teachers, each family is both.
    turned = [SHIPPED[by:] + SHIPPED[:by] for by in (1, 3)]
    reasons = {(s, t): outcome(method, s, t) for others in turned for s, t in zip(SHIPPED, others, strict=True)}
    counts = {name: len(shapes(known().backbones[name]).stages) for name in SHIPPED}
    for (student, teacher), reason in reasons.items():
        # Declining takes a cause: another number of stages, or a map that must grow by another factor than two.
        assert not reason or counts[student] != counts[teacher] or "smaller" in reason, (student, teacher, reason)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("method", methods())
def test_odd_networks_on_either_side(method: str, odd: str) -> None:
    for student, teacher in ((odd, "resnet20"), ("resnet20", odd), (odd, odd)):
        reason = outcome(method, student, teacher)
        assert reason == "" or len(reason.split()) > 3, reason


@pytest.mark.parametrize("method", ["fitnet", "at", "reviewkd", "simkd", "ab", "ft", "vid", "nst"])
def test_tokens_are_no_maps(method: str) -> None:
    for student, teacher in (("tokens", "resnet20"), ("resnet20", "tokens")):
        assert "tokens" in outcome(method, student, teacher)


@pytest.mark.parametrize("method", ["vanilla_kd", "dkd", "crd", "rkd", "pkt", "cc"])
def test_logits_and_embeddings_need_no_maps(method: str) -> None:
    assert outcome(method, "tokens", "resnet20") == outcome(method, "resnet20", "tokens") == ""


@pytest.mark.parametrize("other", ["tokens", "stem_only", "one_pixel", "vgg8", "MobileNetV2"])
@pytest.mark.parametrize("method", methods())
def test_other_teachers_only_have_to_answer(method: str, other: str) -> None:
    assert outcome(method, "resnet8x4", "resnet20", other) == ""
    assert outcome(method, "resnet8x4", "resnet20", "resnet20", other) == ""


def test_one_channel_is_too_little_for_half_of_it() -> None:
    assert "channel" in outcome("ft", "resnet20", "one_channel")
    assert "channel" in outcome("simkd", "resnet20", "one_channel")


@pytest.mark.parametrize("method", methods())
def test_a_batch_of_one(method: str) -> None:
    reason = outcome(method, "resnet20", "resnet20", batch=1)
    comparing_images = {"sp", "rkd", "pkt", "cc", "sskd", "reviewkd"}  # the last one's BN sees one value a channel
    assert bool(reason) == (method in comparing_images), reason


def test_more_negatives_than_images() -> None:
    reason = outcome("crd", "resnet20", "resnet20", nce_k=501)
    assert "501" in reason
    assert "500" in reason
    assert outcome("crd", "resnet20", "resnet20", nce_k=100) == ""


def test_nothing_is_drawn_from_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    outcome("crd", "resnet20", "resnet20")
    assert torch.equal(torch.rand(1), expected)
