"""From specs to records: prepare a cohort, train its lanes, write what each leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench import __version__
from kdbench.artefacts import TeacherManifest, TeacherStore
from kdbench.backbones.base import Network
from kdbench.config.schema import Anchor
from kdbench.errors import FAULTS, ConfigError, StoreError
from kdbench.method import AnyMethod, Setup
from kdbench.options import apply_deviations
from kdbench.plan import network_info, open_source
from kdbench.records import EpochReport, StepReport
from kdbench.registry import Registry
from kdbench.sharing import Share, batch_of_pass, indivisible
from kdbench.spec import DatasetRef, RunSpec
from kdbench.store import RunFolder
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.compiling import prepare_compiler
from kdbench.training.data import CohortData, load_data
from kdbench.training.environment import Machine
from kdbench.training.inputs import BatchStream
from kdbench.training.lane import Lane
from kdbench.training.leases import stopping, telling
from kdbench.training.networks import load_teacher, new_network
from kdbench.training.safe_mode import AS_PLANNED, Settings, effective
from kdbench.training.teacher_cache import CachePlace, cache_of
from kdbench.training.teacher_names import artefact_names
from kdbench.training.team.members import ALONE, Team
from kdbench.training.trainer import Observer, Progress, Trainer
from kdbench.types import Context, PairInfo


@dataclass(frozen=True)
class Workplace:
    """Everything a run needs that does not change its result (but for the machine, which the record states).

    Args:
        registry: Loaded plugins.
        machine: Device and threads.
        teachers: Store of teacher artefacts.
        data_root: Where datasets live.
        cache: Where teachers' outputs are kept; None = nowhere.
        phase_started: Sees the first step of each phase.
        epoch_ended: Sees each epoch's report.
        progress: Sees progress about once a second.
        should_stop: Asked after every step.
    """

    registry: Registry
    machine: Machine
    teachers: TeacherStore
    data_root: Path
    cache: CachePlace | None = None
    phase_started: Callable[[StepReport], None] = lambda _report: None
    epoch_ended: Callable[[EpochReport], None] = lambda _report: None
    progress: Callable[[Progress], None] = lambda _progress: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class Trained:
    """A lane after its training, with what it was trained on and with, and in what not as its anchor says."""

    lane: Lane
    folder: RunFolder
    data: CohortData
    teachers: tuple[TeacherManifest, ...]
    settings: Settings
    memory_formats: Mapping[str, str] = field(default_factory=dict)
    from_epoch: int = 0
    set_aside: tuple[str, ...] = ()


def train_cohort(
    specs: Sequence[RunSpec],
    folders: Sequence[RunFolder],
    workplace: Workplace,
    method_of: Callable[[RunSpec], type[AnyMethod]],
    settings: Settings = AS_PLANNED,
) -> list[Trained]:
    """Train runs that share dataset, anchor, teachers and seed; the caller holds their locks.

    In a team all members call this with the same single run, and the leader alone writes.

    Args:
        specs: What to train.
        folders: Where each is kept.
        workplace: With what.
        method_of: Class of a spec's method.
        settings: In what they are computed otherwise than their anchor says; the caller has applied its switches.

    Returns:
        The lanes at their end: finished, diverged or failed.

    Raises:
        Interrupted: If asked to stop; all lanes are saved.
        LeaseLost: If another process has taken one of the runs over; no lane is saved.
        ConfigError: If dataset or teachers do not fit, or the runs do not share what a cohort shares.
    """
    first, machine, team = specs[0], workplace.machine, workplace.machine.team
    _check_together(specs, team)
    source = open_source(first.dataset.name, workplace.registry, workplace.data_root)
    anchor = apply_deviations(first.anchor, first.deviations)
    if anchor.step.compile:
        prepare_compiler(machine.device)
    data = load_data(source, first.dataset, anchor.data, anchor.evaluation, machine.device)
    manifests = _manifests(specs, workplace.teachers)
    if manifests:
        workplace.teachers.predicted(manifests[0])  # agreement is measured at the end: what is damaged is refused now
    layout = anchor.step.channels_last
    teachers = [teacher_network(manifest, data, workplace, layout=layout) for manifest in manifests]
    share = Share(team.rank, team.size, anchor.step.accumulate)
    _check_divisible(method_of(first), anchor, min(anchor.data.batch_size, len(data.train)), team)
    batches = BatchStream(data.train, anchor.data, first.seed, machine.device, mirror=data.info.mirror, share=share)
    entries = [
        _start(spec, folder, data, batches, (manifests, teachers), workplace, method_of(spec), settings)
        for spec, folder in zip(specs, folders, strict=True)
    ]
    observer = _observer(entries, workplace)
    shapes = [network_info(m.backbone, len(m.classes), data.info.image, workplace.registry) for m in manifests]
    taught_by = list(zip(teachers, shapes, strict=True))
    place = workplace.cache if team.alone else None  # it knows what teachers say of whole batches
    cache = cache_of(manifests, taught_by, batches, first.dataset, anchor, machine, place)
    Trainer([e.lane for e in entries], batches, teachers, data.validation, data.test, observer, cache).run()
    return entries


def cohort_key(spec: RunSpec) -> tuple[object, ...]:
    """Return what runs must have in common to be trained together: data, seed, and all of the protocol but its loss."""
    anchor = apply_deviations(spec.anchor, spec.deviations)
    shared = anchor.model_dump_json(include={"schedule", "data", "step", "evaluation"})
    return spec.pair, spec.dataset.label, spec.seed, spec.anchor.label, shared


def _observer(entries: Sequence[Trained], workplace: Workplace) -> Observer:
    """Return who saves and watches: the leader of a team speaks for all, but each may be asked to stop."""
    if not workplace.machine.team.leads:
        return Observer(save=_saver(entries, workplace.machine), should_stop=workplace.should_stop)
    leases = {entry.lane.spec.run_id: entry.folder.lease for entry in entries if entry.folder.lease}
    return Observer(
        save=_saver(entries, workplace.machine),
        phase_started=workplace.phase_started,
        epoch_ended=workplace.epoch_ended,
        progress=telling(leases, workplace.progress),
        should_stop=stopping(leases, workplace.should_stop),
    )


def _check_divisible(method: type[AnyMethod], anchor: Anchor, batch: int, team: Team) -> None:
    if reason := indivisible(method, anchor, batch, team.size):
        raise ConfigError(f"method '{method.name}': {reason}")


def _check_together(specs: Sequence[RunSpec], team: Team) -> None:
    if len(specs) > 1 and not team.alone:
        raise ConfigError(f"{len(specs)} runs: several devices train one run at a time; start each by itself")
    taught = {(artefact_names(spec), spec.taught_on) for spec in specs if spec.teachers}
    if len({cohort_key(spec) for spec in specs}) > 1 or len(taught) > 1:
        ids = ", ".join(spec.run_id for spec in specs)
        raise ConfigError(
            f"runs {ids}: cannot be trained together: they must share pair, dataset, seed, anchor and teachers; start "
            "one command for each"
        )


def _manifests(specs: Sequence[RunSpec], store: TeacherStore) -> tuple[TeacherManifest, ...]:
    taught = next((spec for spec in specs if spec.teachers), None)
    if taught is None:
        return ()
    named = list(zip(taught.taught_on, artefact_names(taught), strict=True))
    found = (
        [store.manifest(dataset, name) for dataset, name in named]
        if taught.teacher_names
        else [store.made_by(dataset, name, taught.anchor.sha256) for dataset, name in named]
    )
    for (dataset, _), manifest in zip(named, found, strict=True):
        check_measured_on(manifest, dataset)
    return tuple(found)


def check_measured_on(manifest: TeacherManifest, dataset: DatasetRef) -> None:
    """Raise ConfigError if the images of a teacher's dataset are not those it was measured on."""
    if manifest.dataset.fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"teacher '{manifest.name}': was measured on other images than '{dataset.name}' holds now (fingerprint "
            f"{manifest.dataset.fingerprint[:12]}, now {dataset.fingerprint[:12]}); restore them or make it again"
        )


