"""DKD: both parts, the ramp, and the total."""

from case import Case

from kdbench.losses import cross_entropy, warmup_factor
from kdbench.methods.dkd import dkd_loss, dkd_parts


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher, labels = case.leaf("in.student_logits"), case.leaf("in.teacher_logits"), case.tensor("in.target")
    tau = case.hp("T")
    tckd, nckd = dkd_parts(student, teacher, labels, tau)
    dkd = dkd_loss(student, teacher, labels, alpha=case.hp("alpha"), beta=case.hp("beta"), tau=tau)
    ramp = warmup_factor(int(case.hp("epoch")) - 1, case.hp("warmup"))  # the reference counts epochs from 1
    ce = cross_entropy(student, labels)
    case.value("warmup_factor", ramp)
    terms = {"ce": ce, "tckd": tckd, "nckd": nckd, "dkd": dkd, "kd_term": ramp * dkd}
    for name, value in {**terms, "total": case.hp("weight_ce") * ce + ramp * dkd}.items():
        case.loss(name, value)
