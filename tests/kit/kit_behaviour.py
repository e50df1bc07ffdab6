"""Methods for the tests of the kit: those that are broken in one way in their behaviour."""

# ruff: noqa: ARG002 (a subject is broken by what it leaves out)

from __future__ import annotations

import random

import torch
from kit_subjects import Plain, broken
from torch import Tensor, nn

import kdbench
from kdbench.method import Losses, TapRequest


class Anything:
    pass


@broken("extreme_logits", "term 'kl' is inf at logits of +-500 (student and teacher right)")
class LogOfSoftmax(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": batch.supervised(), "kl": kdbench.Term(-batch.student.logits.softmax(1).log().mean())}


@broken("extreme_logits", "the gradient at the student's logits is not finite at logits of +-500 (constant student)")
class DeviationOfAConstant(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": batch.supervised(), "spread": kdbench.Term(batch.student.logits.var(1).sqrt().mean())}


@broken("batch_unchanged", "losses() or after_step() changed batch.images; other methods see the same tensors")
class AddsNoise(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        batch.images.add_(1.0)
        return super().losses(batch)


@broken("batch_unchanged", "changed batch.labels")
class ShiftsLabels(Plain):
    def after_step(self, batch: kdbench.Batch) -> None:
        batch.labels.zero_()


@broken("teacher_unchanged", "losses() or after_step() changed batch.teachers[0].logits; teachers are shared")
class ScalesTeacher(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        value = (batch.student.logits - batch.teacher.logits.mul_(0.5)).square().mean()
        return {"ce": batch.supervised(), "logits": kdbench.Term(value)}


@broken("teacher_unchanged", "changed batch.teachers[0].stages[0]")
class WantsTeacherGradient(Plain):
    taps = TapRequest(teachers=kdbench.Taps((0,)))

    def losses(self, batch: kdbench.Batch) -> Losses:
        value = batch.teacher.stages[0].requires_grad_().mean()
        return {"ce": batch.supervised(), "map": kdbench.Term(value, 0.0)}


@broken("same_seed", "two runs with the same seed differ ('loss of step 1')")
class CountsObjects(Plain):
    built = 0

    def losses(self, batch: kdbench.Batch) -> Losses:
        CountsObjects.built += 1
        return {"ce": kdbench.Term(batch.supervised().value * (1 + CountsObjects.built))}


@broken("same_seed", "depends on the global generator of Python or NumPy ('loss of step 1')")
class DrawsFromPython(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": kdbench.Term(batch.supervised().value * (1 + random.random()))}


@broken("mixed_images", "use batch.labels but not the labels of the partners in batch.mix")
class IgnoresPartners(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": kdbench.Term(nn.functional.cross_entropy(batch.student.logits, batch.labels))}


@broken("mixed_images", "losses() on mixed images: term 'ce' is a tensor of shape (8,)")
class ForgetsTheMean(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        if batch.mix is None:
            return {"ce": batch.supervised()}
        return {"ce": kdbench.Term(nn.functional.cross_entropy(batch.student.logits, batch.labels, reduction="none"))}


@broken("distributed", "distributed is 'everywhere'; set it to 'slices'")
class InventsAWord(Plain):
    distributed = "everywhere"  # type: ignore[assignment]


@broken("distributed", "distributed is 'slices', but losses() of a batch are")
class ComparesImages(Plain):
    distributed = "slices"

    def losses(self, batch: kdbench.Batch) -> Losses:
        apart = batch.student.logits - batch.student.logits.mean(0)
        return {"ce": batch.supervised(), "spread": kdbench.Term(apart.square().mean())}


@broken("distributed", "losses that compare images, or are no mean over them, need distributed = 'gathered'")
class SumsInsteadOfMeans(Plain):
    distributed = "slices"

    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": batch.supervised(), "size": kdbench.Term(batch.student.logits.square().sum())}


@broken("resume", "attribute 'steps' changes in training but is not in the state")
class CountsInPython(Plain):
    steps = 0

    def after_step(self, batch: kdbench.Batch) -> None:
        self.steps += 1


@broken("resume", "attribute 'bank' changes in training but is not in the state")
class KeepsAList(Plain):
    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.bank: list[Tensor] = []

    def after_step(self, batch: kdbench.Batch) -> None:
        self.bank.append(batch.student.logits.mean())


@broken("resume", "attribute 'mean' changes in training but is not in the state")
class ForgetsABuffer(Plain):
    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def after_step(self, batch: kdbench.Batch) -> None:
        self.mean.add_(batch.student.logits.mean())


@broken("resume", "attribute 'draws' changes in training but is not in the state")
class KeepsAGenerator(Plain):
    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.draws = torch.Generator().manual_seed(0)

    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": kdbench.Term(batch.supervised().value * torch.rand((), generator=self.draws))}


@broken("resume", "a fresh object does not load the state of an interrupted run: RuntimeError")
class GrowsABuffer(Plain):
    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.register_buffer("queue", torch.zeros(0))

    def after_step(self, batch: kdbench.Batch) -> None:
        self.queue = torch.cat([self.queue, batch.student.logits.mean()[None]])


@broken("resume", "its state_dict() cannot be read back from a checkpoint: UnpicklingError")
class SavesAnObject(Plain):
    def get_extra_state(self) -> object:
        return Anything()

    def set_extra_state(self, state: object) -> None:
        pass


class _Outside:
    """State that no attribute of the method leads to."""

    steps = 0


@broken("resume", "'memory' of the method differs from the uninterrupted run")
class KeepsStateOutside(Plain):
    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.register_buffer("memory", torch.zeros(()))
        _Outside.steps = 0

    def after_step(self, batch: kdbench.Batch) -> None:
        _Outside.steps += 1
        self.memory.add_(_Outside.steps)


@broken("deploy", "the deployed module returned (8, 16) for 8 images of 5 classes")
class DeploysTheEmbedding(Plain):
    def deploy(self, student: nn.Module) -> nn.Module:
        class Embedding(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                features: kdbench.Features = student(images, kdbench.Taps(embedding=True))
                assert features.embedding is not None
                return features.embedding

        return Embedding()


@broken("deploy", "deploy() returned method; return the student or another module")
class DeploysAFunction(Plain):
    def deploy(self, student: nn.Module) -> nn.Module:
        return student.forward  # type: ignore


@broken("deploy", "deploy() switched between train and eval mode")
class DeploysInEvalMode(Plain):
    def deploy(self, student: nn.Module) -> nn.Module:
        return student.eval()


@broken("deploy", "deploying or evaluating changed 'student.conv1.weight'")
class DeployPrunes(Plain):
    def deploy(self, student: nn.Module) -> nn.Module:
        with torch.no_grad():
            next(student.parameters()).mul_(0.5)
        return student
