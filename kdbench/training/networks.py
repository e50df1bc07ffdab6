"""Networks with weights: new students, and teachers from their artefacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.artefacts import TeacherManifest, TeacherStore
from kdbench.backbones.base import Backbone, Build, Network
from kdbench.errors import ConfigError
from kdbench.seeds import stream
from kdbench.training.inputs import Inputs
from kdbench.training.precision import autocast, in_float32
from kdbench.types import Features, StageShape, Taps


def new_network(backbone: Backbone, classes: int, image: StageShape, seed: int, *, pretrained: bool = False) -> Network:
    """Return a network with the initial weights of a seed: the same for every method.

    Args:
        backbone: What to build.
        classes: Outputs of its classifier.
        image: Shape of one image.
        seed: Of the random weights; with pretrained ones, of those that do not come with them (the classifier).
        pretrained: Whether to take the published weights even if the backbone does not start from them by itself.

    Raises:
        ConfigError: If there are none, or if they cannot be had.
    """
    build = pretrained_build(backbone) if pretrained or backbone.pretrained else backbone.build
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init", backbone.name))
        return build(classes, image)


def pretrained_build(backbone: Backbone) -> Build:
    """Return what builds a backbone with published weights, with the arguments of its ``build``.

    Raises:
        ConfigError: If there is nothing that does.
    """
    if backbone.build_pretrained is None:
        raise ConfigError(
            f"backbone '{backbone.name}' has no pretrained weights; add --scratch, or bring a teacher with kdbench "
            "teacher import"
        )
    return backbone.build_pretrained


def load_teacher(store: TeacherStore, manifest: TeacherManifest, backbone: Backbone, image: StageShape) -> Network:
    """Return a teacher as its artefact stores it, frozen and in eval mode, for the images it was made for.

    Raises:
        KdbenchError: If the weights are corrupt or do not fit the backbone.
    """
    network = backbone.build(len(manifest.classes), image)
    fit_state(network, store.weights(manifest), f"teacher '{manifest.name}'")
    network.set_normalisation(manifest.mean, manifest.std)
    return network.eval().requires_grad_(requires_grad=False)


def fit_state(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        ConfigError: Naming the keys that are missing, unknown, or of another shape.
    """
    own = network.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, needs {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    parts = [("missing", missing), ("unknown", unknown), ("other shape", shapes)]
    if problems := [f"{what}: {_few(keys)}" for what, keys in parts if keys]:
        raise ConfigError(f"{where}: the checkpoint does not fit {type(network).__name__}: " + "; ".join(problems))
    network.load_state_dict(state)


def _few(keys: Sequence[str], most: int = 4) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


@dataclass(frozen=True)
class Taught:
    """What the teachers say of a batch.

    Args:
        features: Of each teacher.
        run: Images that teachers were run on for it, all teachers together.
        recalled: Images whose outputs were kept from earlier, likewise.
    """

    features: tuple[Features, ...] = ()
    run: int = 0
    recalled: int = 0


class TeacherPass:
    """One pass of all teachers over a batch, shared by the lanes of a cohort.

    Args:
        teachers: Frozen networks in eval mode, on the device, or their compiled forward passes.
        taps: Union of what the lanes need of each teacher, resolved.
        precision: In which precision.
        device: Where they run.
    """

    def __init__(
        self, teachers: Sequence[Callable[[Tensor, Taps], Features]], taps: Sequence[Taps], precision: str,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.teachers, self.taps = tuple(teachers), tuple(taps)
        self.precision, self.device = precision, device

    def of(self, taps: Sequence[Taps]) -> TeacherPass:
        """Return a pass of the same teachers that keeps other taps."""
        return TeacherPass(self.teachers, taps, self.precision, self.device)

    def alone(self, place: int, taps: Taps | None = None) -> Callable[[Tensor], Features]:
        """Return what one of the teachers says, with its own taps or others."""
        one = TeacherPass([self.teachers[place]], [taps or self.taps[place]], self.precision, self.device)
        return lambda images: one(images)[0]

    def of_batch(self, inputs: Inputs) -> Taught:
        """Return each teacher's features of a batch, and what they cost."""
        features = self(inputs.images)
        return Taught(features, len(inputs.labels) * len(features))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Features, ...]:
        """Return each teacher's features of images (N, C, H, W) in [0, 1]."""
        with autocast(self.precision, self.device):
            outputs = [teacher(images, taps) for teacher, taps in zip(self.teachers, self.taps, strict=True)]
        return tuple(in_float32(features) for features in outputs)
