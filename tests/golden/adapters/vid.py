"""VID: initial scales, each stage, their sum, and the total, with the gradients of all predictors."""

import torch
from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.vid import Predictor


def run(case: Case) -> None:
    """Compare one file."""
    logits, teacher_logits = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    ce, kl = cross_entropy(logits, case.tensor("in.target")), kd_loss(logits, teacher_logits, case.hp("kd_T"))
    stages = []
    pairs = zip(case.list_of("in.student_feat"), case.list_of("in.teacher_feat"), strict=True)
    for i, (ours, theirs) in enumerate(pairs):
        predictor = Predictor(
            ours.shape[1], theirs.shape[1], init_pred_var=case.hp("init_pred_var"), eps=case.hp("eps")
        )
        case.value(f"log_scale_at_init.{i}", predictor.log_scale)
        case.load(predictor, f"{i}.")
        stages.append(predictor(ours, theirs))
    own = torch.stack(stages).sum()
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * own
    terms = {"ce": ce, "kl": kl, **{f"vid.{i}": stage for i, stage in enumerate(stages)}, "vid": own}
    for name, value in {**terms, "total": total}.items():
        case.loss(name, value)
