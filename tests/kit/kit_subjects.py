"""Methods for the tests of the kit: a sound one, and those broken in one declaration or in their structure."""

# ruff: noqa: ARG002, ARG003, ARG005 (a subject is broken by what it leaves out)

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

import kdbench
from kdbench.method import AnyMethod, Losses, TapRequest
from kdbench.types import Pair


class Weights(kdbench.Options):
    weight: float = Field(0.5, ge=0, description="weight of the feature term")
    sizes: tuple[int, ...] = Field((2, 3), description="something that is no scalar")


class Sound(kdbench.Method[Weights]):
    """Everything a method may have: helpers, buffers, taps, two phases, a memory, dropout, its own deployment."""

    name = "sound"
    source = kdbench.Source("A paper", 2020, "https://example.org/paper")
    options_type = Weights
    taps = TapRequest(student=kdbench.Taps((-1,), embedding=True), teachers=kdbench.Taps((1, -1), embedding=True))

    def __init__(self, options: Weights, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.project = nn.Linear(context.student.embedding, context.teachers[0].embedding)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("memory", torch.zeros(context.train_size, context.teachers[0].embedding))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("unset", torch.full((3,), torch.nan))
        self.register_buffer("frequency", torch.zeros(context.student.classes), persistent=False)

    def prepare(self, setup: kdbench.Setup) -> None:
        self.frequency.copy_(setup.labels.bincount(minlength=len(self.frequency)) / len(setup.labels))

    def phases(self) -> tuple[kdbench.Phase, ...]:
        head = kdbench.Phase("head", epochs=1, losses=self.head_losses, parameters=self.project.parameters)
        return (head, kdbench.Phase())

    def head_losses(self, batch: kdbench.Batch) -> Losses:
        return {"head": kdbench.Term(self.distance(batch))}

    def losses(self, batch: kdbench.Batch) -> Losses:
        noisy = self.drop(batch.student.embedding) * self.frequency.sum()
        old = (self.project(noisy) - self.memory[batch.index]).square().mean()
        feature = self.distance(batch) + old / (1 + self.steps)
        return {"ce": batch.supervised(), "kd": batch.kd(), "feature": kdbench.Term(feature, self.options.weight)}

    def distance(self, batch: kdbench.Batch) -> Tensor:
        return (self.project(batch.student.embedding) - batch.teacher.embedding).square().mean()

    def after_step(self, batch: kdbench.Batch) -> None:
        self.memory[batch.index] = batch.teacher.embedding
        self.steps.add_(1)

    def deploy(self, student: nn.Module) -> nn.Module:
        return nn.Sequential(student)


class Plain(kdbench.Method[kdbench.Options]):
    """The smallest sound method; broken ones change one thing in it."""

    name = "plain"
    source = kdbench.Source("A paper", 2020, "https://example.org/paper")

    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": batch.supervised()}


BROKEN: list[tuple[type[AnyMethod], str, str]] = []


def broken(check: str, message: str) -> Callable[[type[AnyMethod]], type[AnyMethod]]:
    """List a class with the one check that must fail and a part of its message."""

    def add(subject: type[AnyMethod]) -> type[AnyMethod]:
        BROKEN.append((subject, check, message))
        return subject

    return add


def broken_attributes(check: str, message: str, **attributes: object) -> None:
    """List a ``Plain`` with other class attributes."""
    BROKEN.append((type(f"Plain_{check}", (Plain,), attributes), check, message))


# --- declarations

broken_attributes("name", "name is 'a b'; a name is 1 to 64 letters", name="a b")
broken_attributes("name", "version is 0; a version is a whole number from 1 on", version=0)
broken_attributes("source", "source is None; set source = kdbench.Source(", source=None)
broken_attributes("source", "source.url is 'example.org'", source=kdbench.Source("A paper", 2020, "example.org"))
broken_attributes("source", "source.title is ' '", source=kdbench.Source(" ", 2020, "https://example.org"))
broken_attributes("source", "source.year is 22", source=kdbench.Source("A paper", 22, "https://example.org"))


class NotOptions:
    pass


class Undescribed(kdbench.Options):
    weight: float = 1.0


class Required(kdbench.Options):
    weight: float = Field(description="weight")


class OutOfRange(kdbench.Options):
    weight: float = Field(-1.0, ge=0, description="weight")


class NotJson(kdbench.Options):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    device: torch.device = Field(torch.device("cpu"), description="device")


class Lenient(kdbench.Options):
    model_config = ConfigDict(extra="ignore")


class Tau(kdbench.Options):
    tau: float = Field(2.0, gt=0, description="temperature")


broken_attributes("options", "it must be a subclass of kdbench.Options", options_type=NotOptions)
broken_attributes("options", "option 'weight' has no description; add Field(", options_type=Undescribed)
broken_attributes("options", "option 'weight' has no default", options_type=Required)
broken_attributes("options", "the default of option 'weight' is not valid", options_type=OutOfRange)
broken_attributes("options", "option 'device' cannot be written as JSON", options_type=NotJson)
broken_attributes("options", "Lenient changes model_config['extra']", options_type=Lenient)


@broken("options", "recommended('fair_baseline', ...): wieght: unknown key. Did you mean 'weight'?")
class RecommendsUnknown(Plain):
    options_type = Weights

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> dict[str, object]:
        return {"wieght": 1.0}


broken_attributes(
    "deviations",
    "'loss.tua' is no key of an anchor. Did you mean 'loss.tau'?",
    deviations=(kdbench.Deviation("loss.tua", 2.0, "softer"),),
)
broken_attributes("deviations", "'loss.target' is no key of an anchor", owns=("loss.target",))
broken_attributes(
    "deviations", "the deviation of 'loss.tau' has no reason", deviations=(kdbench.Deviation("loss.tau", 2.0, ""),)
)
broken_attributes("deviations", "option tau is 2.0, but anchor fair_baseline-v1", options_type=Tau)
broken_attributes("supports", "supports() returned False; return None", supports=classmethod(lambda cls, pair: False))
broken_attributes(
    "supports", "declines the pair of this check, resnet8_w4 from resnet14_w8: no", supports=lambda pair: "no"
)

# --- structure


@broken("builds", "call super().__init__(options, ...)")
class ForgetsOptions(Plain):
    options_type = Weights

    def __init__(self, options: Weights, context: kdbench.Context) -> None:
        super().__init__(Weights(weight=2.0), context)


@broken("builds", "ForgetsSuper: raised AttributeError")
class ForgetsSuper(Plain):
    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        self.helper = nn.Linear(2, 2)


broken_attributes("builds", "must be a TapRequest(student=Taps, teachers=Taps)", taps=kdbench.Taps())
broken_attributes(
    "builds",
    "taps.teachers of resnet14_w8: stage 4 does not exist: the network has stages 0..3",
    taps=TapRequest(teachers=kdbench.Taps((4,))),
)

HEAD = kdbench.Phase("head", epochs=1)
for text, phases in {
    "return a non-empty tuple of kdbench.Phase": (),
    "two phases are named 'main'": (kdbench.Phase(epochs=1), kdbench.Phase()),
    "2 phases have epochs=None (main, more)": (kdbench.Phase(), kdbench.Phase("more")),
    "0 phases have epochs=None (none)": (HEAD,),
    "phase 'head': epochs is -1": (kdbench.Phase("head", epochs=-1), kdbench.Phase()),
    "phase 'head': learning_rate is 0": (kdbench.Phase("head", epochs=1, learning_rate=0.0), kdbench.Phase()),
    "phase 'main': losses is 'mse'": (kdbench.Phase(losses="mse"),),  # type: ignore[arg-type]
    "phase 'main': parameters() must return at least one": (kdbench.Phase(parameters=list),),
}.items():
    broken_attributes("phases", text, phases=functools.partialmethod(lambda self, value: value, phases))

for text, make in {
    "losses() returned dict {}; return a non-empty dict": lambda b: {},
    "losses() returned a tensor of shape () and type float32": lambda b: b.supervised().value,
    "entry 'ce' is a tensor of shape ()": lambda b: {"ce": b.supervised().value},
    "entry 1 is Term": lambda b: {1: b.supervised()},
    "term 'ce' is a tensor of shape (8,)": lambda b: {"ce": kdbench.Term(b.student.logits.sum(1))},
    "term 'ce' is a tensor of shape () and type int64": lambda b: {"ce": kdbench.Term(b.labels.sum())},
    "term 'ce' is nan": lambda b: {"ce": kdbench.Term(b.supervised().value * float("nan"))},
    "the weight of term 'ce' is a tensor": lambda b: {
        "ce": kdbench.Term(b.supervised().value, b.student.logits.mean())
    },
}.items():
    broken_attributes("losses", text, losses=functools.partialmethod(lambda self, make, b: make(b), make))


@broken("losses", "losses of phase 'head' returned NoneType None")
class PhaseReturnsNothing(Plain):
    def phases(self) -> tuple[kdbench.Phase, ...]:
        return (kdbench.Phase("head", epochs=1, losses=lambda batch: None), kdbench.Phase())  # type: ignore


@broken("losses", "losses() in the last step: term 'ce' is inf; a loss must be finite")
class DividesByWhatIsLeft(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        left = torch.tensor(self.context.epochs - 1.0 - batch.epoch)
        return {"ce": kdbench.Term(batch.supervised().value / left)}


@broken("losses", "TapsTooLittle: raised TypeError")
class TapsTooLittle(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"feature": kdbench.Term(batch.student.embedding + 1)}  # type: ignore


@broken("gradient", "no gradient of losses() reaches the student; use batch.student without detach()")
class Detaches(Plain):
    def __init__(self, options: kdbench.Options, context: kdbench.Context) -> None:
        super().__init__(options, context)
        self.head = nn.Linear(context.student.classes, context.student.classes)

    def losses(self, batch: kdbench.Batch) -> Losses:
        return {"ce": batch.supervised(self.head(batch.student.logits.detach()))}


@broken("gradient", "the gradient of losses() is not finite at")
class RootAtZero(Plain):
    def losses(self, batch: kdbench.Batch) -> Losses:
        zero = (batch.student.logits - batch.student.logits.detach()).square().sum()
        return {"ce": batch.supervised(), "distance": kdbench.Term(zero.sqrt())}


@broken("gradient", "no gradient of losses of phase 'head' reaches any parameter the phase trains")
class TrainsTheWrongHead(Sound):
    name = "wrong-head"

    def phases(self) -> tuple[kdbench.Phase, ...]:
        head = kdbench.Phase("head", epochs=1, losses=self.head_losses, parameters=self.unused)
        return (head, kdbench.Phase())

    def unused(self) -> Iterable[nn.Parameter]:
        return [nn.Parameter(torch.zeros(1))]
