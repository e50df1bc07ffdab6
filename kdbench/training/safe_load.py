"""Loading tensors that torch saved, from files that anybody may have made: no code is run, no size believed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Refused(Exception):
    """A file that may be whole but is not to be loaded; the text says why."""


def load_tensors(source: Path | io.BytesIO) -> Any:
    """Return what a file of torch holds, on the CPU; the caller allows more types than tensors, if any.

    Raises:
        Refused: If its entries are compressed, overlap or have wrong checksums.
        Exception: Whatever torch raises on a damaged pickle, or one that names more than tensors.
    """
    _check_archive(source)
    if isinstance(source, io.BytesIO):
        source.seek(0)
    return torch.load(source, map_location="cpu", weights_only=True)


def fault_of(tensor: Tensor) -> str:
    """Return what makes a loaded tensor unusable, or an empty string.

    A few stored bytes can claim to be a tensor of any size by a stride of zero; a meta tensor has none at all.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return "not a plain dense tensor"
    if overlaps(tensor):
        return f"claims {tuple(tensor.shape)}, more than the file holds"
    return ""


def overlaps(tensor: Tensor) -> bool:
    """Return whether a strided tensor has more elements than are stored: a stride of zero shows one many times."""
    if tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def tensors_in(tree: object) -> Iterator[Tensor]:
    """Yield every tensor of nested mappings and sequences, each container once: a pickle may hold itself."""
    seen: set[int] = set()
    todo = [tree]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            todo += item.values() if isinstance(item, Mapping) else item


def _check_archive(source: Path | io.BytesIO) -> None:
    """Refuse what torch does not look at: entries that unpack to more than the file holds, and wrong checksums.

    Compressed ones expand without limit, and a directory may name the same bytes thousands of times.
    """
    if not zipfile.is_zipfile(source):
        return
    size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else source.stat().st_size
    with zipfile.ZipFile(source) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise Refused("a checkpoint with compressed entries is not one torch wrote; refused")
        if (claimed := sum(item.file_size for item in archive.infolist())) > size:
            raise Refused(
                f"its entries claim {claimed:,} bytes, more than the {size:,} of the file, so some overlap, as in no "
                "checkpoint torch wrote; refused"
            )
        if bad := archive.testzip():
            raise Refused(f"damaged: checksum of {bad} is wrong; get the file again")
