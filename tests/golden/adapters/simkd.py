"""SimKD: projected maps and predictions in both modes, the loss, and the total; BN statistics after the step."""

import torch
from case import Case
from torch import nn

from kdbench.losses import cross_entropy, kd_loss
from kdbench.maps import to_smaller
from kdbench.methods.simkd import Frozen, Projector, predict, simkd_loss


def run(case: Case) -> None:
    """Compare one file."""
    logits, labels = case.leaf("in.student_logits"), case.tensor("in.target")
    student, teacher = to_smaller(case.leaf("in.student_feat"), case.leaf("in.teacher_feat"))
    classifier = nn.Linear(*reversed(case.tensor("in.teacher_classifier.weight").shape))
    for name, parameter in classifier.named_parameters():
        with torch.no_grad():
            parameter.copy_(case.tensor(f"in.teacher_classifier.{name}"))
    frozen = Frozen(classifier)
    for suffix in ("_eval", "_train"):  # eval first: training moves the statistics, and its weights are the leaves
        projector = Projector(student.shape[1], teacher.shape[1], int(case.hp("factor")))
        case.load(projector.train(suffix == "_train"), "")
        projected = projector(student)
        case.value("projected_student" + suffix.removesuffix("_train"), projected)
        case.value("pred_logits" + suffix, predict(projected, frozen))
    case.value("aligned_teacher", teacher)
    case.value("pred_ce_train", cross_entropy(predict(projected, frozen), labels))
    ce, kl = cross_entropy(logits, labels), kd_loss(logits, case.leaf("in.teacher_logits"), case.hp("kd_T"))
    loss = simkd_loss(projected, teacher)
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * loss
    for name, value in {"ce": ce, "kl": kl, "simkd": loss, "total": total}.items():
        case.loss(name, value)
    case.buffers(projector, "")
