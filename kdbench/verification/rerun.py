"""Training a finished run again, from its spec and teachers, and comparing what both left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import ConfigError, RunError
from kdbench.records import Record
from kdbench.spec import RunSpec
from kdbench.store import RECORD, SPEC, RunFolder, RunStore
from kdbench.training.cohort import Workplace
from kdbench.training.runs import run_cohort
from kdbench.training.teacher_names import artefact_names
from kdbench.verification.repeated import compare
from kdbench.verification.report import Check
from kdbench.verification.weights import weights_problem


@dataclass(frozen=True)
class Finished:
    """A run with a result.

    Args:
        folder: Where it lies.
        spec: What was planned.
        record: What came out.
    """

    folder: RunFolder
    spec: RunSpec
    record: Record


def open_run(path: Path) -> Finished:
    """Return the run in a folder, with its result.

    Raises:
        ConfigError: If there is none, or none that could be repeated.
        StoreError: If spec or record cannot be read.
    """
    folder = RunFolder(path)
    if not (path / SPEC).is_file():
        raise ConfigError(f"{path}: no run there; give the folder of one, RUNS/ANCHOR/DATASET/PAIR/METHOD/seedK")
    spec, record = folder.spec(), folder.peek()
    if record is None:
        raise ConfigError(
            f"{path}: has no {RECORD} yet; only a finished run can be repeated: finish it with kdbench run"
        )
    if record.status not in {"ok", "diverged"}:
        raise ConfigError(
            f"{path}: its status is {record.status}: there is no result to repeat; try it again with kdbench run "
            "--retry-failed"
        )
    if record.config_sha256 != spec.config_sha256:
        raise ConfigError(
            f"{path}: record and spec are of two configurations (config_sha256 {record.config_sha256[:12]} and "
            f"{spec.config_sha256[:12]}); restore the file that was changed"
        )
    if problem := weights_problem(folder, record):
        raise ConfigError(problem)
    return Finished(folder, spec, record)


def rerun(run: Finished, store: RunStore, workplace: Workplace) -> tuple[Check, ...]:
    """Train a run again and compare; the first one is only read.

    Args:
        run: The finished run.
        store: Where the second one is made; it must not hold the run.
        workplace: With what it is trained.

    Returns:
        One check per kind of file; all are without problems if the bits are equal.

    Raises:
        ConfigError: If teachers or data are not those of the run.
        RunError: If the second training failed, so that there is nothing to compare.
    """
    check_teachers(run, workplace)
    store.register([run.spec])
    run_cohort([run.spec.run_id], store, workplace)
    second = store.folder(run.spec.run_id)
    record = second.peek()
    if record is not None and record.status == "infra_failed":
        raise RunError(
            f"{run.folder.path}: cannot be compared, as the second training failed: {record.reason}; this says nothing "
            "of the run's result: mend the cause, and verify again"
        )
    return compare(run.folder, second)


def check_teachers(run: Finished, workplace: Workplace) -> None:
    """Refuse other teachers than those of the run, before anything is trained.

    Raises:
        ConfigError: If one is missing, or has other weights.
    """
    if not run.spec.teachers:
        return
    named = zip(run.spec.taught_on, artefact_names(run.spec), run.record.teachers, strict=False)
    for dataset, name, used in named:
        found = workplace.teachers.manifest(dataset, name)
        if found.sha256 != used.sha256:
            raise ConfigError(
                f"teacher '{name}' in {workplace.teachers.where}: has weights {found.sha256[:12]}.., the run was "
                f"taught by {used.sha256[:12]}..; name the folder with that one: --teachers FOLDER"
            )
