"""Whole B-Step batches."""

from typing import Any

from topic import Topic

from adapters.asib import parts
from kdbench.config.schema import Loss
from kdbench.method import total
from kdbench.methods.asib.b_step import BInputs, BStep, b_step_terms
from kdbench.methods.asib.kl import sample_ce
from kdbench.methods.asib.schedules import Counters
from kdbench.schedule import temperature

TAUS = ("tau", "tau_schedule", "tau_start", "tau_end", "tau_decay_power")


def run(case: Topic) -> None:
    """Compare one file."""
    for variant in case.variants():
        hp = variant.hp
        inputs = BInputs(
            student=variant.leaf("in.s_logit"),
            feature=variant.leaf("in.s_feat"),
            teachers=tuple(variant.tensor("in.t_logits")),
            tokens=variant.tensor("in.t_tokens").transpose(0, 1),
            labels=variant.tensor("in.y"),
            mix=parts.mix(hp, variant.tensor("in.y_b")),
            noise=variant.tensor("in.eps"),
        )
        loss = Loss(ce_alpha=1, kd_alpha=0, **{key: hp[key] for key in TAUS if hp.get(key) is not None})
        tau = temperature(loss, hp["ep"], hp["E_stage"], (hp["b"], hp["E_total"]))
        protocol, counters = parts.protocol(hp, tau), Counters(ep=hp["ep"], b=hp["b"])
        (bridge, own), (head, heads) = parts.bridge(variant, "", hp), parts.head(variant)
        options = parts.options(hp)
        found = b_step_terms(inputs, options, protocol, counters, hp.get("last_synergy_acc"), bridge, head)
        ce_vec = sample_ce(inputs.student, inputs.labels, protocol.label_smoothing, inputs.mix)
        variant.out("ce_vec", ce_vec)
        compare(variant, hp, found)
        sum_ = total(found.terms)
        variant.out("total", sum_)
        variant.grads("total", sum_, {"s_logit": inputs.student, "s_feat": inputs.feature, **own, **heads})


def compare(variant: Topic, hp: dict[str, Any], found: BStep) -> None:
    """Compare what a batch reports."""
    for name in ("tau", "kd_alpha_eff"):
        variant.out(name, found.metrics[name])
    variant.out("kd_scale", found.metrics["kd_scale_mean"])
    variant.out("target", found.target.logits)
    variant.out("kd_vec", found.target.kd_vec)
    variant.text("used", found.target.kind)
    variant.out("weights", found.weights)
    variant.out("cw", found.certainty)
    variant.out("ce", found.terms["ce"].value)
    variant.out("kd", found.terms["kd"].value)
    variant.out("total_unclamped", found.unclamped)
    variant.equal("feature term", "feat" in found.terms, variant.has("out.feat"))
    variant.equal("bridge ran", found.synergy is not None, variant.has("out.mu"))
    variant.equal("choice", found.target.synergy_wins is not None, variant.has("out.choose_syn"))
    if "feat" in found.terms:
        variant.out("feat", found.terms["feat"].value)
    if found.target.synergy_wins is not None:
        variant.out("choose_syn", found.target.synergy_wins)
        variant.out("win_ratio", found.metrics["auto_syn_win_ratio"])
    if found.synergy is not None:
        variant.out("mu", found.synergy.bottleneck.mu)
        variant.out("logvar", found.synergy.bottleneck.logvar)
        variant.out("zsyn", found.synergy.logits)
