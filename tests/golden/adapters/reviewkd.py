"""ReviewKD: fused maps, loss of each stage, the ramp, and the total; BN statistics after the step."""

from case import Case
from torch import Tensor

from kdbench.losses import cross_entropy, warmup_factor
from kdbench.methods.reviewkd import Review, hcl, hcl_stage
from kdbench.types import StageShape


def shapes(maps: list[Tensor]) -> list[StageShape]:
    """Return the shapes without the batch."""
    return [StageShape(tuple(one.shape[1:])) for one in maps]


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher = case.list_of("in.student_feat"), case.list_of("in.teacher_feat")
    review = Review(shapes(student), shapes(teacher))
    case.load(review, "")
    fused = review(student)
    for i, (ours, theirs) in enumerate(zip(fused, teacher, strict=True)):
        case.value(f"fused.{i}", ours)
        case.loss(f"hcl.{i}", hcl_stage(ours, theirs))
    loss = hcl(fused, teacher)
    ramp = warmup_factor(int(case.hp("epoch")) - 1, case.hp("warmup_epochs"))  # the reference counts epochs from 1
    ce = cross_entropy(case.leaf("in.student_logits"), case.tensor("in.target"))
    term = case.hp("weight_method") * ramp * loss
    case.value("warmup_factor", ramp)
    for name, value in {"ce": ce, "hcl": loss, "kd_term": term, "total": case.hp("weight_ce") * ce + term}.items():
        case.loss(name, value)
    case.buffers(review, "")
