"""Published weights that lie on this machine already: what can be known of their files is checked before one is read.

The libraries compare a file with its hash while they download it, if at all, and trust it ever after.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch

from kdbench.errors import ConfigError

# NAME-HASH.pth, as torch.hub wants it; shorter ones are parts of names ("-300e.pth").
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
_BLOB = re.compile(r"[0-9a-f]{64}")
_FORCED, _LENIENT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def hash_in(name: str) -> str:
    """Return the digits of its sha256 that a file's name or URL ends with; empty = none."""
    found = _HASH.search(_name(name))
    return found[1] if found else ""


def check_hub_checkpoint(url: str) -> None:
    """Check the file that torch.hub keeps of a URL, if it does, against the hash in its name, if there is one.

    Raises:
        ConfigError: If it is another file, or cannot be read.
    """
    _check(Path(torch.hub.get_dir()) / "checkpoints" / _name(url), hash_in(url))


def check_hugging_face(repository: str, names: Sequence[str]) -> None:
    """Check files in Hugging Face's cache, those of some names that are there, against the hashes they are kept under.

    There each large file is a link to one named by its sha256. Where links are not to be had there is nothing to check.

    Args:
        repository: ``OWNER/NAME``, with or without ``@REVISION``.
        names: Names of files in it.

    Raises:
        ConfigError: If one is another file, or cannot be read.
    """
    from huggingface_hub import try_to_load_from_cache

    owner_and_name, _, revision = repository.partition("@")
    for name in names:
        found = try_to_load_from_cache(owner_and_name, name, revision=revision or None)
        if isinstance(found, str):
            kept = Path(found).resolve()
            _check(kept, kept.name if _BLOB.fullmatch(kept.name) else "")


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let torch.load run no code from files, whoever calls it: timm, after some errors, tries without that limit."""
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _LENIENT)}
    os.environ[_FORCED] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says; torch adds pages of advice."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _name(url: str) -> str:
    return urlparse(url).path.rpartition("/")[2]


def _check(path: Path, expected: str) -> None:
    """Raise ConfigError if there is a file whose sha256 does not begin as expected; empty = anything will do."""
    if not expected:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(
            f"{path}: published weights that cannot be read ({error.strerror}); make them readable, or remove the file "
            "and run again with a network"
        ) from error
    if not found.startswith(expected):
        raise ConfigError(
            f"{path}: not the published weights, or damaged: its sha256 is {found[:12]}.., by its name it begins with "
            f"{expected[:12]}; remove it and run again with a network, or put the published file there"
        )
