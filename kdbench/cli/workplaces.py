"""What a process needs to train: registry, machine, stores, and who is told about progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.cli.arguments import available_threads
from kdbench.cli.main import State
from kdbench.storage.places import Where, scratch


def cache_place(teachers: Where, cache: Path | None, teacher_cache: str, cache_size: float) -> Any:
    """Return where teachers' outputs are kept, or None if they are not.

    Args:
        teachers: Where the artefacts are.
        cache: The folder; None = beside the artefacts; if they are at a URL, a local one.
        teacher_cache: ``auto`` or ``off``.
        cache_size: Its limit, in GiB.
    """
    from kdbench.training.teacher_cache.place import GIB, CachePlace

    if teacher_cache == "off":
        return None
    beside = teachers.parent if isinstance(teachers, Path) else scratch()
    return CachePlace(cache or beside / "cache", int(cache_size * GIB))


def workplace(
    state: State, teachers: Where, data: Path, device: str, threads: int | None,
    send: Callable[[Any], None] | None, should_stop: Callable[[], bool] = lambda: False, cache: Any = None,
    devices_per_run: int = 1,
) -> Any:  # fmt: skip
    """Return the workplace of this process; events go to ``send``, and to plugins that observe epochs."""
    from kdbench.artefacts import TeacherStore
    from kdbench.execution.events import of_phase
    from kdbench.execution.members import machine_of
    from kdbench.execution.worker import epoch_emitter, progress_emitter
    from kdbench.training.cohort import Workplace

    registry = state.registry()
    tell = epoch_emitter(send) if send else lambda _report: None

    def epoch_ended(report: Any) -> None:
        tell(report)
        registry.tell("kdbench_epoch_ended", report=report)

    def phase_started(report: Any) -> None:
        if send:
            send(of_phase(report))
        registry.tell("kdbench_phase_started", report=report)

    return Workplace(
        registry=registry,
        machine=machine_of(device, threads or available_threads(), devices_per_run),
        teachers=TeacherStore(teachers),
        data_root=data,
        cache=cache,
        phase_started=phase_started,
        epoch_ended=epoch_ended,
        progress=progress_emitter(send) if send else lambda _progress: None,
        should_stop=should_stop,
    )