def teacher_network(manifest: TeacherManifest, data: CohortData, workplace: Workplace, *, layout: bool) -> Network:
    """Return a teacher on the device, in the memory format it profits from if ``layout``.

    Raises:
        ConfigError: If it does not know the dataset's classes.
    """
    if manifest.classes != data.info.classes:
        raise ConfigError(
            f"teacher '{manifest.name}': trained on {len(manifest.classes)} classes, dataset '{data.info.name}' has "
            f"{len(data.info.classes)} (or other names); use a teacher of this dataset: kdbench teacher list"
        )
    backbone = workplace.registry.backbones[manifest.backbone]
    network = load_teacher(workplace.teachers, manifest, backbone, data.info.image)
    network.place(workplace.machine.device, channels_last=layout and backbone.channels_last)
    return network


def _start(
    spec: RunSpec,
    folder: RunFolder,
    data: CohortData,
    batches: BatchStream,
    taught_by: tuple[Sequence[TeacherManifest], Sequence[Network]],
    workplace: Workplace,
    method: type[AnyMethod],
    settings: Settings,
) -> Trained:
    """Build a lane and bring it to where its last checkpoint left it."""
    manifests, teachers = taught_by if spec.teachers else ((), ())
    registry, device, info = workplace.registry, workplace.machine.device, data.info
    anchor = apply_deviations(spec.anchor, spec.deviations)
    backbone = registry.backbones[spec.student]
    student = new_network(backbone, len(info.classes), info.image, spec.seed, pretrained=anchor.pretrained)
    student.checkpointing = anchor.step.checkpointing
    student.set_normalisation(data.mean, data.std)
    student.place(device, channels_last=anchor.step.channels_last and backbone.channels_last)
    shapes = [network_info(name, len(info.classes), info.image, registry) for name in (spec.student, *spec.teachers)]
    pair = PairInfo(spec.pair, shapes[0], tuple(shapes[1:]), info.image)
    team = workplace.machine.team
    lane = lane_of(spec, method, student, teachers, pair, data, batches, effective(anchor, settings), team)
    networks = zip((spec.student, *(m.name for m in manifests)), (student, *teachers), strict=True)
    formats = {name: str(network.memory_format).removeprefix("torch.") for name, network in networks}
    entry = Trained(lane, folder, data, tuple(manifests), settings, formats)
    checkpoints = CheckpointFolder(folder.checkpoints)
    state = team.leader_first(lambda: checkpoints.newest() if lane.active else None)
    _check_same_checkpoint(lane, state, folder, team)
    if state is not None:
        _check_resumable(state, spec, _identity(spec, entry.teachers, workplace.machine, settings))
        try:
            lane.load(state)
        except FAULTS as error:
            lane.fail(error, "loading its state")
        entry.from_epoch = lane.position.epoch
    entry.set_aside = tuple(path.name for path in checkpoints.damaged())
    return entry


