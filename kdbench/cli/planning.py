"""From parsed options to a plan that fits this machine; shared by run and plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from kdbench.cli.arguments import DEFAULT_ANCHOR, DEFAULT_CACHE_SIZE, names, seeds_of
from kdbench.config.presets import Preset, load_preset
from kdbench.errors import ConfigError, ProblemList
from kdbench.memory import too_large
from kdbench.plan import ALL, Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.storage.places import Url, Where
from kdbench.training.devices import devices_elsewhere, memory_of, resolve_devices


@dataclass(frozen=True)
class Asked:
    """The options of run and plan, as parsed."""

    method: str
    pair: str
    seeds: int | None
    seed_list: str | None
    dataset: str | None
    per_class: int | None
    anchor: str
    settings: tuple[str, ...]
    teacher: str | None
    out: Where
    teachers: Where
    data: Path
    device: str
    variant: str = ""
    cache: Path | None = None
    teacher_cache: str = "auto"
    cache_size: float = DEFAULT_CACHE_SIZE
    elsewhere: bool = False  # whether the device is one of other machines
    devices_per_run: int = 1

    def devices(self) -> tuple[torch.device, ...]:
        """Return the devices; raises ConfigError if they are not there."""
        return devices_elsewhere(self.device) if self.elsewhere else resolve_devices(self.device)

    def request(self) -> Request:
        """Return them as a request."""
        return Request(
            methods=names(self.method),
            pairs=names(self.pair),
            seeds=seeds_of(self.seeds, self.seed_list),
            anchor=self.anchor,
            dataset=self.dataset,
            per_class=self.per_class,
            settings=self.settings,
            teacher_names=names(self.teacher or ""),
            data_root=self.data,
            variant=self.variant,
            devices=self.devices_per_run,
        )


def asked_for(registry: Registry, preset: str | None, variant: str | None, **options: Any) -> Asked:
    """Return the options of run and plan, with what a preset says where the command does not.

    The command's pair, anchor and settings win over the preset's. Its method must be the preset's: the options are.

    Raises:
        ConfigError: If the preset is unknown or the method another one.
        click.UsageError: If neither command nor preset names a method or a pair.
    """
    named, own = (None, "") if preset is None else _preset(preset, registry)
    if named is not None:
        options = _filled_in(options, named, own, registry)
    if missing := [key for key in ("method", "pair") if not options[key]]:
        where = "" if named is None else f" Preset '{named.name}' is for several."
        raise click.UsageError(f"Missing option '--{missing[0]}'.{where}")
    anchor = options.pop("anchor") or DEFAULT_ANCHOR
    if named is not None and (anchor != own or isinstance(named.anchor, str)):
        # The protocol is shared with other configurations of the method.
        variant = variant or named.name
    return Asked(**options, anchor=anchor, variant=variant or "")


def _preset(name: str, registry: Registry) -> tuple[Preset, str]:
    """Return a preset by its name or file, and how to name its anchor."""
    if name.endswith((".yaml", ".yml")):
        preset = load_preset(Path(name))
        return preset, preset.anchor if isinstance(preset.anchor, str) else name
    return registry.presets[name], registry.presets[name].anchor_name


def _filled_in(options: Mapping[str, Any], preset: Preset, anchor: str, registry: Registry) -> dict[str, Any]:
    methods = names(options["method"] or preset.method or "")
    if preset.method and methods != (preset.method,):
        raise ConfigError(
            f"--preset {preset.name}: is one of method '{preset.method}', but --method is {options['method']}; leave "
            "--method out, or choose another preset (kdbench list presets)"
        )
    types = {name: method.options_type for name, method in registry.methods.as_mapping().items()}
    settings = preset.settings(types if methods == ALL else methods, types)
    return {
        **options,
        "method": ",".join(methods),
        "pair": options["pair"] or preset.pair,
        "anchor": options["anchor"] or anchor,
        "settings": (*settings, *options["settings"]),
    }


def plan_for(asked: Asked, registry: Registry, make: Callable[[Request, Registry], Plan] = make_plan) -> Plan:
    """Return the plan of a command.

    Args:
        asked: What it asks for.
        registry: Loaded plugins.
        make: What makes a plan of a request.

    Raises:
        ConfigError: With everything that is wrong with it, memory and named teachers included.
    """
    from kdbench.artefacts import TeacherStore

    problems: list[str] = []
    if asked.devices_per_run > 1 and isinstance(asked.out, Url):
        problems.append(
            f"--devices-per-run {asked.devices_per_run}: --out {asked.out}: a run at a URL is trained in the copy of "
            "one process; give a folder, or leave --devices-per-run out"
        )
    try:
        devices = asked.devices()
    except ConfigError as error:
        devices = (torch.device("cpu"),)
        problems.append(str(error))
    try:
        plan = make(asked.request(), registry)
    except ConfigError as error:
        raise ProblemList([*getattr(error, "problems", [str(error)]), *problems]) from error
    if not asked.elsewhere:
        problems += too_large(plan, registry, min(map(memory_of, devices)))
    store = TeacherStore(asked.teachers)
    for spec in {(s.pair, s.dataset.label): s for s in plan.runs if s.teacher_names}.values():
        problems += _teacher_problems(spec, store, plan)
    if problems:
        raise ProblemList(problems)
    return plan


def _teacher_problems(spec: Any, store: Any, plan: Plan) -> list[str]:
    problems = []
    wanted = zip(spec.teacher_names, spec.teachers, spec.taught_on, plan.infos[spec.pair].teachers, strict=True)
    for name, backbone, dataset, info in wanted:
        try:
            manifest = store.manifest(dataset, name)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if manifest.backbone != backbone:
            problems.append(f"--teacher {name}: is a {manifest.backbone}, pair '{spec.pair}' needs a {backbone}")
        if len(manifest.classes) != info.classes:
            problems.append(
                f"--teacher {name}: has {len(manifest.classes)} classes, dataset '{dataset.name}' has {info.classes}"
            )
    return problems
