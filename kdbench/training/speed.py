"""How fast this machine is: one short measurement of each network, with nothing learned and nothing read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.backbones.base import Backbone, Network
from kdbench.backbones.cost import on_meta
from kdbench.config.schema import Anchor
from kdbench.memory import network_cost
from kdbench.training.networks import TeacherPass
from kdbench.training.optimizer import make_optimizer
from kdbench.training.precision import autocast, in_float32, loss_scaler
from kdbench.types import StageShape, Taps

STEP_FLOPS = {"cpu": 2e10, "cuda": 2e12}  # of one measured step: half a second of a core, enough to fill a GPU
FEWEST_IMAGES = 2  # BatchNorm in training mode needs two
MOST_STEPS, LONG_ENOUGH = 5, 0.5  # timed steps, and the seconds of them after which there are no more


@dataclass(frozen=True)
class Work:
    """What is measured: one network doing one thing.

    Args:
        backbone: The network.
        classes: Classes of its head.
        image: Shape of its input.
        trains: Whether it does training steps, or forward passes in eval mode.
    """

    backbone: Backbone
    classes: int
    image: StageShape
    trains: bool

    @property
    def flops(self) -> int:
        """Floating-point operations per image; a backward pass counts as two forward passes."""
        forward = network_cost(self.backbone, self.classes, self.image).flops
        return max(1, 3 * forward if self.trains else forward)


@dataclass(frozen=True)
class Speed:
    """Seconds per image, and whether they were measured or only calculated from the operations."""

    seconds: float
    measured: bool = True


def images_per_step(work: Work, anchor: Anchor, device: torch.device) -> int:
    """Return how many images a measured step has: a fixed number of operations, at most what a run has at once."""
    most = anchor.data.batch_size // (anchor.step.accumulate if work.trains else 1)
    return max(FEWEST_IMAGES, min(most, int(STEP_FLOPS[device.type] / work.flops)))


def measure(work: Work, anchor: Anchor, device: torch.device) -> float:
    """Return the seconds per image of a network on a device, in the anchor's precision and memory format.

    One step to warm up, then timed ones, one if it is long and a few if it is short: what else the machine does makes
    a step slower, never faster, so the fastest counts. The network is freed afterwards.

    Raises:
        RuntimeError: If the memory does not suffice.
    """
    count = images_per_step(work, anchor, device)
    with torch.random.fork_rng(devices=[]):
        network = _filled(work, device)
        network.place(device, channels_last=anchor.step.channels_last and work.backbone.channels_last)
        pixels = torch.linspace(0, 1, count * work.image.dims[0] * work.image.dims[1] * work.image.dims[2])
        images = pixels.view(count, *work.image.dims).to(device)
        step = _training(network, images, anchor) if work.trains else _teaching(network, images, anchor)
        _timed(step, device)
        times: list[float] = []
        while len(times) < MOST_STEPS and sum(times) < LONG_ENOUGH:
            times.append(_timed(step, device))
    return min(times) / count


def _filled(work: Work, device: torch.device) -> Network:
    """Return a network whose weights cost nothing to draw and keep every activation finite and far from denormal."""
    network = on_meta(work.backbone, work.classes, work.image).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.fill_(len(parameter) / max(1, parameter.numel()))  # each output is the mean of its inputs
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, buffer in network.named_buffers():
            buffer.fill_(1 if name.endswith(("var", "std")) else 0)
    return network


def _training(network: Network, images: Tensor, anchor: Anchor) -> Callable[[], object]:
    """Return one optimizer step on the supervised loss."""
    device = images.device
    parameters = list(network.train().parameters())
    optimizer = make_optimizer(anchor.optimizer, parameters, anchor.optimizer.lr)
    scaler = loss_scaler(anchor.step.precision, device)
    labels = torch.zeros(len(images), dtype=torch.long, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(anchor.step.precision, device):
            features = network(images)
        scaler.scale(F.cross_entropy(in_float32(features).logits, labels)).backward()  # type: ignore[no-untyped-call]
        if anchor.step.grad_clip_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, anchor.step.grad_clip_norm)
        scaler.step(optimizer)
        scaler.update()

    return step


def _teaching(network: Network, images: Tensor, anchor: Anchor) -> Callable[[], object]:
    frozen = network.eval().requires_grad_(requires_grad=False)
    teach = TeacherPass([frozen], [Taps()], anchor.step.teacher_precision or anchor.step.precision, images.device)
    return lambda: teach(images)


def _timed(step: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - started, 1e-9)


def speeds_of(
    works: Iterable[Work],
    measuring: Callable[[Work], float],
    budget: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Work, Speed]:
    """Return the speed of each network, measured as long as there is time.

    The cheapest come first, and one is always measured. One that is expected to end beyond the budget, or does not fit
    the memory, is calculated from its operations and those per second of the measured network nearest to it, of the
    same kind if there is one.

    Args:
        works: What to measure; repeated ones are measured once.
        measuring: Returns seconds per image; see :func:`measure`.
        budget: Seconds for all of it.
        clock: Seconds that pass.

    Returns:
        Speeds; empty if nothing could be measured.
    """
    started, measured, left = clock(), dict[Work, Speed](), list[Work]()
    last = 0.0  # seconds of the measurement before this one
    for work in sorted(dict.fromkeys(works), key=lambda work: work.flops):
        shortest = 3 * FEWEST_IMAGES * _calculated(work, measured) if measured else 0.0
        before = clock()
        if measured and before - started + max(last, shortest) > budget:
            left.append(work)
            continue
        try:
            measured[work] = Speed(measuring(work))
        except RuntimeError:  # torch's way to say that memory is out
            left.append(work)
        last = clock() - before
    calculated = {work: Speed(_calculated(work, measured), measured=False) for work in left} if measured else {}
    return measured | calculated


def _calculated(work: Work, measured: dict[Work, Speed]) -> float:
    alike = [other for other in measured if other.trains == work.trains] or list(measured)
    nearest = min(alike, key=lambda other: max(work.flops / other.flops, other.flops / work.flops))
    return measured[nearest].seconds * work.flops / nearest.flops
