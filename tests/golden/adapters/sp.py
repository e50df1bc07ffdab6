"""SP: the loss on maps of any two sizes, and the total."""

from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.sp import sp_loss


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher = case.leaf("in.student_feat"), case.leaf("in.teacher_feat")
    logits, teacher_logits = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    ce, kl = cross_entropy(logits, case.tensor("in.target")), kd_loss(logits, teacher_logits, case.hp("kd_T"))
    own = sp_loss(student, teacher)
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * own
    for name, value in {"ce": ce, "kl": kl, "sp": own, "total": total}.items():
        case.loss(name, value)
