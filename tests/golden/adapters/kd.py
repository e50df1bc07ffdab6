"""KD: cross-entropy and KL divergence at one temperature; three references agree."""

from case import Case

from kdbench.losses import cross_entropy, kd_loss


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    ce, kl = cross_entropy(student, case.tensor("in.target")), kd_loss(student, teacher, case.hp("kd_T"))
    case.loss("ce", ce)
    for name in ("kl", "kl_mdistiller", "kl_simkd"):
        if case.has(f"out.loss_{name}"):
            case.loss(name, kl)
    case.loss("total", case.hp("weight_ce") * ce + case.hp("weight_kl") * kl)
