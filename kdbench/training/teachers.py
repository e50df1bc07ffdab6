"""Making teacher artefacts by a recipe, and writing them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from safetensors.torch import save
from torch import Tensor

from kdbench import __version__
from kdbench.artefacts import PREDICTIONS, WEIGHTS, TeacherManifest, TeacherStore
from kdbench.backbones.base import Network
from kdbench.config.schema import Anchor
from kdbench.datasets.base import DatasetInfo
from kdbench.errors import RunError
from kdbench.evaluation import Predictions
from kdbench.files import sweep_temporary
from kdbench.method import Supervised
from kdbench.schedule import best_epoch
from kdbench.spec import DatasetRef, PluginRef, RunSpec
from kdbench.store import RunFolder, RunStore
from kdbench.training.attempts import now
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.cohort import Trained, Workplace, train_cohort
from kdbench.training.networks import pretrained_build
from kdbench.training.results import learned_nothing_below, outcome
from kdbench.training.teacher_names import TEACHER_SEED, path_name, recipe_name

TRAINING = "training"
_REMEDY = "equal runs end equally: use an anchor that trains it, or import a teacher"


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained: the anchor's protocol, labels only."""

    backbone: str
    dataset: DatasetRef
    anchor: Anchor
    seed: int = TEACHER_SEED

    @property
    def name(self) -> str:
        """Name of the artefact."""
        return recipe_name(self.backbone, self.anchor, self.seed)

    def spec(self) -> RunSpec:
        """Return the training as a run without teachers."""
        return RunSpec(
            method=Supervised.name,
            method_version=Supervised.version,
            plugin=PluginRef(distribution="kdbench", version=__version__),
            options={},
            pair=path_name(self.backbone),
            student=self.backbone,
            teachers=(),
            dataset=self.dataset,
            anchor=self.anchor,
            seed=self.seed,
        )


def recipes_of(specs: Sequence[RunSpec]) -> list[Recipe]:
    """Return the recipes of all teachers that runs need and do not name themselves, each once."""
    found: dict[tuple[str, str, str], Recipe] = {}
    for spec in specs:
        if not spec.teacher_names:
            for backbone, dataset in zip(spec.teachers, spec.taught_on, strict=True):
                key = (backbone, dataset.label, spec.anchor.sha256)
                found.setdefault(key, Recipe(backbone, dataset, spec.anchor))
    return list(found.values())


def training_folder(recipe: Recipe, store: TeacherStore) -> RunFolder:
    """Return where the training of a teacher is kept."""
    return RunStore(store.where).at(f"{recipe.dataset.label}/{recipe.name}/{TRAINING}")


def train_teacher(recipe: Recipe, workplace: Workplace) -> TeacherManifest:
    """Train a teacher, or return the one that exists; an interrupted training continues.

    Raises:
        RunError: If its training diverged or failed.
        ConfigError: If an artefact of that name was made by another recipe, or if the recipe takes pretrained weights
            and the backbone has none.
    """
    store = workplace.teachers
    spec = recipe.spec()
    folder = training_folder(recipe, store)
    with folder.claimed(workplace.should_stop):
        if store.exists(recipe.dataset, recipe.name):
            return store.made_by(recipe.dataset, recipe.name, recipe.anchor.sha256)
        if recipe.anchor.pretrained:
            pretrained_build(workplace.registry.backbones[recipe.backbone])  # before data are read
        (trained,) = train_cohort([spec], [folder], workplace, lambda _spec: Supervised)
        status, reason = outcome(trained.lane)
        if status != "ok":
            raise RunError(f"teacher '{recipe.name}': training {status}: {reason}; {_REMEDY}")
        folder.confirm()
        manifest = _write_trained(recipe, trained, store)
        CheckpointFolder(folder.checkpoints).remove()
    return manifest


def _write_trained(recipe: Recipe, trained: Trained, store: TeacherStore) -> TeacherManifest:
    network = trained.lane.deployed()
    assert isinstance(network, Network)
    predictions, history = trained.data.test.predict(network), trained.lane.accuracies
    if predictions.accuracy <= learned_nothing_below(trained.data.info.occurring, recipe.anchor.schedule.epochs):
        raise RunError(f"teacher '{recipe.name}': {predictions.accuracy:.2f} % after training is chance; {_REMEDY}")
    sweep_temporary(store.folder(recipe.dataset, recipe.name))  # of writers that were killed: the claim is this one's
    return write_artefact(
        store,
        network,
        predictions,
        trained.data.info,
        recipe.dataset,
        name=recipe.name,
        backbone=recipe.backbone,
        origin="trained",
        recipe=recipe.anchor.label,
        recipe_sha256=recipe.anchor.sha256,
        seed=recipe.seed,
        epochs=len(trained.lane.history),
        best_epoch=best_epoch(history) + 1 if recipe.anchor.stopping.patience else None,
    )


def write_artefact(
    store: TeacherStore,
    network: Network,
    predictions: Predictions,
    info: DatasetInfo,
    dataset: DatasetRef,
    **about: object,
) -> TeacherManifest:
    """Write weights, test predictions and, last, the manifest of a teacher.

    Args:
        store: Where to.
        network: The teacher.
        predictions: On the whole test split.
        info: The dataset's description.
        dataset: How specs name the dataset.
        about: The remaining fields of the manifest: name, backbone, origin, recipe and so on.
    """
    state: dict[str, Tensor] = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    data, answers = save(state), predictions.to_npz()
    manifest = TeacherManifest.model_validate(
        {
            "dataset": dataset,
            "classes": info.classes,
            "in_channels": info.image.channels,
            "accuracy": predictions.accuracy,
            "test_images": len(predictions.labels),
            "mean": tuple(network.mean.flatten().tolist()),
            "std": tuple(network.std.flatten().tolist()),
            "sha256": _sha256(data),
            "predictions_sha256": _sha256(answers),
            "created_at": now(),
            "kdbench_version": __version__,
            **about,
        }
    )
    store.write(manifest, {WEIGHTS: data, PREDICTIONS: answers})
    return manifest


def _sha256(data: bytes) -> str:

    return hashlib.sha256(data).hexdigest()
