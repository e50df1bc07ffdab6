"""The whole batch as one device would see it, for methods whose losses compare its images with each other."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kdbench.method import Batch, Mix, Viewed
from kdbench.training.team.members import Team
from kdbench.types import Features


def whole(batch: Batch, team: Team) -> Batch:
    """Return a batch with the images of all members, in the order of the run's batch.

    Every member computes the same losses of it. The student's gradient goes back to the member that ran it.

    Args:
        batch: This member's share.
        team: The members.
    """
    mix = batch.mix
    return replace(
        batch,
        images=team.gathered(batch.images),
        labels=team.gathered(batch.labels),
        index=team.gathered(batch.index),
        student=_features(batch.student, team),
        teachers=tuple(_features(one, team) for one in batch.teachers),
        mix=None if mix is None else Mix(team.gathered(mix.labels), mix.share),
        views=tuple(_viewed(view, team) for view in batch.views),
    )


def _viewed(view: Viewed, team: Team) -> Viewed:
    teachers = tuple(_features(one, team) for one in view.teachers)
    return Viewed(team.gathered(view.images), _features(view.student, team), teachers)


def _features(features: Features, team: Team) -> Features:
    def all_of(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(team.gathered, tensors))

    embedding = None if features.embedding is None else team.gathered(features.embedding)
    stages, pre_stages = all_of(features.stages), all_of(features.pre_stages)
    return Features(team.gathered(features.logits), embedding, stages, pre_stages, features.indices)
