"""Checkpoints: whole or absent, found out when damaged, the previous one kept."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import ConfigError, KdbenchError
from kdbench.files import set_aside, sweep_temporary, write_atomic
from kdbench.training.torch_files import check_archive, overlaps, tensors_in

KEEP = 2
SCHEMA = 2  # 2: several optimizers, notes
_NAME = re.compile(r"^p(\d+)-e(\d+)-s(\d+)-([0-9a-f]{16})\.pt$")
State = dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run, newest last; the content's sha256 is part of the file name.

    Args:
        path: Folder; created by the first save.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: State, position: tuple[int, int, int]) -> None:
        """Write a state that stands at (phase, epoch, step), then drop all but the newest two.

        Raises:
            StoreError: If it cannot be written; the older ones are untouched.
        """
        buffer = io.BytesIO()
        torch.save({"schema": SCHEMA, **_written_out(state)}, buffer)
        data = buffer.getvalue()
        phase, epoch, step = position
        digest = hashlib.sha256(data).hexdigest()[:16]
        write_atomic(self.path / f"p{phase:02d}-e{epoch:05d}-s{step:07d}-{digest}.pt", data)
        for old in self._files()[:-KEEP]:
            old.unlink()

    def newest(self) -> State | None:
        """Return the newest sound state, or None; damaged files are renamed to ``*.corrupt``.

        Raises:
            KdbenchError: If a file is what its name says, but not what kdbench writes: somebody made it.
        """
        if self.path.is_dir():
            sweep_temporary(self.path)
        for path in reversed(self._files()):
            state = self._read(path)
            if state is not None:
                return state
            set_aside(path)
        return None

    def damaged(self) -> list[Path]:
        """Return the files that were set aside, by this start of the run or an earlier one."""
        return sorted(self.path.glob("*.corrupt*"))

    def remove(self) -> None:
        """Delete the folder of a finished run; damaged files set aside are kept."""
        for path in self._files():
            path.unlink()
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted(path for path in self.path.iterdir() if _NAME.match(path.name))

    @staticmethod
    def _read(path: Path) -> State | None:
        match = _NAME.match(path.name)
        data = path.read_bytes()
        if match is None or hashlib.sha256(data).hexdigest()[:16] != match[4]:
            return None
        state = _plain_state(data, path)
        if state.get("schema") != SCHEMA:
            raise KdbenchError(
                f"{path}: checkpoint schema {state.get('schema')}, this kdbench reads {SCHEMA}; finish the run with "
                "the version that started it, or remove its folder"
            )
        return state


def _written_out(state: State) -> State:
    """Return a state in which every tensor holds its own values: expanded ones are refused when they are read."""
    if not any(overlaps(tensor) for _, tensor in tensors_in(state)):
        return state

    def written(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: written(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(map(written, tree))
        return tree.contiguous() if isinstance(tree, Tensor) and overlaps(tree) else tree

    return {key: written(value) for key, value in state.items()}


def _plain_state(data: bytes, path: Path) -> State:
    """Return the state in a file whose bytes are those of its name: tensors, numbers and texts, and no code."""
    remedy = "kdbench did not write it; remove it, and the run goes on from an older one or starts anew"
    try:
        check_archive(io.BytesIO(data), path.name)
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except ConfigError as error:
        raise KdbenchError(f"{path.parent / str(error)}; {remedy}") from error
    except Exception as error:  # a foreign pickle can raise anything
        raise KdbenchError(f"{path}: not a checkpoint ({type(error).__name__}); {remedy}") from error
    if not isinstance(state, dict):
        raise KdbenchError(f"{path}: holds a {type(state).__name__}, not a run's state; {remedy}")
    if bad := next((key for key, tensor in tensors_in(state) if tensor.is_meta or overlaps(tensor)), None):
        raise KdbenchError(f"{path}: {bad} claims more than the file holds; {remedy}")
    return state
