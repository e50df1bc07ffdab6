"""Each method's time per step and peak memory next to vanilla KD's, on the same pair, batches and machine.

Steps of a method and of vanilla KD alternate in one process; the median of the paired ratios counts. Peak memory is
how far one step raises the memory of a process of its own. ``python tests/bench/method_cost.py [PAIR [METHOD ...]]``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from report_lines import Sheet
from workbench import network, random_split, seconds, trainer_step

from kdbench.config.loading import load_anchor
from kdbench.errors import Unsupported
from kdbench.registry import load

ROUNDS, STEPS, IMAGES = 3, 1, 50_000


def status(key: str) -> int:
    """Return a figure of this process in bytes, or 0 where the system does not keep it."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


class Bench:
    """One pair under the published protocol."""

    def __init__(self, pair: str) -> None:
        self.registry = load()
        self.pair = self.registry.pairs[pair]
        self.anchor = load_anchor("crd", self.registry.anchors.as_mapping())
        self.split = random_split(IMAGES)
        self.teacher = network(self.registry, self.pair.teachers[0]).eval().requires_grad_(requires_grad=False)

    def step(self, method: str) -> Callable[[int], None]:
        """Return one step of a method."""
        kind = self.registry.methods[method]
        return trainer_step(self.registry, self.anchor, self.pair, self.split, self.teacher, kind)

    def peak(self, method: str) -> int:
        """Return the bytes one step adds to a process of its own: allocators keep what an earlier step has freed."""
        command = [sys.executable, __file__, "--peak", self.pair.name, method]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(pair: str, method: str) -> None:
    step = Bench(pair).step(method)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # forget the peak of making all this
    before = status("VmRSS:")
    step(0)
    print(max(0, status("VmHWM:") - before))


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:])
        return
    bench = Bench(sys.argv[1] if len(sys.argv) > 1 else "res32x4_res8x4")
    methods = bench.registry.methods
    reference = next(m.name for m in methods.values() if m.baseline and m.uses_teacher)
    base = bench.step(reference)
    seconds(base, STEPS)
    about = (
        f"Time of a step next to {reference}'s, and the memory one adds to a process; {bench.pair.name}, batch "
        f"{bench.anchor.data.batch_size}, {bench.anchor.step.precision}, {IMAGES:,} images."
    )
    with Sheet("method_cost", "Cost of methods", about) as sheet:
        sheet.add(reference, bench.peak(reference) / 2**20, subject="memory", unit="MiB")
        for name in sys.argv[2:] or sorted(set(methods) - {reference}):
            try:
                step = bench.step(name)
            except Unsupported as reason:
                print(f"{name}: not measured: {reason}", flush=True)
                continue
            seconds(step, 1)
            ratios = [seconds(step, STEPS) / seconds(base, STEPS) for _ in range(ROUNDS)]
            sheet.add(name, ratios, subject="step")
            sheet.add(name, bench.peak(name) / 2**20, subject="memory", unit="MiB")


if __name__ == "__main__":
    main()
