"""From a command to cells: every RunSpec of it, or everything that is wrong with it, before any data is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from kdbench.backbones.base import Backbone
from kdbench.config.loading import load_anchor, same_value
from kdbench.config.schema import Anchor
from kdbench.datasets.base import DatasetInfo
from kdbench.errors import FAULTS, ConfigError, PluginError, ProblemList, Problems, Unsupported, unknown
from kdbench.method import AnyMethod, Options
from kdbench.opening import Opened, open_for
from kdbench.opening import dataset_ref as dataset_ref  # noqa: PLC0414
from kdbench.opening import open_source as open_source  # noqa: PLC0414
from kdbench.options import Setting, apply_deviations, deviations_of, parse_setting, resolve_options
from kdbench.registry import Registry
from kdbench.rehearsal import Extras, Passes, Rehearsal
from kdbench.schedule import teacher_misfit
from kdbench.sharing import batch_of_pass, indivisible
from kdbench.spec import LARGEST_SEED, VARIANT, DeclaredDeviation, RunSpec
from kdbench.types import Context, NetworkInfo, Pair, PairInfo, StageShape

T = TypeVar("T")
ALL = ("all",)


@dataclass(frozen=True)
class Request:
    """A command as the user gave it.

    Args:
        methods: Method names, or ``all``.
        pairs: Pair names, or ``all``.
        seeds: Seeds, each >= 0.
        anchor: Anchor name or file.
        dataset: Replaces the pairs' own datasets.
        per_class: Training images kept per class.
        settings: ``METHOD.OPTION=VALUE`` strings.
        teacher_names: Artefacts to use instead of the anchor's recipe.
        data_root: Where datasets live.
        variant: Name of this configuration of the methods; empty = the only one.
        devices: Devices that train each run together.
    """

    methods: tuple[str, ...]
    pairs: tuple[str, ...]
    seeds: tuple[int, ...]
    anchor: str
    dataset: str | None = None
    per_class: int | None = None
    settings: tuple[str, ...] = ()
    teacher_names: tuple[str, ...] = ()
    data_root: Path = Path("data")
    variant: str = ""
    devices: int = 1


@dataclass(frozen=True)
class Skipped:
    """A cell that was asked for and cannot be run, with the reason."""

    method: str
    pair: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The cells of a command.

    Args:
        runs: One spec per method, pair and seed.
        skipped: Method and pair combinations that do not fit.
        infos: Shapes of each pair, by pair name.
        train_sizes: Training images per epoch, by pair name.
        validation_sizes: Images of the validation split, by pair name.
        passes: Passes of each training image through the networks, by pair and row (``RunSpec.row``).
        datasets: What each pair is trained on, by pair name.
    """

    runs: tuple[RunSpec, ...]
    skipped: tuple[Skipped, ...] = ()
    infos: dict[str, PairInfo] = field(default_factory=dict)
    train_sizes: dict[str, int] = field(default_factory=dict)
    validation_sizes: dict[str, int] = field(default_factory=dict)
    passes: dict[tuple[str, str], Passes] = field(default_factory=dict)
    datasets: dict[str, DatasetInfo] = field(default_factory=dict)


