"""Peak memory of the largest networks on a CPU, each case in a process of its own: ``large_networks.py [--case CASE]``.

Cases: ``step`` is one training step of pair r152_mbv2 at 32x32 and batch 128, teachers' passes included; the others
are the name of a backbone, built with random weights and run forward on one image.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from report_lines import Sheet

from kdbench.registry import load
from kdbench.training.environment import Machine
from kdbench.training.networks import TeacherPass, new_network
from kdbench.training.precision import autocast
from kdbench.types import StageShape, Taps

IMAGE = StageShape((3, 32, 32))
BATCH = 128
CASES = {
    "step": f"training step of r152_mbv2, batch {BATCH}",
    "convnext_l": "convnext_l, one image",
    "efficientnet_l2": "efficientnet_l2, one image",
}


def step() -> None:
    """Train one step as a run under bf16 does."""
    registry, device = load(), torch.device("cpu")
    pair = registry.pairs["r152_mbv2"]
    images = torch.rand(BATCH, *IMAGE.dims)
    teachers = [new_network(registry.backbones[name], 100, IMAGE, 0).eval() for name in pair.teachers]
    student = new_network(registry.backbones[pair.student], 100, IMAGE, 0).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    targets = TeacherPass(teachers, [Taps()] * len(teachers), "bf16", device)(images)
    with autocast("bf16", device):
        logits = student(images).logits
    loss = sum((logits.float() - target.logits).square().mean() for target in targets)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    optimizer.step()


def forward(name: str) -> None:
    """Build a backbone and run it on one image."""
    backbone = load().backbones[name]
    network = backbone.build(100, IMAGE).eval()
    with torch.no_grad():
        features = network(torch.rand(1, *IMAGE.dims), Taps("all"))
    found = tuple(StageShape(tuple(stage.shape[1:])) for stage in features.stages)
    assert found == backbone.info(100, IMAGE).stages


def main() -> None:
    """Report every case, or print the peak memory in bytes of this process after one."""
    if sys.argv[1:2] == ["--case"]:
        case = sys.argv[2]
        step() if case == "step" else forward(case)
        print(Machine(torch.device("cpu"), torch.get_num_threads()).peak_memory())
        return
    with Sheet("large_networks", "Peak memory of the largest networks") as sheet:
        for case, name in CASES.items():
            command = [sys.executable, __file__, "--case", case]
            peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            sheet.add(name, peak / 2**30, unit="GiB")


if __name__ == "__main__":
    main()
