"""CRD: embeddings, scores, Z, losses and banks over a chain of steps, with the stored positives and negatives."""

import torch
from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.crd import Contrast

NAMES = {"embed_s.": "student_embed.", "embed_t.": "teacher_embed."}


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher = (case.at_step(0).tensor(f"in.{who}_feat") for who in ("student", "teacher"))
    banks = {who: case.tensor(f"in.memory_{who}_init") for who in ("student", "teacher")}
    size, width = banks["student"].shape
    contrast = Contrast(
        student.shape[1], teacher.shape[1], width, size,
        tau=case.hp("T"), momentum=case.hp("momentum"), eps=case.hp("eps"),
    )  # fmt: skip
    case.load(contrast, "", NAMES)
    contrast.student_bank.copy_(banks["student"])
    contrast.teacher_bank.copy_(banks["teacher"])
    for index in range(int(case.hp("steps"))):
        _step(case.at_step(index), contrast)


def _step(case: Case, contrast: Contrast) -> None:
    c = contrast(case.leaf("in.student_feat"), case.leaf("in.teacher_feat"), case.tensor("in.contrast_idx"))
    logits, target = case.leaf("in.student_logits"), case.tensor("in.target")
    ce = cross_entropy(logits, target)
    total = case.hp("weight_ce") * ce + case.hp("weight_method") * c.loss
    if case.hp("weight_kl"):
        total = total + case.hp("weight_kl") * kd_loss(logits, case.leaf("in.teacher_logits"), case.hp("kd_T"))
    case.value("embed_student", c.student)
    case.value("embed_teacher", c.teacher)
    case.value("score_student", c.student_log_p.exp())
    case.value("score_teacher", c.teacher_log_p.exp())
    case.loss("student_anchor", c.student_loss)
    case.loss("teacher_anchor", c.teacher_loss)
    case.loss("crd", c.loss)
    case.loss("ce", ce)
    case.loss("total", total)
    with torch.no_grad():
        contrast.update(case.tensor("in.index"), c.student, c.teacher, c.log_z)
    for at, who in enumerate(("student", "teacher")):
        case.value(f"Z_{who}", contrast.log_z[at].exp())
        case.value(f"memory_{who}", getattr(contrast, f"{who}_bank"))