def make_plan(request: Request, registry: Registry) -> Plan:
    """Expand a request.

    Raises:
        ProblemList: With every problem of the command.
    """
    problems = Problems()
    request = _with_valid_words(request, problems)
    anchor = problems.attempt(lambda: load_anchor(request.anchor, registry.anchors.as_mapping()))
    methods = _named(request.methods, registry.methods.as_mapping(), "method", problems)
    pairs = _named(request.pairs, registry.pairs.as_mapping(), "pair", problems)
    settings = [s for text in request.settings if (s := problems.attempt(lambda t=text: parse_setting(t)))]  # type: ignore[misc]
    problems.messages += _stray_settings(settings, methods, registry, anchor)
    check_warmup(anchor, problems)
    problems.messages += _teachers_keys(anchor)
    opened = {pair.name: problems.attempt(lambda p=pair: _opened(request, registry, p)) for pair in pairs}  # type: ignore[misc]
    if anchor is None:
        problems.raise_if_any()
        raise AssertionError("an anchor that could not be loaded leaves a problem")
    plan, extras = Plan(()), Extras("meta")
    cells: list[RunSpec | Skipped] = []
    for pair in pairs:
        problems.messages += (misfits := _teacher_misfits(anchor, pair))
        fitted = _fit(opened[pair.name], pair, anchor, registry, problems)
        if fitted is None or misfits:
            for method in methods:  # their options are looked through all the same
                problems.attempt(lambda m=method, p=pair: _settled(m, anchor, p, settings))  # type: ignore[misc]
            continue
        found_data, sizes, plan.infos[pair.name] = fitted
        plan.datasets[pair.name] = found_data.info
        plan.train_sizes[pair.name], plan.validation_sizes[pair.name] = sizes
        stage = _Stage(pair, plan.infos[pair.name], sizes, registry, extras, request.devices)
        for method in methods:
            found = problems.attempt(
                lambda m=method, d=found_data, s=stage: _cell(request, registry, anchor, m, s, d, settings)  # type: ignore[misc]
            )
            if isinstance(found, Skipped):
                cells.append(found)
            elif found:
                specs, passes = found
                plan.passes.update(dict.fromkeys(((pair.name, spec.row) for spec in specs), passes))
                cells += specs
    problems.raise_if_any()
    return _with_cells(plan, cells)


def _with_cells(plan: Plan, cells: Sequence[RunSpec | Skipped]) -> Plan:
    skipped = tuple(cell for cell in cells if isinstance(cell, Skipped))
    runs = tuple(cell for cell in cells if isinstance(cell, RunSpec))
    if not runs:
        reasons = "; ".join(f"{s.method} on {s.pair}: {s.reason}" for s in skipped)
        raise ConfigError(f"nothing to run: {reasons}")
    return replace(plan, runs=runs, skipped=skipped)


def _cell(
    request: Request,
    registry: Registry,
    anchor: Anchor,
    method: type[AnyMethod],
    stage: _Stage,
    data: Opened,
    settings: Sequence[Setting],
) -> tuple[list[RunSpec], Passes] | Skipped:
    """Return the runs of a method on a pair with what each costs, or why there are none."""
    options, deviations = _settled(method, anchor, stage.pair, settings)
    try:
        passes = stage.passes(method, anchor, options, deviations)
    except (Unsupported, PluginError) as error:
        if isinstance(error, PluginError) and request.methods != ALL:
            raise  # asked for by name: better now than after the others have been trained
        return Skipped(method.name, stage.pair.name, str(error))
    return _runs(request, registry, anchor, method, stage.pair, data, options, deviations), passes


def _opened(request: Request, registry: Registry, pair: Pair) -> Opened:
    return open_for(pair, request.dataset or pair.dataset, request.per_class, registry, request.data_root)


def _fit(
    opened: Opened | None, pair: Pair, anchor: Anchor, registry: Registry, problems: Problems
) -> tuple[Opened, tuple[int, int], PairInfo] | None:
    """Return dataset, numbers of training and validation images, and shapes, or None with the problem noted."""
    if opened is None:
        return None
    shapes = problems.attempt(lambda: pair_info(pair, opened.info, registry))
    sizes = problems.attempt(lambda: opened.sizes(anchor.data.validation_fraction))
    return None if shapes is None or sizes is None else (opened, sizes, shapes)


def pair_info(pair: Pair, data: DatasetInfo, registry: Registry) -> PairInfo:
    """Return the shapes of a pair on a dataset, from dry runs.

    Raises:
        ProblemList: If the images do not fit a network.
    """
    names = (pair.student, *pair.teachers)
    reasons = [registry.backbones[name].unfit(data.image) for name in dict.fromkeys(names)]
    if problems := [f"pair '{pair.name}', dataset '{data.name}': {reason}" for reason in reasons if reason]:
        raise ProblemList(problems)
    student, *teachers = (network_info(name, len(data.classes), data.image, registry) for name in names)
    return PairInfo(pair.name, student, tuple(teachers), data.image)


