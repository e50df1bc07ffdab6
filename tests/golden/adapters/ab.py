"""AB: connectors, and the loss of each stage raw and weighted."""

from case import Case

from kdbench.methods.ab import ab_loss, ab_terms, boundary_loss, make_connector
from kdbench.types import StageShape


def run(case: Case) -> None:
    """Compare one file."""
    students, teachers, margin = case.list_of("in.student_feat"), case.list_of("in.teacher_feat"), case.hp("margin")
    connected = []
    for index, (ours, theirs) in enumerate(zip(students, teachers, strict=True)):
        prefix = f"connector.{index}."
        connector = make_connector(StageShape(tuple(ours.shape[1:])), StageShape(tuple(theirs.shape[1:])))
        case.load(connector, prefix)
        connected.append(connector(ours))
        case.buffers(connector, prefix)
        case.value(f"connected.{index}", connected[index])
        case.loss(f"ab_raw.{index}", boundary_loss(connected[index], theirs, margin))
    for index, term in enumerate(ab_terms(connected, teachers, margin)):
        case.loss(f"ab.{index}", term)
    case.loss("ab", ab_loss(connected, teachers, margin))
