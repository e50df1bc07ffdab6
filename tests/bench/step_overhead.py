"""The trainer's own cost per step: kdbench against a bare PyTorch loop that does the same arithmetic.

Both train the same student from the same teacher with vanilla KD on the same random images, interleaved in one process;
the median of the paired ratios is what counts. Run with ``make bench``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from report_lines import Sheet
from torch import Tensor, nn
from workbench import interleaved, network, random_split, ratios, trainer_step

from kdbench.backbones.base import Network
from kdbench.config.loading import load_anchor
from kdbench.config.schema import Anchor
from kdbench.datasets.base import Split
from kdbench.registry import Registry, load
from kdbench.types import Pair

PAIRS = ("res20_res8", "res32x4_res8x4")
TARGET = 1.03
ROUNDS, STEPS = 7, 4


def bare(registry: Registry, anchor: Anchor, pair: Pair, split: Split, teacher: Network) -> Callable[[int], None]:
    """Return one step of a loop that anybody would write, with the same augmentation, loss and optimizer."""
    student = network(registry, pair.student).train()
    config, loss = anchor.optimizer, anchor.loss
    optimizer = torch.optim.SGD(
        student.parameters(), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov,
        weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip
    padded = F.pad(split.images.half(), (4,) * 4, mode="reflect").to(torch.uint8)
    order, grid = torch.randperm(len(split)), torch.arange(32)

    def batch(index: int) -> tuple[Tensor, Tensor, Tensor, float]:
        at = order[index * 128 : (index + 1) * 128]
        offset = torch.randint(9, (2, 128))
        columns = torch.where(torch.randint(2, (128, 1)).bool(), grid.flip(0), grid) + offset[1, :, None]
        rows = grid + offset[0, :, None]
        window = padded[at[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        images = window.permute(0, 3, 1, 2).float().div_(255)
        partners = torch.randperm(128)
        images[:, :, 8:24, 8:24] = images[partners][:, :, 8:24, 8:24]
        return images, split.labels[at], split.labels[at][partners], 0.75

    def step(index: int) -> None:
        images, labels, others, share = batch(index)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            target = teacher(images).logits.float()
        with torch.autocast("cpu", torch.bfloat16):
            logits = student(images).logits
        logits = logits.float()
        smooth, tau = loss.ce_label_smoothing, loss.tau
        ce = share * F.cross_entropy(logits, labels, label_smoothing=smooth)
        ce = ce + (1 - share) * F.cross_entropy(logits, others, label_smoothing=smooth)
        kd = F.kl_div(
            (logits / tau).log_softmax(1), (target / tau).log_softmax(1), reduction="batchmean", log_target=True
        )
        optimizer.zero_grad()
        (loss.ce_alpha * ce + loss.kd_alpha * tau**2 * kd).backward()
        nn.utils.clip_grad_norm_(student.parameters(), anchor.step.grad_clip_norm)
        optimizer.step()

    return step


def main() -> None:
    registry = load()
    anchor = load_anchor("fair_baseline", registry.anchors.as_mapping())
    split = random_split(2560)
    method = next(m for m in registry.methods.values() if m.baseline and m.uses_teacher)
    about = f"A step of a run next to one of a bare loop of the same arithmetic; batch 128, {anchor.step.precision}."
    with Sheet("step_overhead", "Step overhead", about) as sheet:
        for name in PAIRS:
            pair = registry.pairs[name]
            teacher = network(registry, pair.teachers[0]).eval().requires_grad_(requires_grad=False)
            contenders = {
                "trainer": (trainer_step(registry, anchor, pair, split, teacher, method), STEPS),
                "bare": (bare(registry, anchor, pair, split, teacher), STEPS),
            }
            times = interleaved(contenders, ROUNDS)
            for contender, found in times.items():
                sheet.add(f"{contender} step", [1000 * value for value in found], subject=name, unit="ms")
            sheet.add("trainer against a bare loop", ratios(times, "trainer", "bare"), subject=name, at_most=TARGET)


if __name__ == "__main__":
    main()
