"""The loss of one A-Step batch: bridge and head learn the labels, and once they can, the student's view (2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.losses import wide
from kdbench.method import LossProtocol
from kdbench.methods.asib.bridge import Bottleneck, ib_kl
from kdbench.methods.asib.clamp import Limited, limited
from kdbench.methods.asib.features import feature_distance
from kdbench.methods.asib.gate import gate_in_a
from kdbench.methods.asib.kl import sample_ce, sample_kl, weighted_mean
from kdbench.methods.asib.metrics import constant, of_weights
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.schedules import Counters, beta, cccp_ramp, window
from kdbench.methods.asib.weights import certainty_in_a
from kdbench.types import Term


@dataclass(frozen=True)
class AInputs:
    """One batch of an A-Step.

    Args:
        student: The student's logits (N, C), constants.
        feature: The student's query (N, q_dim), before normalisation, a constant.
        labels: Class indices (N,).
        bottleneck: The bridge's, sampled, with gradients.
        synergy: Logits (N, C) of the head, with gradients.
        trained_teacher: Trained tensors of teachers and their adapters.
        trained_bridge: Tensors of bridge and head.
        log_temp: Logarithm of the head's learnt temperature, or None.
    """

    student: Tensor
    feature: Tensor
    labels: Tensor
    bottleneck: Bottleneck
    synergy: Tensor
    trained_teacher: Sequence[Tensor] = ()
    trained_bridge: Sequence[Tensor] = ()
    log_temp: Tensor | None = None


@dataclass(frozen=True)
class AStep:
    """The loss of an A-Step batch.

    Args:
        terms: What is minimised: the sum of weight times value.
        metrics: Constants on the batch's device.
        composition: Names of the terms before the clamp; the loss guard compares like with like.
        unclamped: The weighted sum before the clamp, a constant.
        weights: Certainty weights (N,), constants.
        kd_on: Whether the student's view is part of the loss.
    """

    terms: dict[str, Term]
    metrics: dict[str, Tensor]
    composition: frozenset[str]
    unclamped: Tensor
    weights: Tensor
    kd_on: bool


def a_step_terms(
    inputs: AInputs,
    options: ASIBOptions,
    protocol: LossProtocol,
    counters: Counters,
    last_synergy_acc: float | None,
    tau: float | None = None,
) -> AStep:
    """Return the loss of an A-Step batch.

    Args:
        inputs: The batch.
        options: The method's options.
        protocol: ``kd_weight`` (unless ``teacher_adapt_alpha_kd`` is set) and ``base_tau``.
        counters: ``ep``, ``a``, ``g``, ``a_epochs``.
        last_synergy_acc: Moving average of the synergy's accuracy; None = never measured.
        tau: The A-Step's temperature; None = the key tau, which comes first wherever it has a value.

    Source:
        Specification of the ASIB benchmark, 2.2.
    """
    only = counters.ep < window(options, counters.a_epochs)
    cw = torch.ones_like(wide(inputs.synergy.detach()[:, 0]))
    if options.use_ib and not only:
        cw = certainty_in_a(inputs.bottleneck.logvar, options.min_cw)
    ce = weighted_mean(sample_ce(inputs.synergy, inputs.labels, options.label_smoothing), cw)
    terms = {"ce": Term(ce, 1.0 if only else options.synergy_ce_alpha)}
    tau_a = protocol.base_tau if tau is None else tau
    alpha = options.teacher_adapt_alpha_kd
    kd_weight = protocol.kd_weight if alpha is None else alpha
    kd_on = not only and kd_weight > 0 and gate_in_a(options, last_synergy_acc)
    if kd_on:
        kl = sample_kl(inputs.student.detach(), inputs.synergy, tau_a)
        terms["kd"] = Term(weighted_mean(kl, cw), kd_weight)
        if options.use_cccp and options.use_cccp_in_a:
            ramp = cccp_ramp(options, counters.ep, counters.a_epochs)
            kl = sample_kl(inputs.student.detach(), inputs.synergy, protocol.base_tau)
            terms["cccp"] = Term(kl.mean(), options.cccp_alpha * ramp)
    kld = ib_kl(inputs.bottleneck.mu, inputs.bottleneck.logvar)
    if not only:
        terms |= _bottleneck_terms(inputs, options, kld, beta(options, counters.g))
    terms |= _regularisers(inputs, options)
    clamp = options.use_loss_clamp and not options.disable_loss_clamp_in_a
    bounded = limited(terms, options if clamp else options.model_copy(update={"use_loss_clamp": False}), counters.a)
    metrics = _metrics(inputs, cw, kld.detach(), kd_on, beta(options, counters.g), tau_a)
    return _step(terms, bounded, metrics, cw, kd_on)


def _step(terms: dict[str, Term], bounded: Limited, metrics: dict[str, Tensor], cw: Tensor, kd_on: bool) -> AStep:
    return AStep(bounded.terms, metrics, frozenset(terms), bounded.before, cw, kd_on)


def _bottleneck_terms(inputs: AInputs, options: ASIBOptions, kld: Tensor, kl_weight: float) -> dict[str, Term]:
    """Return the terms after the window that need no gate: the bottleneck's KL and its mean towards the feature."""
    terms = {"ib": Term(kld, kl_weight)} if options.use_ib else {}
    given = options.feat_kd_alpha_in_a
    weight = options.feat_kd_alpha if given is None else given
    mu, feature = inputs.bottleneck.mu, inputs.feature.detach()
    if weight > 0 and feature.shape == mu.shape:
        cw = certainty_in_a(inputs.bottleneck.logvar, options.min_cw)
        terms["feat"] = Term(weighted_mean(feature_distance(feature, mu), cw), weight)
    return terms


def mean_square(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean over tensors of the mean square of each."""
    return torch.stack([wide(tensor).square().mean() for tensor in tensors]).mean()


def _regularisers(inputs: AInputs, options: ASIBOptions) -> dict[str, Term]:
    terms = {}
    if options.reg_lambda > 0 and inputs.trained_teacher:
        terms["reg_teacher"] = Term(mean_square(inputs.trained_teacher), options.reg_lambda)
    if options.ib_mbm_reg_lambda > 0 and inputs.trained_bridge:
        terms["reg_bridge"] = Term(mean_square(inputs.trained_bridge), options.ib_mbm_reg_lambda)
    if options.synergy_temp_reg > 0 and inputs.log_temp is not None:
        terms["reg_temp"] = Term(wide(inputs.log_temp).square(), options.synergy_temp_reg)
    return terms


def _metrics(inputs: AInputs, cw: Tensor, kld: Tensor, kd_on: bool, kl_weight: float, tau: float) -> dict[str, Tensor]:
    return {
        **of_weights(cw),
        "kd_gate": constant(float(kd_on), cw),
        "ib_kld": kld,
        "logvar_mean": inputs.bottleneck.logvar.detach().mean(),
        "ib_beta": constant(kl_weight, cw),
        "tau": constant(tau, cw),
    }
