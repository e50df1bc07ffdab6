"""The loss of one B-Step batch: labels, KD towards the target, and the student's feature (3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.losses import wide
from kdbench.method import LossProtocol, Mix
from kdbench.methods.asib.clamp import kd_scale, limited
from kdbench.methods.asib.features import feature_distance
from kdbench.methods.asib.gate import gate_in_b
from kdbench.methods.asib.kl import sample_ce, sample_kl, weighted_mean
from kdbench.methods.asib.metrics import constant, of_weights
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.schedules import Counters, kd_warmup
from kdbench.methods.asib.synergy import Synergy, synergy_of
from kdbench.methods.asib.targets import OF_SYNERGY, Target, make_target
from kdbench.methods.asib.weights import certainty_in_b, disagreement, disagreement_weights
from kdbench.types import Term

_CLAMPED_BELOW = 0.999


@dataclass(frozen=True)
class BInputs:
    """One batch of a B-Step.

    Args:
        student: The student's logits (N, C), with gradients.
        feature: The student's query (N, q_dim), with gradients, before normalisation.
        teachers: Each teacher's logits (N, C), constants.
        tokens: The teachers' tokens (N, K, kv_dim), constants; None where the bridge cannot run.
        labels: Class indices (N,).
        mix: Partners of mixed images, or None.
        noise: Standard normal draws (N, width) for ``use_mu_for_kd: false``.
    """

    student: Tensor
    feature: Tensor
    teachers: tuple[Tensor, ...]
    tokens: Tensor | None
    labels: Tensor
    mix: Mix | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class BStep:
    """The loss of a B-Step batch.

    Args:
        terms: What is minimised: the sum of weight times value.
        metrics: Constants on the batch's device.
        metric_weights: Weight of a metric in the epoch's mean, where it is not 1.
        target: The KD target.
        weights: Weights (N,) of KD, and of CE unless images are mixed; constants.
        certainty: Their part that comes from the bottleneck (N,).
        unclamped: The weighted sum before the clamp, a constant.
        synergy: What the bridge said, or None where it did not run.
    """

    terms: dict[str, Term]
    metrics: dict[str, Tensor]
    metric_weights: dict[str, Tensor]
    target: Target
    weights: Tensor
    certainty: Tensor
    unclamped: Tensor
    synergy: Synergy | None


def b_step_terms(
    inputs: BInputs,
    options: ASIBOptions,
    protocol: LossProtocol,
    counters: Counters,
    last_synergy_acc: float | None,
    bridge: nn.Module | None = None,
    head: nn.Module | None = None,
) -> BStep:
    """Return the loss of a B-Step batch; bridge and head run only where the target needs them and the gate is open.

    Args:
        inputs: The batch.
        options: The method's options.
        protocol: Weights, temperature of the epoch, label smoothing, teacher index and weights.
        counters: ``ep`` and ``b``.
        last_synergy_acc: Moving average of the synergy's accuracy; None = never measured.
        bridge: The bridge, where there is one.
        head: The synergy head, where there is one.

    Raises:
        ValueError: If the gate is open, but what the synergy needs is missing.

    Source:
        Specification of the ASIB benchmark, 3.
    """
    gate = gate_in_b(options, last_synergy_acc, len(inputs.teachers))
    synergy = _synergy(inputs, options, bridge, head) if gate and options.kd_target in OF_SYNERGY else None
    cw, weights = _weights(inputs, options, synergy)
    ce_vec = sample_ce(inputs.student, inputs.labels, protocol.label_smoothing, inputs.mix)
    ce = weighted_mean(ce_vec, weights) if inputs.mix is None else ce_vec.mean()
    logits = None if synergy is None else synergy.logits
    target = make_target(inputs.student, inputs.teachers, logits, options, protocol, counters.ep)
    kd = weighted_mean(target.kd_vec, weights)
    scale = kd_scale(ce, kd, options, counters.ep)
    alpha = protocol.kd_weight * kd_warmup(options, counters.ep)
    terms = {"ce": Term(ce, protocol.ce_weight), "kd": Term(kd, alpha * scale)}
    if synergy is not None:
        terms |= _synergy_terms(inputs, options, protocol, synergy, cw)
    bounded = limited(terms, options, counters.b)
    clamped = (scale < _CLAMPED_BELOW).to(scale.dtype)
    metrics = {
        **_metrics(inputs, options, target, cw),
        "gate_ratio": constant(float(gate), cw),
        "kd_clamp_ratio": clamped,
        "kd_scale_mean": scale,
        "kd_alpha_eff": constant(alpha, cw),
        "tau": constant(protocol.tau, cw),
    }
    means_of = {"kd_scale_mean": clamped}  # the mean over batches that were scaled down
    return BStep(bounded.terms, metrics, means_of, target, weights, cw, bounded.before, synergy)


def _synergy(inputs: BInputs, options: ASIBOptions, bridge: nn.Module | None, head: nn.Module | None) -> Synergy:
    if bridge is None or head is None or inputs.tokens is None:
        raise ValueError(
            f"kd_target - the gate is open for '{options.kd_target}', but bridge, head or tokens are missing - allowed "
            "is this target only where they are built - build them, or choose another kd_target"
        )
    return synergy_of(bridge, head, inputs.feature.detach(), inputs.tokens.detach(), options, inputs.noise)


def _weights(inputs: BInputs, options: ASIBOptions, synergy: Synergy | None) -> tuple[Tensor, Tensor]:
    """Return the certainty weights and their product with the disagreement weights, constants (N,)."""
    ones = torch.ones_like(wide(inputs.student.detach()[:, 0]))
    cw = ones
    if synergy is not None:
        cw = certainty_in_b(synergy.bottleneck.logvar, options.min_cw, options.max_cw)
    if not options.use_disagree_weight:
        return cw, cw
    where = disagreement(inputs.teachers, inputs.labels, options.disagree_mode)
    return cw, cw * disagreement_weights(where, options.disagree_lambda_high, options.disagree_lambda_low, ones)


def _synergy_terms(
    inputs: BInputs, options: ASIBOptions, protocol: LossProtocol, synergy: Synergy, cw: Tensor
) -> dict[str, Term]:
    """Return the terms that exist only where the bridge ran: the feature term and, on demand, CCCP."""
    terms = {}
    mu = synergy.bottleneck.mu.detach()
    if options.feat_kd_alpha > 0 and inputs.feature.shape == mu.shape:
        distance = feature_distance(inputs.feature, mu, options.feat_kd_clip, options.feat_kd_huber_beta)
        terms["feat"] = Term(weighted_mean(distance, cw), options.feat_kd_alpha)
    if options.use_cccp and options.use_cccp_in_b:
        kl = sample_kl(synergy.logits.detach(), inputs.student, protocol.base_tau)
        terms["cccp"] = Term(kl.mean(), options.cccp_alpha)
    return terms


def _metrics(inputs: BInputs, options: ASIBOptions, target: Target, cw: Tensor) -> dict[str, Tensor]:
    """Return the metrics of weights and target; ``kd_syn_ratio`` is the share of samples that the synergy teaches."""
    taught = constant(float(target.kind == "synergy"), cw)
    metrics = {**of_weights(cw), "kd_syn_ratio": taught, "kd_nonfinite": target.dropped.to(cw.dtype).mean()}
    if target.synergy_wins is not None:
        metrics["kd_syn_ratio"] = metrics["auto_syn_win_ratio"] = target.synergy_wins.to(cw.dtype).mean()
    where = disagreement(inputs.teachers, inputs.labels, options.disagree_mode)
    return {**metrics, "disagree_mean": where.to(cw.dtype).mean()}
