"""AT: each stage, their sum, and the total."""

import torch
from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.at import at_loss


def run(case: Case) -> None:
    """Compare one file."""
    logits, teacher_logits = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    pairs = zip(case.list_of("in.student_feat"), case.list_of("in.teacher_feat"), strict=True)
    ce, kl = cross_entropy(logits, case.tensor("in.target")), kd_loss(logits, teacher_logits, case.hp("kd_T"))
    stages = [at_loss(ours, theirs, p=int(case.hp("p"))) for ours, theirs in pairs]
    own = torch.stack(stages).sum()
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * own
    terms = {"ce": ce, "kl": kl, **{f"at.{i}": stage for i, stage in enumerate(stages)}, "at": own}
    for name, value in {**terms, "total": total}.items():
        case.loss(name, value)