def network_info(name: str, classes: int, image: StageShape, registry: Registry) -> NetworkInfo:
    """Return the shapes of one backbone."""
    return _info(registry.backbones[name], classes, image)


@cache
def _info(backbone: Backbone, classes: int, image: StageShape) -> NetworkInfo:
    return backbone.info(classes, image)


def _named(names: Sequence[str], table: Mapping[str, T], kind: str, problems: Problems) -> list[T]:
    if tuple(names) == ALL:
        return [table[name] for name in sorted(table)]
    if not names:
        problems.messages.append(f"--{kind}: empty; give names (kdbench list {kind}s), or all")
    problems.messages += [unknown(kind, name, table, where=f"--{kind}") for name in names if name not in table]
    return [table[name] for name in dict.fromkeys(names) if name in table]


def _with_valid_words(request: Request, problems: Problems) -> Request:
    """Return the request without seeds or variant where they are wrong, and note it: the rest is looked through."""
    if wrong := _wrong_seeds(request.seeds):
        problems.messages.append(wrong)
        request = replace(request, seeds=())
    if request.variant and not VARIANT.fullmatch(request.variant):
        problems.messages.append(f"--variant: {request.variant!r} is no name; use letters, digits, '.', '_' and '-'")
        request = replace(request, variant="")
    return request


def _wrong_seeds(seeds: Sequence[int]) -> str | None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        return f"--seeds: {list(seeds)}: give at least one seed, each >= 0 and only once"
    return f"--seeds: {max(seeds)}: the largest seed is {LARGEST_SEED}" if max(seeds) > LARGEST_SEED else None


def check_warmup(anchor: Anchor | None, problems: Problems) -> None:
    """Note an anchor that never ends its warm-up."""
    if anchor and anchor.schedule.warmup_epochs >= anchor.schedule.epochs > 1:
        problems.messages.append(
            f"anchor {anchor.name}: schedule.warmup_epochs {anchor.schedule.warmup_epochs} is not less than "
            f"schedule.epochs {anchor.schedule.epochs}"
        )


def _teachers_keys(anchor: Anchor | None) -> list[str]:
    """Return messages for what only a teacher's protocol may say."""
    if anchor is None:
        return []
    keys = [
        ("stopping.patience", anchor.stopping.patience, 0, "a student's score is that of its last epoch"),
        ("pretrained", anchor.pretrained, False, "students of one seed start from the same random weights"),
    ]
    return [
        f"anchor {anchor.name}: {key} is {json.dumps(value)}, which is for teachers only (kdbench teacher train): "
        f"{why}; set it to {json.dumps(off)}"
        for key, value, off, why in keys
        if value
    ]


def _teacher_misfits(anchor: Anchor, pair: Pair) -> list[str]:
    """Return messages for loss keys that suppose other teachers than the pair has."""
    loss, owner = anchor.loss, f"pair '{pair.name}'"
    messages = [reason] if (reason := teacher_misfit(loss, pair.teachers, owner)) else []
    if loss.kd_target == "teacher" and loss.kd_teacher_index >= len(pair.teachers):
        index, count = loss.kd_teacher_index, len(pair.teachers)
        messages.append(f"loss.kd_teacher_index is {index} (the first is 0), but {owner} has {count} teachers")
    return [f"anchor {anchor.name}: {message}" for message in messages]


