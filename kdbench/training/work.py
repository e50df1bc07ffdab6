"""A run as something to be timed: what it does, on how much data, in how many operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from kdbench.backbones.base import Backbone
from kdbench.config.schema import Anchor
from kdbench.datasets.base import DatasetInfo
from kdbench.memory import network_cost
from kdbench.method import AnyMethod
from kdbench.options import apply_deviations
from kdbench.rehearsal import Passes
from kdbench.spec import RunSpec
from kdbench.types import PairInfo

STEP_FLOPS = {"cpu": 1e11, "cuda": 2e12}  # of one measured step: a second or two of a core, enough to fill a GPU
FEWEST_IMAGES = 4  # less than a few is no batch for BatchNorm, nor for losses that compare images


@dataclass(frozen=True, eq=False)
class Work:
    """One run.

    Args:
        spec: What it is.
        method: Its method.
        pair: Shapes of its networks.
        networks: Backbones of the student and the teachers.
        data: What it is trained and tested on.
        train: Training images, after the validation split was cut.
        validation: Validation images.
        passes: How often each training image goes through the networks.
    """

    spec: RunSpec
    method: type[AnyMethod]
    pair: PairInfo
    networks: tuple[Backbone, ...]
    data: DatasetInfo
    train: int
    validation: int
    passes: Passes

    @cached_property
    def anchor(self) -> Anchor:
        """The protocol as it holds for the method."""
        return apply_deviations(self.spec.anchor, self.spec.deviations)

    @property
    def epoch_images(self) -> int:
        """Images of an epoch: a last batch that is not full is left out."""
        batch = min(self.anchor.data.batch_size, self.train)
        return max(1, self.train // batch) * batch

    @property
    def flops(self) -> int:
        """Operations of the networks in one step, per image; a backward pass counts as two forward passes."""
        student, *teachers = self._forward
        return max(1, self.passes.inputs * (3 * student + sum(teachers)))

    @property
    def run_flops(self) -> int:
        """Operations of the networks in the whole run."""
        student, *teachers = self._forward
        return max(1, self.train * (3 * self.passes.student * student + self.passes.teacher * sum(teachers)))

    def step_images(self, device: torch.device) -> int:
        """Return how many images a measured step has: so many operations, at most what a run has at once."""
        most = min(self.anchor.data.batch_size, self.train)
        return min(most, max(FEWEST_IMAGES, int(STEP_FLOPS[device.type] / self.flops)))

    def evaluated_images(self, device: torch.device, size: int) -> int:
        """Return how many images of a split of some size are evaluated when an epoch's end is measured."""
        most = min(self.anchor.evaluation.batch_size, int(STEP_FLOPS[device.type] / max(1, self._forward[0])))
        return min(size, max(FEWEST_IMAGES, most))

    @cached_property
    def _forward(self) -> tuple[int, ...]:
        infos = (self.pair.student, *self.pair.teachers)
        return tuple(
            network_cost(network, info.classes, self.pair.image).flops
            for network, info in zip(self.networks, infos, strict=False)
        )
