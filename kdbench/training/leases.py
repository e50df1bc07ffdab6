"""What a training has to do with the leases of its runs: it says how far it is, and stops when it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kdbench.storage.heartbeat import Reached
from kdbench.storage.lease import Lease
from kdbench.training.trainer import Progress


def telling(leases: Mapping[str, Lease], progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return an observer of progress that tells it to the leases, too.

    Args:
        leases: By run id.
        progress: Another observer.
    """

    def tell(seen: Progress) -> None:
        for run_id, done in zip(seen.run_ids, seen.done, strict=True):
            if run_id in leases:
                within = seen.step / seen.steps
                leases[run_id].reached(
                    Reached(phase=seen.phase, epoch=seen.epoch, epochs=seen.epochs, within=within, done=done)
                )
        progress(seen)

    return tell


def stopping(leases: Mapping[str, Lease], should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return what the trainer asks after every step: whether to save and stop.

    It raises LeaseLost if another process has one of the runs: then nothing may be saved.

    Args:
        leases: By run id.
        should_stop: Another one who may say so.
    """

    def stop() -> bool:
        asked = [lease.stopping for lease in leases.values()]
        return any(asked) or should_stop()

    return stop
