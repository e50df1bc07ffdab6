"""What torch does not look at when it reads a file of tensors: how large it may become, and how it is checked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from kdbench.errors import ConfigError


def check_archive(file: Path | IO[bytes], where: str) -> None:
    """Refuse compressed entries, which expand without limit, and wrong checksums.

    Args:
        file: What ``torch.save`` wrote, or claims to be that; one of its older format is let through.
        where: For the message.

    Raises:
        ConfigError: If it is not what torch writes, or damaged.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ConfigError(f"{where}: a checkpoint with compressed entries is not one torch wrote; refused")
        if bad := archive.testzip():
            raise ConfigError(f"{where}: damaged: checksum of {bad} is wrong; get the file again")


def overlaps(tensor: Tensor) -> bool:
    """Return whether a strided tensor has more elements than are stored: a stride of zero shows one many times."""
    if tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, unquantised, and has values."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def tensors_in(tree: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of nested dicts, lists and tuples with its path, such as ``optimizers/0/state``."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors_in(value, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from tensors_in(value, f"{path}/{index}")
