"""One golden file: inputs and weights as tensors, and the comparison of what a method computes with what is stored.

Every stored output, gradient and buffer must be compared; one that an adapter leaves out counts as a failure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# (absolute, relative to the largest golden entry), from measurements: float64 implementations agree to 2e-14.
TOLERANCE = {torch.float64: (1e-11, 1e-9), torch.float32: (1e-6, 2e-5)}
COMPARED = ("out.", "grad.", "buf_out.")


@dataclass(frozen=True)
class Comparison:
    """How far one stored array and what was computed are apart."""

    key: str
    absolute: float
    relative: float
    ok: bool


@dataclass
class Case:
    """A golden file in one precision, or one step of it.

    Args:
        arrays: What the file holds.
        dtype: Precision of the run.
        step: Prefix of the keys of one step, e.g. ``step0.``.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    dtype: torch.dtype
    step: str = ""
    leaves: dict[str, Tensor] = field(default_factory=dict)
    found: list[Comparison] = field(default_factory=list)

    @property
    def meta(self) -> dict[str, Any]:
        """The file's description."""
        described: dict[str, Any] = json.loads(str(self.arrays["meta"]))
        return described

    def at_step(self, index: int) -> Case:
        """Return one step; what is compared there counts here."""
        return Case(self.arrays, self.dtype, f"step{index}.", dict(self.leaves), self.found)

    def has(self, key: str) -> bool:
        """Return whether the file holds a key."""
        return self.step + key in self.arrays

    def hp(self, name: str) -> float:
        """Return a number among the hyper-parameters."""
        return float(self.arrays[f"hp.{name}"])

    def text(self, name: str) -> str:
        """Return a text among the hyper-parameters."""
        return str(self.arrays[f"hp.{name}"])

    def tensor(self, key: str) -> Tensor:
        """Return a stored array as a constant."""
        array = torch.from_numpy(np.array(self.arrays[self.step + key]))
        return array.to(self.dtype) if array.is_floating_point() else array

    def leaf(self, key: str) -> Tensor:
        """Return a stored array as a leaf that takes a gradient; teachers' (``in.teacher*``) must get none."""
        if key not in self.leaves:
            self.leaves[key] = self.tensor(key).requires_grad_()
        return self.leaves[key]

    def list_of(self, key: str) -> list[Tensor]:
        """Return the leaves ``key.0``, ``key.1``, ..."""
        found: list[Tensor] = []
        while self.has(f"{key}.{len(found)}"):
            found.append(self.leaf(f"{key}.{len(found)}"))
        return found

    def load(self, module: nn.Module, prefix: str, names: Mapping[str, str] | None = None) -> None:
        """Load ``w.<prefix>*`` and ``buf_in.<prefix>*`` into a module; weights become leaves.

        Args:
            module: What takes them; every stored weight must have a place in it.
            prefix: Of the stored keys, e.g. ``connector.0.``, or nothing.
            names: Start of a stored name -> start of its name in the module, where they differ.
        """
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for kind in ("w.", "buf_in."):
            for stored in [key for key in self.arrays if key.startswith(kind + prefix)]:
                name = stored[len(kind + prefix) :]
                for start, replaced in (names or {}).items():
                    if name.startswith(start):
                        name = replaced + name[len(start) :]
                        break
                with torch.no_grad():
                    assert own[name].shape == self.arrays[stored].shape, (stored, name)
                    own[name].copy_(self.tensor(stored))
                if kind == "w.":
                    self.leaves[stored] = own[name]

    def buffers(self, module: nn.Module, prefix: str, names: Mapping[str, str] | None = None) -> None:
        """Compare a module's buffers with ``buf_out.<prefix>*``; arguments as in :meth:`load`."""
        own = dict(module.named_buffers())
        for stored in [key for key in self.arrays if key.startswith("buf_out." + prefix)]:
            name = stored[len("buf_out." + prefix) :]
            for start, replaced in (names or {}).items():
                if name.startswith(start):
                    name = replaced + name[len(start) :]
                    break
            self.compare(stored, own[name])

    def value(self, name: str, computed: Tensor | float) -> None:
        """Compare with ``out.<name>``."""
        self.compare(f"out.{name}", torch.as_tensor(computed, dtype=None))

    def loss(self, term: str, computed: Tensor) -> None:
        """Compare with ``out.loss_<term>``, its gradients with ``grad.<term>.*``; teachers' inputs must get none."""
        self.value(f"loss_{term}", computed)
        stored = [key for key in self.arrays if key.startswith(f"{self.step}grad.{term}.")]
        names = [key.removeprefix(f"{self.step}grad.{term}.") for key in stored]
        if stored and not computed.requires_grad:
            self._failed(f"grad.{term}: no gradient at all")
            return
        for name in names:
            if name not in self.leaves:
                self._failed(f"grad.{term}.{name}: not among the leaves")
        known = [name for name in names if name in self.leaves]
        # What is zero but for rounding (a bias in front of BN) is as exact as the term's other gradients are large.
        scale = max((float(np.abs(self.arrays[key]).max(initial=0.0)) for key in stored), default=0.0)
        constants = [name for name in self.leaves if name.startswith("in.teacher")] if stored else []
        wanted = [self.leaves[name] for name in (*known, *constants)]
        gradients = torch.autograd.grad(computed, wanted, retain_graph=True, allow_unused=True) if wanted else ()
        for name, leaf, gradient in zip((*known, *constants), wanted, gradients, strict=True):
            if name in constants:
                if gradient is not None:
                    self._failed(f"grad.{term}.{name}: the teacher gets a gradient")
            else:
                self.compare(f"grad.{term}.{name}", torch.zeros_like(leaf) if gradient is None else gradient, scale)

    def compare(self, key: str, computed: Tensor, scale: float = 0.0) -> None:
        """Compare with any stored key; errors of entries that are all zero but for rounding are relative to scale."""
        golden = np.asarray(self.arrays[self.step + key])
        mine = computed.detach().cpu().numpy()
        if mine.shape != golden.shape:
            self._failed(f"{key}: shape {mine.shape}, stored {golden.shape}")
            return
        size = float(np.abs(golden.astype(np.float64)).max(initial=0.0))
        size = scale if size <= TOLERANCE[torch.float64][0] else size
        error = float(np.abs(mine.astype(np.float64) - golden.astype(np.float64)).max(initial=0.0))
        absolute, relative = TOLERANCE[self.dtype]
        ok = error <= absolute + relative * size  # NaN fails
        self.found.append(Comparison(self.step + key, error, error / max(size, 1e-300) if size else 0.0, ok))

    def _failed(self, what: str) -> None:
        self.found.append(Comparison(self.step + what, float("nan"), float("nan"), ok=False))

    def missed(self) -> list[str]:
        """Return the stored results that nothing was compared with."""
        done = {comparison.key for comparison in self.found}
        return sorted(
            key
            for key in self.arrays
            if (key if not key.startswith("step") else key.split(".", 1)[1]).startswith(COMPARED) and key not in done
        )


def read(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return what a golden file holds."""
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
