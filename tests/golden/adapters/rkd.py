"""RKD: both parts, their weighted sum, and the total; squared distances where the file says so."""

from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.rkd import rkd_loss, rkd_parts


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher = case.leaf("in.student_feat"), case.leaf("in.teacher_feat")
    logits, teacher_logits = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    ce, kl = cross_entropy(logits, case.tensor("in.target")), kd_loss(logits, teacher_logits, case.hp("kd_T"))
    squared = case.has("hp.squared") and bool(case.hp("squared"))
    distance, angle = rkd_parts(student, teacher, squared=squared)
    weights = {"distance_weight": case.hp("weight_distance"), "angle_weight": case.hp("weight_angle")}
    own = rkd_loss(student, teacher, **weights, squared=squared)
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * own
    for name, value in {"ce": ce, "kl": kl, "distance": distance, "angle": angle, "rkd": own, "total": total}.items():
        case.loss(name, value)
