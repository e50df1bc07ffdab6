"""What a finished lane leaves behind: deployed weights, predictions, and the record, in this order."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from kdbench import __version__
from kdbench.artefacts import TeacherStore
from kdbench.backbones.cost import flops_of
from kdbench.errors import FAULTS, KdbenchError
from kdbench.evaluation import Predictions
from kdbench.records import PARTS, Accuracy, Attempt, Cost, Record, Status, TeacherUsed
from kdbench.spec import PluginRef, RunSpec
from kdbench.store import PREDICTIONS, WEIGHTS, epoch_files
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.cohort import Trained
from kdbench.training.environment import Machine
from kdbench.training.lane import Lane
from kdbench.training.retry import told
from kdbench.training.trainer import SCORED_EPOCHS

CHANCE_FACTOR = 2  # a final accuracy of at most twice chance counts as diverged


@dataclass(frozen=True)
class Measured:
    """What is found out about a deployed module."""

    predictions: Predictions
    weights: bytes
    agreement: float | None
    cost: Cost


def measure(trained: Trained, machine: Machine, store: TeacherStore) -> Measured | None:
    """Return what a lane deploys and how good it is; None if the lane failed, in training or now.

    Args:
        trained: The lane at its end.
        machine: Where it ran.
        store: Where its teachers' predictions are.
    """
    if trained.lane.failure is not None:
        return None
    try:
        return _measure(trained, machine, store)
    except KdbenchError:
        raise
    except FAULTS as error:  # what a plugin deploys may break as well
        trained.lane.fail(error, "the final evaluation")
        return None


def finish(
    trained: Trained,
    measured: Measured | None,
    machine: Machine,
    attempts: Sequence[Attempt],
    ended_at: str,
    plugins: tuple[PluginRef, ...] = (),
) -> Record:
    """Write the results of a lane and return the record that stands; the checkpoints go when it is safe.

    Args:
        trained: The lane at its end, whatever end.
        measured: What ``measure`` found.
        machine: Where it ran.
        attempts: All starts of this run, the last one still without an end.
        ended_at: ISO time.
        plugins: Every plugin that was loaded.
    """
    lane, folder = trained.lane, trained.folder
    status, reason = outcome(lane)
    files: dict[str, bytes | str] = {}
    if measured is not None:
        accuracy = measured.predictions.accuracy
        floor = learned_nothing_below(trained.data.info.occurring, lane.anchor.schedule.epochs)
        if status == "ok" and accuracy <= floor:
            status, reason = "diverged", f"final accuracy {accuracy:.2f} % is not above {floor:.2f} %: nothing learned"
        files = {WEIGHTS: measured.weights, PREDICTIONS: measured.predictions.to_npz()}
    last = attempts[-1]
    detail = "; ".join([reason, *(f"damaged checkpoint set aside: {name}" for name in trained.set_aside)]).strip("; ")
    if lane.unsaved:
        detail = f"{detail}; {lane.unsaved} checkpoints could not be saved".strip("; ")
    said = {"ended_at": ended_at, "outcome": detail or status, "from_epoch": trained.from_epoch}
    closed = last.model_copy(update=said)
    if status != "ok":
        reason = told(reason, attempts)
    record = _record(trained, machine, status, reason, (*attempts[:-1], closed), measured)
    weights_sha256 = hashlib.sha256(measured.weights).hexdigest() if measured else ""
    record = record.model_copy(update={"plugins_loaded": plugins, "weights_sha256": weights_sha256})
    record = folder.write_record(record, {**files, **epoch_files(lane.history)})
    if record.status != "infra_failed":  # a failed run may be tried again from where it was
        CheckpointFolder(folder.checkpoints).remove()
    return record


def learned_nothing_below(classes: int, epochs: int) -> float:
    """Return the accuracy in percent up to which a run counts as diverged: twice chance.

    With two or three classes twice chance is no low bar (100 or 67 %), so chance itself is taken. In fewer than five
    epochs (a smoke run) nothing need have been learned, and nothing is concluded.
    """
    if epochs < SCORED_EPOCHS:
        return -1.0
    return (CHANCE_FACTOR if classes > 3 else 1) * 100 / classes


def outcome(lane: Lane) -> tuple[Status, str]:
    """Return status and reason of a lane, decided from the class of the error, never from a score."""
    if lane.failure is not None:
        kind = type(lane.failure).__name__
        return "infra_failed", f"method '{lane.spec.method}' failed in {lane.failed_in}: {kind}: {lane.failure}"
    if lane.diverged:
        return "diverged", lane.diverged
    return "ok", ""


def deployed_weights(module: nn.Module, lane: Lane) -> bytes:
    """Return the deployed module as a safetensors file, with backbone and normalisation in its metadata."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    student = lane.student
    metadata = {
        "backbone": lane.spec.student,
        "method": lane.spec.method,
        "mean": " ".join(map(repr, student.mean.flatten().tolist())),
        "std": " ".join(map(repr, student.std.flatten().tolist())),
    }
    return _with_metadata(save(state), metadata)


