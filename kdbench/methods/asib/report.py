"""What an epoch's report says of gate, target and trained tensors, besides the means over its batches (4.4, 8)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from kdbench.backbones.freezing import count
from kdbench.methods.asib.gate import gate_in_b
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.targets import OF_SYNERGY

Report = dict[str, float | str]


def gate_report(options: ASIBOptions, last: float | None, teachers: int) -> Report:
    """Return the synergy's accuracy, once it was measured, and whether it opens the B-Step's gate.

    Args:
        options: The method's options.
        last: Moving average of the synergy's accuracy, a share; None = never measured.
        teachers: Number of teachers.
    """
    known: Report = {} if last is None else {"last_synergy_acc": last, "last_synergy_acc_pct": 100 * last}
    return {**known, "kd_gate_on": float(gate_in_b(options, last, teachers))}


def target_mode(options: ASIBOptions, last: float | None, teachers: int, means: Mapping[str, float]) -> str:
    """Return the target that most samples of a B-Step epoch had.

    Args:
        options: The method's options.
        last: Moving average of the synergy's accuracy; None = never measured.
        teachers: Number of teachers.
        means: The epoch's means, ``auto_syn_win_ratio`` among them where there was a choice.
    """
    how = options.kd_target
    if how not in OF_SYNERGY:
        return how
    if not gate_in_b(options, last, teachers):
        return "avg" if how == "synergy" else "weighted_conf"
    return "synergy" if how == "synergy" or means["auto_syn_win_ratio"] >= 0.5 else "avg"


def trained_report(bridge: nn.Module | None, head: nn.Module | None, teachers: nn.ModuleList | None) -> Report:
    """Return how many tensors of each part an A-Step trains; shared teachers, which nobody trains, are left out.

    Args:
        bridge: The bridge.
        head: The synergy head.
        teachers: Copies of the teachers that are fine-tuned, or None.
    """
    parts = {"ib_mbm": bridge, "synergy_head": head}
    parts |= {f"teacher{place}": network for place, network in enumerate(teachers or (), 1)}
    return {f"{name}_trainable": str(count(part)) for name, part in parts.items() if part is not None}
