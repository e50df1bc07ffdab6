"""Checkpoints: whole or absent, found out when damaged, the previous one kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import KdbenchError, StoreError
from kdbench.files import cannot_write, set_aside, sweep_temporary, unreadable, write_atomic
from kdbench.training.safe_load import fault_of, load_tensors, overlaps, tensors_in

KEEP = 2
SCHEMA = 2  # 2: several optimizers, notes
_NAME = re.compile(r"^p(\d+)-e(\d+)-s(\d+)-([0-9a-f]{16})\.pt$")
_REMEDY = "finish the run with the version that started it, or remove its folder"
State = dict[str, Any]
_log = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of one run, newest last; the content's sha256 is part of the file name.

    Args:
        path: Folder; created by the first save.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: State, position: tuple[int, int, int]) -> None:
        """Write a state that stands at (phase, epoch, step), then drop all up to there but the newest two.

        Later ones are none of this start: it could not read them, and one that goes back to them may be able to.

        Raises:
            StoreError: If it cannot be written, and the older ones are untouched; or if an older one cannot be removed.
        """
        buffer = io.BytesIO()
        torch.save({"schema": SCHEMA, **_written_out(state)}, buffer)
        data = buffer.getvalue()
        phase, epoch, step = position
        digest = hashlib.sha256(data).hexdigest()[:16]
        saved = self.path / f"p{phase:02d}-e{epoch:05d}-s{step:07d}-{digest}.pt"
        write_atomic(saved, data)
        for old in [path for path in self._files() if path.name <= saved.name][:-KEEP]:
            with cannot_write(old):
                old.unlink(missing_ok=True)

    def newest(self) -> State | None:
        """Return the newest sound state, or None; damaged files are renamed to ``*.corrupt``.

        A file that the system does not let read, or rename, keeps its name, with a warning: it need not be damaged, and
        a later start may find it whole.

        Raises:
            KdbenchError: If a file is what its name says, but not what kdbench writes: somebody made it.
            StoreError: If the folder cannot be listed.
        """
        with contextlib.suppress(OSError):  # what cannot be removed is in nobody's way
            sweep_temporary(self.path)
        for path in reversed(self._files()):
            try:
                if (state := self._read(path)) is not None:
                    return state
                set_aside(path)
            except OSError as error:
                said = error.strerror or error
                _log.warning("%s: cannot be read or set aside (%s); the checkpoint before it is used", path, said)
        return None

    def damaged(self) -> list[Path]:
        """Return the files that were set aside, by this start of the run or an earlier one."""
        return sorted(self.path.glob("*.corrupt*"))

    def remove(self) -> None:
        """Delete the folder of a finished run; damaged files set aside are kept, and with a warning what has to be."""
        try:
            for path in self._files():
                path.unlink(missing_ok=True)
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()
        except (OSError, StoreError) as error:  # the result stands without
            said = getattr(error, "strerror", None) or error
            _log.warning("%s: checkpoints that nobody needs cannot be removed (%s); remove the folder", self.path, said)

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.path.iterdir() if _NAME.match(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(self.path, error) from error

    @staticmethod
    def _read(path: Path) -> State | None:
        match = _NAME.match(path.name)
        data = path.read_bytes()
        if match is None or hashlib.sha256(data).hexdigest()[:16] != match[4]:
            return None
        return _state(path, data)


def _written_out(state: State) -> State:
    """Return a state in which every tensor holds its own values: expanded ones are refused when they are read."""
    if not any(map(overlaps, tensors_in(state))):
        return state

    def written(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: written(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(map(written, tree))
        return tree.contiguous() if isinstance(tree, Tensor) and overlaps(tree) else tree

    return {key: written(value) for key, value in state.items()}


def _state(path: Path, data: bytes) -> State:
    """Return what a whole file says.

    Raises:
        KdbenchError: If it is foreign, made to harm, or of another version: it is not damaged, so nobody may guess.
    """
    try:
        state = load_tensors(io.BytesIO(data))
    except Exception as error:  # a foreign pickle can raise anything
        detail = " ".join(str(error).split())[:200]
        raise KdbenchError(
            f"{path}: not a checkpoint of kdbench ({type(error).__name__}: {detail}); {_REMEDY}"
        ) from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        found = state.get("schema") if isinstance(state, dict) else type(state).__name__
        raise KdbenchError(f"{path}: checkpoint schema {found}, this kdbench reads {SCHEMA}; {_REMEDY}")
    if fault := next(filter(None, map(fault_of, tensors_in(state))), ""):
        raise KdbenchError(f"{path}: not a checkpoint of kdbench (a tensor is {fault}); {_REMEDY}")
    return state
