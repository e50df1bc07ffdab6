"""Third-party plugins of these tests: a method with every kind of state, methods that misbehave, a plain network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.backbones.base import Backbone, Network, by_channels
from kdbench.hooks import hookimpl
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Phase, Setup, TapRequest
from kdbench.types import Context, Deviation, Source, Taps, Term

SOURCE = Source("A toy", 2020, "https://example.org")
BANK = 8


class BankOptions(Options):
    init_epochs: int = Field(2, ge=0, description="epochs of the helper's own phase")


class Bank(Method[BankOptions]):
    """Everything a checkpoint must hold: a phase of its own, a helper with dropout, a bank, a random table."""

    name, source, options_type = "toy_bank", SOURCE, BankOptions
    taps = TapRequest(Taps(embedding=True), Taps((-1,), embedding=True))

    def __init__(self, options: BankOptions, context: Context) -> None:
        super().__init__(options, context)
        wide = context.teachers[0].embedding
        self.helper = nn.Sequential(nn.Linear(context.student.embedding, wide), nn.Dropout(0.3), nn.Linear(wide, wide))
        self.register_buffer("bank", F.normalize(torch.randn(context.train_size, wide), dim=1))
        self.register_buffer("table", torch.zeros(BANK, dtype=torch.int64))

    def prepare(self, setup: Setup) -> None:
        # Drawn from the global generator, as a third party will: the trainer must have seeded it.
        self.table.copy_(torch.randint(len(setup.labels), (BANK,)))

    def phases(self) -> tuple[Phase, ...]:
        init = Phase("init", self.options.init_epochs, self._init, self.helper.parameters, learning_rate=0.02)
        return (init, Phase())

    def _init(self, batch: Batch) -> Losses:
        return {"fit": Term(self._distance(batch))}

    def losses(self, batch: Batch) -> Losses:
        assert batch.student.embedding is not None
        negatives = self.bank[torch.cat([self.table, torch.randint(len(self.bank), (BANK,))])]
        far = (self.helper(batch.student.embedding) @ negatives.T).pow(2).mean()
        return {
            "ce": batch.supervised(),
            "kd": batch.kd(),
            "fit": Term(self._distance(batch), 0.1),
            "far": Term(far, 0.01),
        }

    def _distance(self, batch: Batch) -> Tensor:
        assert batch.student.embedding is not None
        assert batch.teacher.embedding is not None
        return F.mse_loss(self.helper(batch.student.embedding), batch.teacher.embedding)

    def after_step(self, batch: Batch) -> None:
        assert batch.teacher.embedding is not None
        self.bank[batch.index] = F.normalize(0.5 * self.bank[batch.index] + 0.5 * batch.teacher.embedding, dim=1)


class BadOptions(Options):
    where: str = Field("", description="what raises: init, prepare, taps, losses, after_step, deploy, state, result")
    epoch: int = Field(0, ge=0, description="first epoch in which losses and after_step raise")


class Bad(Method[BadOptions]):
    """Raises where its option says."""

    name, source, options_type = "toy_bad", SOURCE, BadOptions

    def __init__(self, options: BadOptions, context: Context) -> None:
        super().__init__(options, context)
        self._raise("init")
        if options.where in {"student taps", "teacher taps"}:
            far = Taps((99,))
            self.taps = TapRequest(far) if options.where == "student taps" else TapRequest(teachers=far)

    def _raise(self, here: str) -> None:
        if self.options.where == here:
            raise ValueError(f"toy fails in {here}")

    def prepare(self, setup: Setup) -> None:  # noqa: ARG002
        self._raise("prepare")

    def losses(self, batch: Batch) -> Losses:
        if batch.epoch >= self.options.epoch:
            self._raise("losses")
        return {"ce": batch.supervised(), "kd": batch.kd()}

    def after_step(self, batch: Batch) -> None:
        if batch.epoch >= self.options.epoch:
            self._raise("after_step")

    def deploy(self, student: nn.Module) -> nn.Module:
        self._raise("deploy")
        return Unmovable(student) if self.options.where == "result" else student

    def get_extra_state(self) -> Tensor:
        self._raise("state")
        return torch.zeros(1)

    def set_extra_state(self, state: Tensor) -> None:
        pass


class VandalOptions(Options):
    what: str = Field("", description="what it changes: images, labels, teacher logits, prepared labels or teachers")


class Vandal(Method[VandalOptions]):
    """Changes in place what it shares with the lanes beside it."""

    name, source, options_type = "toy_vandal", SOURCE, VandalOptions

    def prepare(self, setup: Setup) -> None:
        if self.options.what == "prepared labels":
            setup.labels.zero_()
        if self.options.what == "prepared teachers":
            for parameter in setup.teachers[0].parameters():
                parameter.zero_()
            setup.teachers[0].train()

    def losses(self, batch: Batch) -> Losses:
        shared = {"images": batch.images, "labels": batch.labels, "teacher logits": batch.teacher.logits}
        if self.options.what in shared:
            shared[self.options.what].zero_()
        return {"ce": batch.supervised()}


class Unmovable(nn.Module):
    """Evaluates well, but the tensor it keeps to itself stays behind when it is moved to count operations."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student, self.scale = student, torch.ones(1, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images).logits * self.scale


