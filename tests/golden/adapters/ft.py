"""FT: the paraphraser's reconstruction, both factors, and the loss between them."""

from case import Case

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.ft import Paraphraser, ft_loss, make_translator, reconstruction_loss

PARAPHRASER = {
    f"{part}coder.{kind}{i + 1}": f"{part}coder.{2 * i}"
    for part, kind in (("en", "conv"), ("de", "deconv"))
    for i in range(3)
}
TRANSLATOR = {
    f"encoder.{kind}{i + 1}": f"{3 * i + place}" for place, kind in enumerate(("conv", "bn")) for i in range(3)
}


def run(case: Case) -> None:
    """Compare one file."""
    ours, theirs = case.leaf("in.student_feat"), case.leaf("in.teacher_feat")
    channels = int(case.hp("factor_channels"))
    assert channels == int(case.hp("k") * theirs.shape[1])
    paraphraser, translator = Paraphraser(theirs.shape[1], channels), make_translator(ours.shape[1], channels)
    case.load(paraphraser, "paraphraser.", PARAPHRASER)
    case.load(translator, "translator.", TRANSLATOR)
    rebuilt = paraphraser(theirs.detach())
    case.value("reconstruction", rebuilt)
    case.loss("reconstruction", reconstruction_loss(rebuilt, theirs))
    factor_student, factor_teacher = translator(ours), paraphraser.encoder(theirs)
    case.buffers(translator, "translator.", TRANSLATOR)
    case.value("factor_student", factor_student)
    case.value("factor_teacher", factor_teacher)
    student, teacher = case.leaf("in.student_logits"), case.leaf("in.teacher_logits")
    ce = cross_entropy(student, case.tensor("in.target"))
    kl = kd_loss(student, teacher, case.hp("kd_T"))
    ft = ft_loss(factor_student, factor_teacher, int(case.hp("p2")))
    total = case.hp("weight_ce") * ce + case.hp("weight_kl") * kl + case.hp("weight_method") * ft
    for name, value in {"ce": ce, "kl": kl, "ft": ft, "total": total}.items():
        case.loss(name, value)
