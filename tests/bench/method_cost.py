"""Each method's time per step and peak memory next to vanilla KD's, on the same pair, batches and machine.

Steps of a method and of vanilla KD alternate in one process; the median of the paired ratios counts. Peak memory is
how far one step raises the process's memory. ``python tests/bench/method_cost.py [PAIR [METHOD ...]]``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from workbench import network, random_split, seconds, trainer_step

from kdbench.config.loading import load_anchor
from kdbench.registry import load

ROUNDS, STEPS, IMAGES = 5, 2, 50_000


def peak_bytes(step: Callable[[int], None]) -> int:
    """Return how far one step raises the process's memory above where it starts (Linux; elsewhere 0)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return 0

    def read(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    clear.write_text("5")  # forget the peak so far
    before = read("VmRSS:")
    step(0)
    return max(0, read("VmHWM:") - before)


def main() -> None:
    registry = load()
    pair = registry.pairs[sys.argv[1] if len(sys.argv) > 1 else "res32x4_res8x4"]
    anchor = load_anchor("crd", registry.anchors.as_mapping())
    split = random_split(IMAGES)
    teacher = network(registry, pair.teachers[0]).eval().requires_grad_(requires_grad=False)
    reference = next(m for m in registry.methods.values() if m.baseline and m.uses_teacher)
    wanted = sys.argv[2:] or [name for name in sorted(registry.methods) if name != reference.name]
    base = trainer_step(registry, anchor, pair, split, teacher, reference)
    seconds(base, STEPS)
    print(
        f"{pair.name}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch {anchor.data.batch_size}, "
        f"{anchor.step.precision}, {IMAGES:,} images; {reference.name}: {1000 * seconds(base, STEPS):.0f} ms, "
        f"{peak_bytes(base) / 2**20:.0f} MiB"
    )
    for name in wanted:
        step = trainer_step(registry, anchor, pair, split, teacher, registry.methods[name])
        try:
            seconds(step, 1)
        except Exception as error:
            print(f"{name:<12} {type(error).__name__}: {error}")
            continue
        ratios = [seconds(step, STEPS) / seconds(base, STEPS) for _ in range(ROUNDS)]
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        print(f"{name:<12} {statistics.median(ratios):.3f} x ({spread}), peak {peak_bytes(step) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
