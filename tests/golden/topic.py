"""One golden file of a topic: variants with JSON hyper-parameters, plain JSON cases, and the comparison with both.

Every stored output, gradient and JSON result must be compared; one that an adapter leaves out counts as a failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from case import Comparison
from torch import Tensor, nn

TOPIC_TOLERANCE = {torch.float64: (1e-10, 1e-9), torch.float32: (1e-5, 1e-4)}  # (absolute, relative to the largest)
COMPARED = re.compile(r"(v\d+\.)?(out|grad)\.")
# What else a file may hold: descriptions, inputs, weights. Any other key is JSON, all of which must be compared.
GIVEN = re.compile(r"(v\d+\.)?(in|w)\.|(v\d+\.)?hp|meta")


@dataclass(frozen=True)
class Topic:
    """A golden file in one precision, or one variant of it.

    Args:
        arrays: What the file holds.
        dtype: Precision of the run.
        variant: Prefix of the keys of one variant, e.g. ``v0.``.
        found: What was compared, of all variants.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    dtype: torch.dtype
    variant: str = ""
    found: list[Comparison] = field(default_factory=list)

    def variants(self) -> list[Topic]:
        """Return the variants in order."""
        numbers = {int(match[1]) for key in self.arrays if (match := re.match(r"v(\d+)\.", key))}
        return [replace(self, variant=f"v{number}.") for number in sorted(numbers)]

    def json(self, key: str) -> Any:
        """Return a stored JSON value."""
        return json.loads(str(self.arrays[self.variant + key]))

    @property
    def hp(self) -> dict[str, Any]:
        """Hyper-parameters of the variant; a missing one has its default."""
        given: dict[str, Any] = self.json("hp")
        return given

    def has(self, key: str) -> bool:
        """Return whether the variant holds a key."""
        return self.variant + key in self.arrays

    def tensor(self, key: str) -> Tensor:
        """Return an input or weight, the variant's own before the file's, as a constant."""
        stored = self.variant + key if self.has(key) else key
        tensor = torch.from_numpy(np.array(self.arrays[stored]))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def leaf(self, key: str) -> Tensor:
        """Return an input that takes a gradient."""
        return self.tensor(key).requires_grad_()

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the weights ``w.<prefix>*`` of variant and file under what follows the prefix."""
        names: dict[str, Tensor] = {}
        for start in dict.fromkeys(("w." + prefix, f"{self.variant}w.{prefix}")):
            for key in self.arrays:
                if key.startswith(start):
                    names[key.removeprefix(start)] = self.tensor(f"w.{prefix}{key.removeprefix(start)}")
        return names

    def load(self, module: nn.Module, prefix: str, names: set[str]) -> dict[str, Tensor]:
        """Load weights into a module, every one of both, and return its parameters under the stored names."""
        stored = self.weights(prefix)
        module.load_state_dict({name: stored[name] for name in names}, strict=True)
        return {prefix + name: parameter for name, parameter in module.named_parameters()}

    def out(self, name: str, computed: Tensor | float | bool) -> None:
        """Compare with ``out.<name>``; where the variant has none, so must the computation: do not call it then."""
        self._compare(f"out.{name}", torch.as_tensor(computed))

    def text(self, name: str, computed: str) -> None:
        """Compare a text with ``out.<name>``."""
        stored = str(self.arrays[f"{self.variant}out.{name}"])
        self.equal(f"{self.variant}out.{name}", computed, stored)

    def grads(self, term: str, computed: Tensor, leaves: Mapping[str, Tensor]) -> None:
        """Compare the gradients of a scalar with ``grad.<term>.*``; a leaf out of its graph has gradient 0."""
        start = f"{self.variant}grad.{term}."
        names = [key.removeprefix(start) for key in self.arrays if key.startswith(start)]
        wanted = [leaves[name] for name in names]
        gradients: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if computed.requires_grad:
            gradients = torch.autograd.grad(computed, wanted, retain_graph=True, allow_unused=True)
        for name, leaf, gradient in zip(names, wanted, gradients, strict=True):
            self._compare(f"grad.{term}.{name}", torch.zeros_like(leaf) if gradient is None else gradient)

    def _compare(self, key: str, computed: Tensor) -> None:
        golden = np.asarray(self.arrays[self.variant + key])
        self._arrays(self.variant + key, computed.detach().cpu().numpy(), golden)

    def _arrays(self, key: str, mine: npt.NDArray[Any], golden: npt.NDArray[Any]) -> None:
        if mine.shape != golden.shape:
            self.found.append(Comparison(f"{key}: {mine.shape}, stored {golden.shape}", np.nan, np.nan, ok=False))
            return
        size = float(np.abs(golden.astype(np.float64)).max(initial=0.0))
        error = float(np.abs(mine.astype(np.float64) - golden.astype(np.float64)).max(initial=0.0))
        absolute, relative = TOPIC_TOLERANCE[self.dtype]
        ok = error <= absolute + relative * size  # NaN fails
        self.found.append(Comparison(key, error, error / size if size else 0.0, ok))

    def number(self, key: str, computed: Any, stored: Any) -> None:
        """Compare a number or a list of numbers of a JSON value."""
        self._arrays(key, np.asarray(computed, dtype=np.float64), np.asarray(stored, dtype=np.float64))

    def equal(self, key: str, computed: object, stored: object) -> None:
        """Compare a JSON value exactly; 1 and true differ, as they do in its text."""
        same = json.dumps(computed, sort_keys=True) == json.dumps(stored, sort_keys=True)
        self.found.append(Comparison(key, 0.0 if same else np.inf, 0.0, same))

    def missed(self) -> list[str]:
        """Return the stored results that nothing was compared with; of JSON, those whose key is in none compared."""
        done = {comparison.key for comparison in self.found}
        missed = [key for key in self.arrays if COMPARED.match(key) and key not in done]
        for key in self.arrays:
            if COMPARED.match(key) or GIVEN.match(key):
                continue
            missed += [name for name in results(json.loads(str(self.arrays[key])), key) if name not in done]
        return sorted(missed)


# Of a JSON case, all that is no result: what it is computed from, and for reference what the original did wrong.
ARGUMENTS = {
    *("kind", "fn", "cfg", "runtime", "epochs", "E_stage", "E_total", "T_A", "in_warmup", "L", "ce", "kd", "ep"),
    *("kd_max_ratio", "kd_warmup_epochs", "H", "W", "lam", "cx", "cy", "original_linear", "synergy_ema_alpha"),
    *("measured_pct", "last", "thr", "pct", "seed"),
}


def results(stored: object, key: str) -> list[str]:
    """Return the keys under which the results in a JSON value are compared: ``key[0].out`` or ``key.sha256``."""
    if isinstance(stored, list):
        return [name for index, item in enumerate(stored) for name in results(item, f"{key}[{index}]")]
    assert isinstance(stored, dict), key
    return [f"{key}.{name}" for name in stored if name not in ARGUMENTS]
