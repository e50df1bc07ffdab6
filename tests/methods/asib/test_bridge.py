"""Bridge and head: shapes, the code's noise, what normalisation and dropout do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdbench.methods.asib.bridge import Bottleneck, Bridge, ask, certainty, ib_kl, normalise
from kdbench.methods.asib.head import SynergyHead
from kdbench.methods.asib.synergy import ensemble_logits, synergy_of

NAMES = {
    *(f"{layer}.{part}" for layer in ("q_proj", "kv_proj", "mu", "logvar") for part in ("weight", "bias")),
    *(f"{layer}.{part}" for layer in ("q_norm", "kv_norm", "out_norm") for part in ("weight", "bias")),
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
}


def test_parameters_have_the_documented_names() -> None:
    assert set(Bridge(3, 4, 6, 2).state_dict()) == NAMES
    assert set(SynergyHead(6, 4).state_dict()) == {"ln.weight", "ln.bias", "fc.weight", "fc.bias"}
    assert "log_temp" in SynergyHead(6, 4, learnable=True).state_dict()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ib_mbm_n_head.*5 heads do not divide the width 8"):
        Bridge(3, 4, 8, heads=5)


@pytest.mark.parametrize("shape", [(6, 2, 4), (6, 5), (6, 2, 2, 3), (6,), (6, 3, 2)])
def test_tokens_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tokens of the bridge"):
        Bridge(4, 3, 4)(torch.zeros(6, 4), torch.zeros(shape))


def test_one_token_may_come_flat_or_in_pieces(world: Any) -> None:
    one = world.tokens[:, 0]
    expected = world.bridge(world.feature, one.unsqueeze(1)).mu
    assert torch.equal(world.bridge(world.feature, one).mu, expected)
    assert torch.equal(world.bridge(world.feature, one.unsqueeze(2)).mu, expected)


def test_of_one_token_the_answer_is_that_token(world: Any) -> None:
    """With one key attention has weight 1, so the query decides nothing but the residual."""
    bridge, one = world.bridge, world.tokens[:, 0]
    width = bridge.mu.in_features
    value = bridge.kv_norm(bridge.kv_proj(one)) @ bridge.attn.in_proj_weight[2 * width :].T
    answer = bridge.attn.out_proj(value + bridge.attn.in_proj_bias[2 * width :])
    hidden = bridge.out_norm(answer + bridge.q_norm(bridge.q_proj(world.feature)))
    torch.testing.assert_close(bridge(world.feature, one).mu, bridge.mu(hidden))


@pytest.mark.parametrize("training", [True, False])
def test_noise_alone_decides_between_sample_and_mean(world: Any, training: bool) -> None:
    """Row 27: the mode of the module changes nothing."""
    world.bridge.train(training)
    mean = world.bridge(world.feature, world.tokens)
    assert torch.equal(mean.z, mean.mu)
    sample = world.bridge(world.feature, world.tokens, noise=world.noise)
    expected = sample.mu + (sample.logvar / 2).exp().clamp(min=1e-4) * world.noise
    assert torch.equal(sample.z, expected)


def test_the_log_variance_is_clipped_before_its_standard_deviation() -> None:
    bridge = Bridge(2, 2, 2, logvar_clip=1.0, min_std=0.7)
    with torch.no_grad():
        bridge.logvar.weight.zero_()
        bridge.logvar.bias.copy_(torch.tensor([5.0, -5.0]))
    found = bridge(torch.ones(1, 2), torch.ones(1, 2), noise=torch.ones(1, 2))
    assert found.logvar.tolist() == [[1.0, -1.0]]
    torch.testing.assert_close(found.z - found.mu, torch.tensor([[math.exp(0.5), 0.7]]))  # exp(-0.5) is 0.61


def test_labels_reach_the_variance_of_a_sampled_code(world: Any) -> None:
    """Row 12: with the mean, nothing but the bottleneck's KL would teach the log variance."""
    sampled = world.a()
    (gradient,) = torch.autograd.grad(sampled.synergy.square().sum(), world.bridge.logvar.weight)
    assert gradient.abs().max() > 0
    mean = ask(world.bridge, world.feature, world.tokens, "l2", noise=None)
    of_mean = torch.autograd.grad(world.head(mean.z).square().sum(), world.bridge.logvar.weight, allow_unused=True)
    assert of_mean == (None,)


