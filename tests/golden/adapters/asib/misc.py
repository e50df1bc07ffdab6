"""Classes of teachers that overlap, and the lock of a configuration."""

from topic import Topic

from adapters.asib.locking import run as compare_lock
from kdbench.datasets.overlap import overlap_classes


def run(case: Topic) -> None:
    """Compare one file."""
    for number, stored in enumerate(case.json("overlap")):
        first, second = overlap_classes(100, stored["pct"], stored["seed"])
        case.equal(f"overlap[{number}].T1", list(first), stored["T1"])
        case.equal(f"overlap[{number}].T2", list(second), stored["T2"])
    compare_lock(case)
