"""Whole A-Step batches."""

from typing import Any

import torch
from topic import Topic
from torch import Tensor, nn

from adapters.asib import parts
from kdbench.method import total
from kdbench.methods.asib.a_step import AInputs, AStep, a_step_terms
from kdbench.methods.asib.bridge import ask
from kdbench.methods.asib.schedules import Counters, tau_in_a

TAUS = ("tau", "tau_schedule", "tau_start", "tau_end", "tau_decay_power")
TERMS = {"ce": "ce", "kd": "kd", "cccp": "cccp", "kld": "ib", "feat": "feat"}


def run(case: Topic) -> None:
    """Compare one file."""
    for variant in case.variants():
        hp, options = variant.hp, parts.options(variant.hp)
        (bridge, own), (head, heads) = parts.bridge(variant, "", hp), parts.head(variant)
        tokens, adapters = tokens_of(variant)
        query = variant.leaf("in.s_feat")
        found = ask(bridge, query.detach(), tokens, options.ib_mbm_feature_norm, noise=variant.tensor("in.eps"))
        inputs = AInputs(
            student=variant.leaf("in.s_logit"),
            feature=query,
            labels=variant.tensor("in.y"),
            bottleneck=found,
            synergy=head(found.z),
            trained_teacher=tuple(adapters.values()),
            trained_bridge=(*own.values(), *heads.values()),
            log_temp=head.log_temp,
        )
        tau = tau_in_a(hp["a"], hp["T_A"], **{key: hp[key] for key in TAUS if key in hp})
        counters = Counters(ep=hp["ep"], a=hp["a"], g=hp["g"], a_epochs=hp["E_A"])
        step = a_step_terms(inputs, options, parts.protocol(hp, tau), counters, hp.get("last_synergy_acc"), tau)
        compare(variant, inputs, step)
        sum_ = total(step.terms)
        variant.out("total", sum_)
        leaves = {**own, **heads, **adapters, "s_logit": inputs.student, "s_feat": inputs.feature}
        variant.grads("total", sum_, leaves)
        constants = torch.autograd.grad(sum_, (inputs.student, inputs.feature), retain_graph=True, allow_unused=True)
        variant.equal(f"{variant.variant}constants", [gradient is None for gradient in constants], [True, True])


def tokens_of(variant: Topic) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the tokens (N, K, kv_dim) from behind the adapters, and the adapters' parameters."""
    tokens, parameters = [], {}
    for number, feature in enumerate(variant.tensor("in.t_feat2d")):
        prefix = f"adapter{number}."
        stored = variant.weights(prefix)
        (hidden, width), (out, _) = stored["0.weight"].shape, stored["2.weight"].shape
        adapter = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
        parameters |= variant.load(adapter, prefix, set(stored))
        tokens.append(adapter(feature))
    return torch.stack(tokens, 1), parameters


def compare(variant: Topic, inputs: AInputs, step: AStep) -> None:
    """Compare what a batch reports; what the file has no value of must not be part of the loss."""
    variant.out("z", inputs.bottleneck.z)
    variant.out("mu", inputs.bottleneck.mu)
    variant.out("logvar", inputs.bottleneck.logvar)
    variant.out("zsyn", inputs.synergy)
    variant.out("cw", step.weights)
    variant.out("tau", step.metrics["tau"])
    variant.out("kd_gate", step.metrics["kd_gate"])
    variant.out("total_unclamped", step.unclamped)
    values: dict[str, Any] = {name: step.terms.get(own) for name, own in TERMS.items()}
    for name, term in values.items():
        variant.equal(f"{variant.variant}{name} is there", term is not None, variant.has(f"out.{name}"))
        if term is not None:
            # CCCP is stored with its weight.
            variant.out(name, term.weight * term.value if name == "cccp" else term.value)
    if variant.has("out.beta"):
        variant.out("beta", step.metrics["ib_beta"])
