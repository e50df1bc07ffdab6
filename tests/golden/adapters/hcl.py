"""The hierarchical context loss alone, of each stage and summed."""

from case import Case

from kdbench.methods.reviewkd import hcl, hcl_stage


def run(case: Case) -> None:
    """Compare one file."""
    student, teacher = case.list_of("in.student_feat"), case.list_of("in.teacher_feat")
    for i, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        case.loss(f"hcl.{i}", hcl_stage(ours, theirs))
    case.loss("hcl", hcl(student, teacher))
