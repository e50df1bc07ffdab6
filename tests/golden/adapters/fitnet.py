"""FitNet: the regressor in training mode with its running statistics, and the hint."""

from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.maps import Connector
from kdbench.methods.fitnet import hint_loss
from kdbench.types import StageShape


def run(case: Case) -> None:
    """Compare one file."""
    logits, teacher_logits = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    student, teacher = case.leaf("in.student_feat"), case.leaf("in.teacher_feat")
    regressor = Connector(StageShape(tuple(student.shape[1:])), StageShape(tuple(teacher.shape[1:])), relu=True)
    case.load(regressor, "")
    regressed = regressor(student)
    case.value("regressed", regressed)
    case.buffers(regressor, "")
    ce, kl = cross_entropy(logits, case.tensor("in.target")), kd_loss(logits, teacher_logits, case.hp("kd_T"))
    hint = hint_loss(regressed, teacher)
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * hint
    for name, value in {"ce": ce, "kl": kl, "hint": hint, "total": total}.items():
        case.loss(name, value)