def _stray_settings(
    settings: Iterable[Setting], methods: Sequence[type[AnyMethod]], registry: Registry, anchor: Anchor | None
) -> list[str]:
    """Return messages for settings of methods that are not in the command, and of anchor keys."""
    asked = {method.name for method in methods}
    messages = []
    for setting in settings:
        if setting.method in registry.methods.as_mapping():
            if setting.method not in asked:
                messages.append(
                    f"--set {setting}: method '{setting.method}' is not in this command; add it to --method"
                )
        elif anchor and setting.dotted.removeprefix("anchor.") in set(anchor.keys()):
            key = setting.dotted.removeprefix("anchor.")
            if not same_value(value := anchor.keys()[key], setting.value):
                messages.append(setting.refused(key, value, anchor))
        else:
            messages.append(unknown("method", setting.method, registry.methods.as_mapping(), where=f"--set {setting}"))
    return messages


def _unsupported(method: type[AnyMethod], shapes: PairInfo) -> str | None:
    try:
        return method.supports(shapes)
    except FAULTS as error:  # a plugin's fault must not end the planning of the others
        return f"its supports() failed: {type(error).__name__}: {error}"


def _settled(
    method: type[AnyMethod], anchor: Anchor, pair: Pair, settings: Sequence[Setting]
) -> tuple[Options, tuple[DeclaredDeviation, ...]]:
    own = [setting for setting in settings if setting.method == method.name]
    options = resolve_options(method, anchor, pair, own)
    deviations = deviations_of(method, anchor, options)
    apply_deviations(anchor, deviations)  # a deviation that makes no valid protocol is found here, not in the run
    return options, deviations


class _Stage:
    """Where the methods of one pair are rehearsed."""

    def __init__(
        self, pair: Pair, info: PairInfo, sizes: tuple[int, int], registry: Registry, extras: Extras, devices: int = 1
    ) -> None:
        self.pair, self.info, self.devices = pair, info, devices
        self.train_size, self.validation_size = sizes
        self.backbones, self.extras = registry.backbones, extras

    def passes(
        self, method: type[AnyMethod], anchor: Anchor, options: Options, deviations: tuple[DeclaredDeviation, ...]
    ) -> Passes:
        """Return what a run of the method costs on the pair, from a dry run; it raises if the method declines."""
        if reason := _unsupported(method, self.info):
            raise Unsupported(reason)
        anchor = apply_deviations(anchor, deviations)
        batch = min(anchor.data.batch_size, self.train_size)
        if reason := indivisible(method, anchor, batch, self.devices):
            raise Unsupported(reason)
        info = self.info if method.uses_teacher else replace(self.info, teachers=())
        steps, together = self.train_size // batch, batch_of_pass(method, anchor, batch, self.devices)
        freezing, kept = anchor.freezing.use_partial_freeze, self.validation_size
        context = Context(info, self.train_size, anchor.schedule.epochs, steps, together, 0, kept, freezing)
        student, teachers = self.backbones[self.pair.student], self.pair.teachers if method.uses_teacher else ()
        taught_by = tuple(self.backbones[name] for name in teachers)
        return Rehearsal(student, taught_by, context, anchor, self.extras).passes(method, options)


def _runs(
    request: Request,
    registry: Registry,
    anchor: Anchor,
    method: type[AnyMethod],
    pair: Pair,
    data: Opened,
    options: Options,
    deviations: tuple[DeclaredDeviation, ...],
) -> list[RunSpec]:
    names = request.teacher_names if method.uses_teacher else ()
    if names and len(names) != len(pair.teachers):
        raise ConfigError(
            f"--teacher: {len(names)} given, pair '{pair.name}' has {len(pair.teachers)}: {', '.join(pair.teachers)}"
        )
    return [
        RunSpec(
            method=method.name,
            method_version=method.version,
            variant=request.variant,
            plugin=registry.methods.owner(method.name).ref(),
            options=options.model_dump(mode="json"),
            deviations=deviations,
            pair=pair.name,
            student=pair.student,
            teachers=pair.teachers if method.uses_teacher else (),
            teacher_names=names,
            teacher_datasets=data.teachers if method.uses_teacher else (),
            dataset=data.reference,
            anchor=anchor,
            seed=seed,
        )
        for seed in request.seeds
    ]
