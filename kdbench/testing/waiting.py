"""What makes the host wait for its device, noticed on a CPU, where nothing has to wait.

A step that reads a tensor, or whose shapes depend on one, lets a GPU run dry. On a CPU the same calls are made and cost
nothing, so they are counted here instead of timed.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that read a value, or whose result has a size that depends on values.
_READING = {
    "_local_scalar_dense": "reads a value (item(), float(), bool(), if tensor: ...)",
    "is_nonzero": "reads a value (if tensor: ...)",
    "equal": "compares on the host (torch.equal)",
    "allclose": "compares on the host (torch.allclose)",
    "nonzero": "has a size that depends on values (nonzero, where with one argument)",
    "masked_select": "has a size that depends on values (masked_select)",
    "bincount": "has a size that depends on values (bincount)",
    "repeat_interleave": "has a size that depends on values (repeat_interleave without output_size)",
    "_unique2": "has a size that depends on values (unique)",
    "unique_dim": "has a size that depends on values (unique)",
    "unique_consecutive": "has a size that depends on values (unique_consecutive)",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_MASKS = (torch.bool, torch.uint8)
# Calls that leave no trace among the operations of a CPU.
_COPYING = {"cpu", "numpy", "tolist", "__array__"}
_MAKING = {"tensor", "as_tensor", "asarray", "from_numpy", "scalar_tensor"}
_HERE = (Path(torch.__file__).parent, Path(__file__))


@dataclass
class Waits:
    """What would have waited for the device: one line each, with the place of the call."""

    found: list[str] = field(default_factory=list)
    watching: bool = True

    def note(self, what: str) -> None:
        """Add one, unless it is allowed at the moment."""
        if self.watching:
            self.found.append(f"{_caller()}: {what}")

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let pass what happens in here: once an epoch or a phase waiting costs nothing."""
        before, self.watching = self.watching, False
        try:
            yield
        finally:
            self.watching = before


def _caller() -> str:
    """Return the file, line and text of the innermost call that is neither torch's nor of this file."""
    frames = [f for f in traceback.extract_stack() if not any(Path(f.filename).is_relative_to(p) for p in _HERE)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}"


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _READING and not (kwargs or {}).get("output_size"):
            self.waits.note(_READING[name])
        elif name in _INDEXING and any(isinstance(i, Tensor) and i.dtype in _MASKS for i in args[1]):
            self.waits.note("has a size that depends on values (indexing by a mask; use where or masked_fill)")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, named = getattr(func, "__name__", ""), kwargs or {}
        if name in _COPYING or (name == "to" and _names_the_host(args[1:], named)):
            self.waits.note(f"copies to the host ({name})")
        elif name in _MAKING and not isinstance(args[0], Tensor) and (named.get("device") or _has_elements(args[0])):
            self.waits.note(f"copies to the device ({name} of Python values; make it before, or use torch.full)")
        elif name in {"__getitem__", "__setitem__"} and _has_a_list(args[1]):
            self.waits.note("copies to the device (indexing by a list; use a slice, or a tensor made before)")
        return func(*args, **named)


def _names_the_host(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    device = named.get("device", args[0] if args else None)
    return isinstance(device, str) and device == "cpu"


def _has_elements(value: Any) -> bool:
    return not isinstance(value, bool | int | float)


def _has_a_list(index: Any) -> bool:
    return any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,)))


class Watch:
    """Counts, while it is entered, what would make the host wait for the device: ``with Watch() as waits: ...``.

    Forward and backward passes, optimizers and everything else in torch are watched, on any device. ``waits.found`` has
    a line for each wait; ``waits.allowed()`` lets some pass.
    """

    def __init__(self) -> None:
        self.waits = Waits()
        self._modes = (_Calls(self.waits), _Operations(self.waits))

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self.waits

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
