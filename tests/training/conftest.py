"""A small laboratory: digits, a tiny pair with a trained teacher, toy plugins, and cohorts in one call."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdbench import registry
from kdbench.artefacts import TeacherStore
from kdbench.config.loading import load_anchor, validate
from kdbench.config.schema import Anchor
from kdbench.datasets.digits import Digits
from kdbench.evaluation import TestSet
from kdbench.hooks import hookimpl
from kdbench.options import deviations_of, resolve_options
from kdbench.options import parse_setting as setting
from kdbench.plan import dataset_ref
from kdbench.records import Record
from kdbench.spec import DatasetRef, RunSpec
from kdbench.store import RunFolder, RunStore
from kdbench.testing.bench import TWO_TEACHERS, pair_for
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.cohort import Trained, Workplace, train_cohort
from kdbench.training.environment import Machine
from kdbench.training.lane import Lane
from kdbench.training.networks import new_network
from kdbench.training.runs import run_cohort
from kdbench.training.teachers import Recipe, train_teacher, write_artefact
from kdbench.training.trainer import Interrupted
from kdbench.types import Pair, StageShape

PER_CLASS, BATCH, STEPS = 20, 40, 4  # 200 images, 40 of them for validation
TINY = ("resnet8_w4", ("resnet14_w8",))
# What the tests do not ask about is small and quick, and learns more than chance in three epochs.
SMALL: dict[str, object] = {
    "schedule.epochs": 3,
    "data.batch_size": BATCH,
    "data.validation_fraction": 0.2,
    "data.cutmix_alpha": 0.0,
    "data.mixup_alpha": 0.0,
    "step.precision": "fp32",
}


def _toys(file: str = "toys.py") -> ModuleType:
    name = f"kdbench_{Path(file).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@cache
def _registry() -> registry.Registry:
    return registry.load(extra=[_toys()])


def make_anchor(name: str = "small", **changes: object) -> Anchor:
    """Return fair_baseline_smoke with other values; ``schedule__epochs=5`` stands for ``schedule.epochs``."""
    tree = load_anchor("fair_baseline_smoke", _registry().anchors.as_mapping()).model_dump()
    tree.update(name=name, locked=())
    for key, value in {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        section, leaf = key.split(".")
        tree[section][leaf] = value
    return validate(Anchor, tree, name)


def _drop_times(line: str) -> dict[str, object]:
    return {key: value for key, value in json.loads(line).items() if key not in {"seconds", "images_per_second"}}


def digest_of(value: object) -> str:
    """Return the sha256 of nested tensors, numbers and texts: bits, dtypes and shapes all count."""
    sha = hashlib.sha256()

    def feed(part: object) -> None:
        if isinstance(part, torch.Tensor):
            plain = part.detach().cpu().contiguous()
            sha.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            sha.update(plain.numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                sha.update(repr(key).encode())
                feed(part[key])
        elif isinstance(part, list | tuple):
            sha.update(f"[{len(part)}".encode())
            for item in part:
                feed(item)
        else:
            sha.update(repr(part).encode())

    feed(value)
    return sha.hexdigest()


def digest(lane: Lane) -> str:
    """Return the digest of everything a lane's state holds but times."""
    return digest_of(timeless(lane.state()))


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    """Return a lane's state without its times, the only part that two equal runs may differ in."""
    return {
        **state,
        "meters": {key: value for key, value in state["meters"].items() if key != "seconds"},
        "counters": {key: value for key, value in state["counters"].items() if key not in {"train_seconds", "seconds"}},
        "history": [_drop_times(line) for line in state["history"]],
    }


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a ``should_stop`` that says yes once, after so many steps."""
    left = [steps]

    def ask() -> bool:
        left[0] -= 1
        return left[0] == 0

    return ask


@dataclass
class Lab:
    """Specs, cohorts and records under one folder."""

    root: Path
    place: Workplace
    dataset: DatasetRef
    teacher: str
    probes: list[Any] = field(default_factory=list)

    anchor = staticmethod(make_anchor)
    digest = staticmethod(digest)
    digest_of = staticmethod(digest_of)
    timeless = staticmethod(timeless)
    stop_after = staticmethod(stop_after)
    steps = STEPS

    def spec(
        self,
        method: str,
        *settings: str,
        anchor: Anchor | None = None,
        seed: int = 0,
        networks: tuple[str, tuple[str, ...]] = TINY,
        teachers: tuple[str, ...] = (),
    ) -> RunSpec:
        """Return the spec of one run, as the planner would make it."""
        table, anchor = self.place.registry.methods, anchor or make_anchor()
        kind = table[method]
        pair = Pair("tiny", networks[0], networks[1] if kind.uses_teacher else (), "digits")
        given = [setting(f"{method}.{text}") for text in settings]
        options = resolve_options(kind, anchor, pair, given)
        return RunSpec(
            method=method,
            method_version=kind.version,
            plugin=table.owner(method).ref(),
            options=options.model_dump(mode="json"),
            deviations=deviations_of(kind, anchor, options),
            pair=pair.name,
            student=pair.student,
            teachers=pair.teachers,
            teacher_names=(teachers or (self.teacher,)) if pair.teachers else (),
            dataset=self.dataset,
            anchor=anchor,
            seed=seed,
        )

    def folders(self, specs: Sequence[RunSpec], where: str) -> list[RunFolder]:
        """Return where the runs of one store are kept."""
        return [RunStore(self.root / where).folder(spec.run_id) for spec in specs]

    def checkpoints(self, spec: RunSpec, where: str) -> CheckpointFolder:
        """Return the checkpoints of one run."""
        return CheckpointFolder(self.folders([spec], where)[0].checkpoints)

    def train(self, specs: Sequence[RunSpec], where: str, **changes: Any) -> list[Trained]:
        """Train a cohort to its end, from its checkpoints if there are any; no records are written."""
        methods = self.place.registry.methods
        place = replace(self.place, **changes)
        return train_cohort(specs, self.folders(specs, where), place, lambda spec: methods[spec.method])

    def run(self, specs: Sequence[RunSpec], where: str, **changes: Any) -> list[Record]:
        """Train a cohort in a store and return its records."""
        store = RunStore(self.root / where)
        store.register(specs)
        return run_cohort([spec.run_id for spec in specs], store, replace(self.place, **changes))

    def probe(self, name: str = "probe", **attributes: object) -> Any:
        """Register a kind of the probe with other attributes, and return it."""
        kind = type(name, (_toys("probe.py").Probe,), {"name": name, "seen": [], **attributes})
        self.probes.append(kind)
        plugin = ModuleType("probes")
        plugin.kdbench_methods = hookimpl(lambda: self.probes, specname="kdbench_methods")  # type: ignore[attr-defined]
        self.place = replace(self.place, registry=registry.load(extra=[_toys(), plugin]))
        return kind

    def stopped(self, spec: RunSpec, where: str, steps: int) -> dict[str, Any]:
        """Train one run for so many steps and return the state of its checkpoint."""
        with pytest.raises(Interrupted):
            self.train([spec], where, should_stop=stop_after(steps))
        state = self.checkpoints(spec, where).newest()
        assert state is not None
        return state

    def make_teacher(self, backbone: str) -> str:
        """Put an untrained teacher beside a copy of the trained one and return its name."""
        copy = TeacherStore(self.root / "teachers")
        shutil.copytree(self.place.teachers.root, copy.root)
        self.place = replace(self.place, teachers=copy)
        source, name = Digits(), f"untrained-{backbone}"
        network = new_network(_registry().backbones[backbone], 10, StageShape((1, 8, 8)), seed=0)
        predictions = TestSet(source, torch.device("cpu"), 500).predict(network)
        about = {"name": name, "backbone": backbone, "origin": "imported", "recipe": "none", "recipe_sha256": "0" * 64}
        write_artefact(copy, network, predictions, source.info, self.dataset, **about)
        return name

    def spec_for(self, method: str, anchor: Anchor) -> RunSpec:
        """Return the spec of a method's run on a pair with one teacher, or with two if it declines one."""
        if pair_for(self.place.registry.methods[method]) is not TWO_TEACHERS:
            return self.spec(method, anchor=anchor)
        second = "resnet8_w4"
        teachers = (self.teacher, self.make_teacher(second))
        return self.spec(method, anchor=anchor, networks=(TINY[0], (*TINY[1], second)), teachers=teachers)

    def digest_after(self, spec: RunSpec, where: str) -> str:
        """Return the digest at the end of one run, which must be sound: failures are alike too."""
        lane = self.train([spec], where)[0].lane
        assert lane.failure is None
        return digest(lane)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    return _toys()


@pytest.fixture(scope="session")
def teacher_store(tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    """Return a store with one teacher that knows the digits."""
    torch.set_num_threads(1)
    store = TeacherStore(tmp_path_factory.mktemp("teachers"))
    recipe = Recipe("resnet14_w8", dataset_ref(Digits().info, PER_CLASS), make_anchor("recipe", schedule__epochs=12))
    assert train_teacher(recipe, _workplace(store)).accuracy > 60
    return store


def _workplace(store: TeacherStore) -> Workplace:
    return Workplace(_registry(), Machine(torch.device("cpu"), 1), store, Path("data"))


@pytest.fixture
def lab(tmp_path: Path, teacher_store: TeacherStore) -> Lab:
    (manifest,) = teacher_store.all()
    return Lab(tmp_path, _workplace(teacher_store), manifest.dataset, manifest.name)