class NanOptions(Options):
    epoch: int = Field(1, ge=0, description="epoch from which on the loss is not a number")


class Nan(Method[NanOptions]):
    name, source, options_type = "toy_nan", SOURCE, NanOptions

    def losses(self, batch: Batch) -> Losses:
        factor = float("nan") if batch.epoch >= self.options.epoch else 1.0
        return {"ce": Term(batch.supervised().value * factor, 1.0)}


class Low(Method[NanOptions]):
    """In low precision, from an epoch on, its loss is not a number; it knows by outputs that bfloat16 can hold."""

    name, source, options_type = "toy_low", SOURCE, NanOptions

    def losses(self, batch: Batch) -> Losses:
        logits = batch.student.logits
        low = batch.epoch >= self.options.epoch and torch.equal(logits, logits.bfloat16().float())
        return {"ce": Term(batch.supervised().value * (float("nan") if low else 1.0), 1.0), "kd": batch.kd()}


class Hit(Bank):
    """The method with every kind of state, hit by the errors that a test has put in line, one each time it is asked."""

    name = "toy_hit"
    errors: list[Exception] = []  # noqa: RUF012 (shared on purpose: tests fill it)

    def losses(self, batch: Batch) -> Losses:
        if batch.epoch >= 1 and self.errors:
            raise self.errors.pop()
        return super().losses(batch)


class OwnTau(Method[Options]):
    """Declares another temperature and remembers the one it got."""

    name, source = "toy_tau", SOURCE
    deviations = (Deviation("loss.tau", 2.0, "its targets are soft already"),)

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.register_buffer("seen", torch.zeros(1))

    def losses(self, batch: Batch) -> Losses:
        self.seen.fill_(batch.tau)
        return {"ce": batch.supervised(), "kd": batch.kd()}


class Watch(Method[Options]):
    """Keeps the last batch, for the test to look at."""

    name, source = "toy_watch", SOURCE
    taps = TapRequest(Taps(embedding=True), Taps("all", pre_activation=True, embedding=True))
    batches: list[Batch] = []  # noqa: RUF012 (shared on purpose: tests read and clear it)

    def losses(self, batch: Batch) -> Losses:
        self.batches.append(batch)
        return {"ce": batch.supervised()}


class Deepest(Method[Options]):
    """Taps the deepest stage of every teacher, whatever their number of stages."""

    name, source = "toy_deepest", SOURCE
    taps = TapRequest(teachers=Taps((-1, 0)), every_teacher=True)
    widths: list[tuple[int, ...]] = []  # noqa: RUF012 (as above)

    def losses(self, batch: Batch) -> Losses:
        self.widths[:] = [tuple(stage.shape[1] for stage in teacher.stages) for teacher in batch.teachers]
        return {"ce": batch.supervised()}


class Projector(nn.Module):
    """A deployed student with a classifier of its own."""

    def __init__(self, student: Network, head: nn.Module) -> None:
        super().__init__()
        self.student, self.head = student, head

    def forward(self, images: Tensor) -> Tensor:
        embedding = self.student(images, Taps(embedding=True)).embedding
        assert embedding is not None
        return self.head(embedding)


class OwnHead(Method[Options]):
    """Deploys a trained helper in place of the student's head, and drops another one."""

    name, source = "toy_head", SOURCE
    taps = TapRequest(Taps(embedding=True))

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.head = nn.Linear(context.student.embedding, context.student.classes)
        self.dropped = nn.Linear(context.student.embedding, 3)

    def losses(self, batch: Batch) -> Losses:
        assert batch.student.embedding is not None
        return {"ce": batch.supervised(self.head(batch.student.embedding))}

    def deploy(self, student: nn.Module) -> nn.Module:
        assert isinstance(student, Network)
        return Projector(student, self.head)


class Plain(Network):
    """Two convolutions and no BatchNorm: every image counts by itself."""

    stage_count, embedding_dim = 2, 6

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        self.first, self.second = nn.Conv2d(in_channels, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.head = nn.Linear(6, num_classes)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        before = (self.second if index else self.first)(x)
        return (before if pre else None), before.relu()

    def embed(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@hookimpl
def kdbench_methods() -> Iterable[type[AnyMethod]]:
    return [Bank, Bad, Vandal, Nan, Low, Hit, OwnTau, Watch, Deepest, OwnHead]


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    return [Backbone("toy_plain", "toy", by_channels(Plain), SOURCE)]
