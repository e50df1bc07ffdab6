"""Which memory format each family computes faster in: channels-last against the default one, training and teaching.

    python tests/bench/memory_format.py [BACKBONE ...]

Steps of both formats alternate in one process, forward and backward in training and forward alone as a teacher; the
median of the paired ratios counts. Above 1 channels-last is the faster one.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from workbench import CLASSES, CPU, IMAGE, seconds

from kdbench.backbones.base import Backbone, Network
from kdbench.registry import Registry, load
from kdbench.training.precision import autocast

# The smallest sensible member of each family, and of each kind of the libraries' networks.
MEMBERS = (
    "resnet8x4", "resnet20", "resnet20_he", "ResNet50", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2",
    "resnet50_scratch", "mobilenet_v2_scratch", "efficientnet_b0_scratch", "shufflenet_v2_scratch", "convnext_s",
    "timm:resnet18", "timm:efficientnet_b0", "timm:mobilenetv3_small_100", "timm:convnext_atto",
    "timm:vit_tiny_patch16_224", "torchvision:densenet121", "torchvision:mobilenet_v3_small",
)  # fmt: skip
BATCH, ROUNDS = 32, 5
PRECISIONS = ("fp32", "bf16")


def steps_of(backbone: Backbone, precision: str, *, trains: bool) -> list[Callable[[int], None]]:
    """Return one step in the default format and one in channels-last, of equal networks."""
    images, labels = torch.rand(BATCH, *IMAGE.dims), torch.arange(BATCH) % CLASSES

    def step_in(network: Network) -> Callable[[int], None]:
        def train(_index: int) -> None:
            network.zero_grad()
            with autocast(precision, CPU):
                logits = network(images).logits
            F.cross_entropy(logits.float(), labels).backward()

        def teach(_index: int) -> None:
            with torch.no_grad(), autocast(precision, CPU):
                network(images)

        return train if trains else teach

    steps = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        network = backbone.build(CLASSES, IMAGE).train(trains)
        network.place(CPU, channels_last=channels_last)
        steps.append(step_in(network))
    return steps


def gain(backbone: Backbone, precision: str, *, trains: bool) -> float:
    """Return how many times faster channels-last is."""
    plain, last = steps_of(backbone, precision, trains=trains)
    for step in (plain, last):
        seconds(step, 1)
    return statistics.median(seconds(plain, 1) / seconds(last, 1) for _ in range(ROUNDS))


def line(registry: Registry, name: str) -> str:
    """Return a backbone's row of the table."""
    backbone = registry.backbones[name]
    gains = [gain(backbone, precision, trains=trains) for precision in PRECISIONS for trains in (True, False)]
    return f"| {name} | {backbone.family} | " + " | ".join(f"{each:.2f}" for each in gains) + " |"


def main() -> None:
    """Print the table."""
    registry = load()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {IMAGE}; channels-last is so "
          "many times faster")  # fmt: skip
    print(
        "| backbone | family | " + " | ".join(f"{p} {w}" for p in PRECISIONS for w in ("training", "teaching")) + " |"
    )
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:] or MEMBERS:
        print(line(registry, name), flush=True)


if __name__ == "__main__":
    main()
