"""Targets, their KLs, disagreement, and CCCP."""

import torch
from topic import Topic
from torch import Tensor

from adapters.asib import parts
from kdbench.losses import confidence_weights
from kdbench.methods.asib.kl import sample_kl
from kdbench.methods.asib.targets import Target, make_target, teachers_target
from kdbench.methods.asib.weights import disagreement, disagreement_rate, disagreement_weights

CCCP_ALPHA, CCCP_TAU = 0.2, 4.0


def run(case: Topic) -> None:
    """Compare one file."""
    student, teachers = case.leaf("in.s_logit"), tuple(case.tensor("in.t_logits"))
    teachers_alone(case, teachers)
    synergies(case, student, teachers)
    disagreements(case, teachers)
    synergy = case.leaf("in.zsyn")
    cccp = CCCP_ALPHA * sample_kl(student.detach(), synergy, CCCP_TAU).mean()
    case.out("cccp", cccp)
    case.grads("cccp", cccp, {"s_logit": student, "zsyn": synergy})


def teachers_alone(case: Topic, teachers: tuple[Tensor, ...]) -> None:
    """Compare what teachers make without the synergy."""
    hp = case.hp
    weighted = parts.protocol(hp, hp["tau"])
    uniform = parts.protocol({**hp, "teacher_weights": None}, hp["tau"])
    for index in range(len(teachers)):
        chosen = parts.protocol({**hp, "kd_teacher_index": index}, hp["tau"])
        case.out(f"teacher{index}", teachers_target(teachers, "teacher", parts.options({}), chosen))
    case.out("avg_uniform", teachers_target(teachers, "avg", parts.options({}), uniform))
    case.out("avg_weighted", teachers_target(teachers, "avg", parts.options({}), weighted))
    case.out("weighted_conf", teachers_target(teachers, "weighted_conf", parts.options({}), weighted))
    case.out("weighted_conf_w", confidence_weights(torch.stack(teachers), hp["tau"]))
    gate1 = parts.options({}, tau_gate=1.0)
    case.out("weighted_conf_gate1", teachers_target(teachers, "weighted_conf", gate1, weighted))


def synergies(case: Topic, student: Tensor, teachers: tuple[Tensor, ...]) -> None:
    """Compare the targets with an open gate."""
    hp = case.hp
    synergy = hp["synergy_logit_scale"] * case.tensor("in.zsyn")

    def target(how: str, **more: object) -> Target:
        return make_target(
            student, teachers, synergy, parts.options({}, kd_target=how, **more), parts.protocol(hp, hp["tau"]), epoch=0
        )

    case.out("synergy", target("synergy").logits)
    mixed = target("synergy", kd_ens_alpha=hp["kd_ens_alpha"], teacher_adapt_kd_warmup=1)
    case.out("synergy_ens", mixed.logits)
    auto = target("auto", tau_syn=hp["tau_syn"])
    average = teachers_target(teachers, "avg", parts.options({}), parts.protocol(hp, hp["tau"]))
    case.out("auto_kl_syn", sample_kl(synergy, student, hp["tau"]))
    case.out("auto_kl_avg", sample_kl(average, student, hp["tau"]))
    assert auto.synergy_wins is not None
    case.out("auto_choose_syn", auto.synergy_wins)
    case.out("auto_win_ratio", auto.synergy_wins.double().mean())
    case.out("auto_kd_vec", auto.kd_vec)
    case.out("auto_kd_vec_nosyn_tau", target("auto").kd_vec)
    case.grads("auto_mean", auto.kd_vec.mean(), {"s_logit": student})


def disagreements(case: Topic, teachers: tuple[Tensor, ...]) -> None:
    """Compare where teachers disagree."""
    labels, meta = case.tensor("in.y"), case.json("meta")
    for mode in ("none", "pred", "both_wrong", "any_wrong"):
        where = disagreement(teachers, labels, mode)
        case.out(f"disagree_{mode}", where)
        rate = disagreement_rate([(teachers, labels)], mode, max_samples=2000, max_batches=10)
        case.out(f"disagree_rate_{mode}", rate.percent)
        weights = disagreement_weights(where, meta["lambda_high"], meta["lambda_low"], teachers[0][:, 0])
        case.out(f"disagree_w_{mode}", weights)