def _with_metadata(file: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with metadata; the library's own has another order, so other bytes, in every call."""
    length = int.from_bytes(file[:8], "little")
    header = json.dumps({"__metadata__": dict(metadata), **json.loads(file[8 : 8 + length])}, separators=(",", ":"))
    padded = header.encode() + b" " * (-len(header) % 8)  # tensors start at a multiple of 8 bytes
    return len(padded).to_bytes(8, "little") + padded + file[8 + length :]


def _measure(trained: Trained, machine: Machine, store: TeacherStore) -> Measured:
    module = trained.lane.deployed()
    predictions = trained.lane.clock.timed("evaluation", lambda: trained.data.test.predict(module))
    trained.lane.settle()
    return Measured(
        predictions,
        deployed_weights(module, trained.lane),
        _agreement(predictions, trained, store),
        _cost(trained.lane, machine),
    )


def _record(
    trained: Trained,
    machine: Machine,
    status: Status,
    reason: str,
    attempts: tuple[Attempt, ...],
    measured: Measured | None,
) -> Record:
    lane, spec = trained.lane, trained.lane.spec
    predictions = measured.predictions if measured else None
    return Record(
        **identity_of(spec),
        status=status,
        reason=reason,
        classes=len(trained.data.info.classes),
        teachers=tuple(TeacherUsed(name=t.name, sha256=t.sha256, accuracy=t.accuracy) for t in trained.teachers),
        accuracy=_accuracy(lane, predictions) if predictions else None,
        nll=_finite(predictions.nll) if predictions else None,
        ece=_finite(predictions.ece) if predictions else None,
        agreement_with_teacher=measured.agreement if measured else None,
        cost=measured.cost if measured else None,
        environment=machine.describe(lane.anchor.step.precision, trained.memory_formats),
        started_at=attempts[0].started_at,
        ended_at=attempts[-1].ended_at,
        attempts=attempts,
    )


def identity_of(spec: RunSpec) -> dict[str, Any]:
    """Return the fields of a record that its spec determines."""
    return {
        "kdbench_version": __version__,
        "run_id": spec.run_id,
        "config_sha256": spec.config_sha256,
        "method": spec.method,
        "method_version": spec.method_version,
        "variant": spec.variant,
        "plugin": spec.plugin,
        "options": spec.options,
        "division": spec.division,
        "deviations": spec.deviations,
        "pair": spec.pair,
        "student": spec.student,
        "dataset": spec.dataset.label,
        "dataset_ref": spec.dataset,
        "anchor": spec.anchor.label,
        "anchor_sha256": spec.anchor.sha256,
        "seed": spec.seed,
    }


def _accuracy(lane: Lane, predictions: Predictions) -> Accuracy:
    epochs = [report.test_accuracy for report in lane.history if report.test_accuracy is not None]
    tail = epochs[-SCORED_EPOCHS:] or [predictions.accuracy]
    return Accuracy(
        last=predictions.accuracy,
        best=max([*epochs, predictions.accuracy]),
        last5_mean=sum(tail) / len(tail),
        top5=predictions.top5_accuracy,
    )


def _agreement(predictions: Predictions, trained: Trained, store: TeacherStore) -> float | None:
    """Return agreement with the first teacher in percent; None without one, or if it was measured on other images."""
    if not trained.teachers or trained.teachers[0].dataset.fingerprint != trained.data.info.fingerprint:
        return None
    return predictions.agreement(store.predicted(trained.teachers[0]))


def _cost(lane: Lane, machine: Machine) -> Cost:
    counters, module = lane.counters, lane.deployed()
    deployed = sum(parameter.numel() for parameter in module.parameters())
    trained = {id(p): p.numel() for part in (lane.student, lane.method) for p in part.parameters()}
    kept = {id(p) for p in lane.method.deploy(lane.student).parameters()}
    return Cost(
        train_seconds=counters.train_seconds,
        images_per_second=counters.images / max(counters.train_seconds, 1e-9),
        student_forwards=counters.student_forwards,
        teacher_forwards=round(counters.teacher_forwards),
        teacher_cached=round(counters.teacher_cached),
        peak_memory_bytes=machine.peak_memory(),
        train_only_parameters=sum(size for key, size in trained.items() if key not in kept),
        deployed_parameters=deployed,
        deployed_flops=flops_of(copy.deepcopy(module).to("meta"), lane.context.pair.image),
        **{f"{part}_seconds": counters.seconds.get(part, 0.0) for part in PARTS},
    )


def _finite(value: float) -> float | None:
    return value if torch.isfinite(torch.tensor(value)) else None