def lane_of(
    spec: RunSpec,
    method: type[AnyMethod],
    student: Network,
    teachers: Sequence[Network],
    pair: PairInfo,
    data: CohortData,
    batches: BatchStream,
    anchor: Anchor,
    team: Team = ALONE,
) -> Lane:
    """Return a lane that has not begun.

    Args:
        spec: What to train.
        method: Class of its method.
        student: With its initial weights, on the device.
        teachers: Those it learns from; empty for a method without.
        pair: Shapes of these networks.
        data: What it is trained on.
        batches: The stream of it.
        anchor: The protocol as it is computed.
        team: Who trains it together.
    """
    context = Context(
        pair=pair,
        train_size=len(data.train),
        epochs=anchor.schedule.epochs,
        steps_per_epoch=batches.steps,
        batch_size=batch_of_pass(method, anchor, batches.batch_size, team.size),
        seed=spec.seed,
        validation_size=0 if data.validation is None else len(data.validation),
        freezing=anchor.freezing.use_partial_freeze,
    )
    labels = data.train.labels.to(batches.device, copy=True)  # a copy: the batch stream may hold the same memory
    return Lane(spec, method, student, context, batches.device, Setup(labels, tuple(teachers)), anchor, team)


def _check_same_checkpoint(lane: Lane, state: dict[str, Any] | None, folder: RunFolder, team: Team) -> None:
    """Refuse to go on where a disk let one member read a checkpoint that it does not let another one read."""
    members = team.everyones((lane.active, None if state is None else state.get("position")))
    found = [position for active, position in members if active]  # one whose lane has failed has not looked
    if any(position != found[0] for position in found):
        raise StoreError(
            f"{folder.checkpoints}: the devices of the run cannot all read the same checkpoint (phase, epoch and step "
            f"by device: {found}); see that each machine can read all files there, and start again"
        )


# What a checkpoint of before there was such an entry would say.
_UNSAID: dict[str, object] = {"settings": {}, "devices": 1}


def _check_resumable(state: dict[str, object], spec: RunSpec, identity: dict[str, object]) -> None:
    for key, value in identity.items():
        if state.get(key, _UNSAID.get(key)) != value:
            raise ConfigError(
                f"run {spec.run_id}: was started with {key} {state.get(key)!r}, now it is {value!r}; it would not end "
                "with the same bits. Go on as it was started, or choose another --out"
            )


def _identity(
    spec: RunSpec, teachers: Sequence[TeacherManifest], machine: Machine, settings: Settings
) -> dict[str, object]:
    return {
        "config_sha256": spec.config_sha256,
        "teachers": [teacher.sha256 for teacher in teachers],
        "device": machine.device.type,
        "threads": machine.threads,
        "devices": machine.team.size,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "kdbench": __version__,
        "plugin": spec.plugin.file_sha256,
        "settings": dict(settings),
    }


def _saver(entries: Sequence[Trained], here: Machine) -> Callable[[Lane], None]:
    by_lane = {id(entry.lane): entry for entry in entries}

    def save(lane: Lane) -> None:
        entry, state = by_lane[id(lane)], lane.state()  # all of a team have a part in its state
        if not here.team.leads:
            return
        entry.folder.confirm()
        machine = Machine(lane.device, torch.get_num_threads(), here.team)
        state |= _identity(lane.spec, entry.teachers, machine, entry.settings)
        CheckpointFolder(entry.folder.checkpoints).save(state, lane.position.as_tuple())
        entry.folder.write_epochs(lane.history)
        entry.folder.push()

    return save