def test_normalisation_is_of_each_vector() -> None:
    tokens = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    torch.testing.assert_close(normalise(tokens, "l2"), torch.tensor([[[0.6, 0.8], [0.0, 1.0]]]))
    torch.testing.assert_close(normalise(tokens, "layernorm"), torch.tensor([[[-1.0, 1.0]] * 2]), atol=1e-4, rtol=0)
    assert normalise(tokens, "none") is tokens
    with pytest.raises(ValueError, match="ib_mbm_feature_norm"):
        normalise(tokens, "l1")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["l2", "layernorm"])
def test_feature_norm_holds_for_teaching_and_evaluation_alike(world: Any, how: str) -> None:
    """Row 16: query and tokens; a scale of either makes no difference."""
    options = world.options(ib_mbm_feature_norm=how)
    for query, tokens in ((world.feature, world.tokens), (7 * world.feature, 3 * world.tokens)):
        taught = synergy_of(world.bridge, world.head, query, tokens, options, None).logits
        evaluated = ensemble_logits(world.bridge, world.head, query, tokens, options)
        plain = world.bridge(normalise(world.feature, how), normalise(world.tokens, how)).mu
        torch.testing.assert_close(taught, world.head(plain), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(evaluated, taught)


def test_the_ensemble_is_the_head_of_the_mean_and_runs_each_part_once(world: Any, calls: Any) -> None:
    """Row 2."""
    options = world.options(use_mu_for_kd=False, synergy_logit_scale=0.5, ib_mbm_feature_norm="none")
    mean = world.bridge(world.feature, world.tokens).mu
    expected = world.head(mean)
    bridge_calls, head_calls = calls(world.bridge), calls(world.head)
    found = ensemble_logits(world.bridge, world.head, world.feature, world.tokens, options)
    torch.testing.assert_close(found, expected)
    assert (len(bridge_calls), len(head_calls)) == (1, 1)
    assert not found.requires_grad


def test_dropout_is_off_while_the_synergy_teaches_and_modes_come_back(world: Any) -> None:
    head = SynergyHead(4, 5, dropout=0.9).double().train()
    head.ln.eval()
    found = [synergy_of(world.bridge, head, world.feature, world.tokens, world.options(), None) for _ in range(2)]
    assert torch.equal(found[0].logits, found[1].logits)
    assert (head.training, head.drop.training, head.ln.training, world.bridge.training) == (True, True, False, True)
    assert not torch.equal(head(world.noise), head(world.noise))


def test_the_temperature_divides_the_logits_and_cannot_vanish() -> None:
    plain, learnt = SynergyHead(2, 3), SynergyHead(2, 3, learnable=True, log_temp=math.log(2.0))
    learnt.load_state_dict({**plain.state_dict(), "log_temp": torch.tensor(math.log(2.0))})
    code = torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(2 * learnt(code), plain(code))
    learnt.load_state_dict({**plain.state_dict(), "log_temp": torch.tensor(-50.0)})
    torch.testing.assert_close(learnt(code), plain(code) / 1e-4)


def test_gelu_is_the_exact_one() -> None:
    head, code = SynergyHead(2, 1), torch.tensor([[0.0, 1.0]])
    (low, high), phi = (-1 / math.sqrt(1 + 4e-5), 1 / math.sqrt(1 + 4e-5)), lambda x: (1 + math.erf(x / 2**0.5)) / 2
    torch.testing.assert_close(head.activate(code), torch.tensor([[low * phi(low), high * phi(high)]]))


def test_the_bottleneck_kl_sums_over_the_code() -> None:
    """mu 1, logvar 0: 1/2 for each of two entries; mu 0, logvar ln 2: (2 - 1 - ln 2)/2 each."""
    found = ib_kl(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [math.log(2)] * 2]))
    assert found.item() == pytest.approx((1.0 + (1 - math.log(2))) / 2)


def test_certainty_is_the_mean_precision() -> None:
    """Not the precision of the mean log variance, which here is 1."""
    assert certainty(torch.tensor([[math.log(2), -math.log(2)]])).tolist() == pytest.approx([1.25])


def test_half_precision_gives_wide_results() -> None:
    bridge = Bridge(4, 3, 4).to(torch.bfloat16)
    found = bridge(torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(2, 2, 3, dtype=torch.bfloat16))
    assert isinstance(found, Bottleneck)
    assert {t.dtype for t in (found.z, found.mu, found.logvar)} == {torch.float32}
