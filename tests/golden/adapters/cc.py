"""CC: embeddings, the loss with gradients of both mappings, and the total."""

from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.cc import Embeddings, cc_loss


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher = case.leaf("in.student_feat"), case.leaf("in.teacher_feat")
    logits, teacher_logits = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    ce, kl = cross_entropy(logits, case.tensor("in.target")), kd_loss(logits, teacher_logits, case.hp("kd_T"))
    embed = Embeddings(student.shape[1], teacher.shape[1], len(case.tensor("w.embed_s.bias")))
    case.load(embed, "", {"embed_s.": "student.", "embed_t.": "teacher."})
    ours, theirs = embed(student, teacher)
    case.value("embed_student", ours)
    case.value("embed_teacher", theirs)
    own = cc_loss(ours, theirs)
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * own
    for name, value in {"ce": ce, "kl": kl, "cc": own, "total": total}.items():
        case.loss(name, value)
