"""A folder at a URL, by fsspec: object stores write a file whole or not at all, and can refuse to replace one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from kdbench.errors import ConfigError, StoreError
from kdbench.storage.places import Url
from kdbench.storage.shelf import PathShelf, Shelf

_PATTERN = re.compile(r"[*?[]")  # fsspec takes a name with one of these for a pattern where it reads several


def shelf_at(url: Url) -> Shelf:
    """Return the folder at a URL.

    Raises:
        ConfigError: If no installed package can reach it.
    """
    import fsspec

    try:
        # Other processes change what is there: no listing may be remembered.
        files, base = fsspec.url_to_fs(url.text, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(f"{url}: needs a package that is not installed ({error}); install it, e.g. by pip") from error
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in ("file", "s3", "gs", "memory"))
        raise ConfigError(
            f"{url}: not a place that can be reached ({error}); give a folder, or one of {known}"
        ) from error
    if isinstance(files, fsspec.get_filesystem_class("file")):
        return PathShelf(Path(base))  # fsspec's own would write in place, and look before it creates
    return UrlShelf(files, base, url.text)


class UrlShelf:
    """A folder in a file system of fsspec.

    Args:
        files: The file system.
        base: The folder, as the file system names it.
        label: Its URL.
    """

    def __init__(self, files: Any, base: str, label: str) -> None:
        self.files, self.base, self.label = files, base, label

    def at(self, folder: str) -> UrlShelf:
        """See :class:`Shelf`."""
        if folder == ".":
            return self  # a key has its dots to the letter
        return UrlShelf(self.files, f"{self.base}/{folder}", f"{self.label}/{folder}")

    def names(self) -> list[str]:
        """See :class:`Shelf`."""
        with self._reaching("listed"), contextlib.suppress(FileNotFoundError):
            return sorted(PurePosixPath(path).name for path in self.files.ls(self.base, detail=False))
        return []

    def find(self) -> dict[str, str]:
        """See :class:`Shelf`."""
        with self._reaching("listed"), contextlib.suppress(FileNotFoundError):
            found = self.files.find(self.base, detail=True)
            start = len(self.files._strip_protocol(self.base)) + 1
            return {
                path[start:]: repr(sorted((key, str(info[key])) for key in info))
                for path, info in found.items()
                if not (path.endswith("/") and info.get("size") == 0)  # so consoles of object stores keep empty folders
            }
        return {}

    def read(self, name: str) -> bytes | None:
        """See :class:`Shelf`."""
        with self._reaching("read", name), contextlib.suppress(FileNotFoundError):
            data: bytes = self.files.cat_file(f"{self.base}/{name}")
            return data
        return None

    def read_all(self, names: list[str]) -> dict[str, bytes]:
        """See :class:`Shelf`."""
        paths = {self.files._strip_protocol(f"{self.base}/{name}"): name for name in names}
        alone = {path: name for path, name in paths.items() if _PATTERN.search(path)}
        read = {name: data for name in alone.values() if (data := self.read(name)) is not None}
        if len(alone) == len(paths):
            return read
        with self._reaching("read"), contextlib.suppress(FileNotFoundError):
            found = self.files.cat([path for path in paths if path not in alone], on_error="return")
            for data in found.values():
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
            read |= {paths[path]: data for path, data in found.items() if isinstance(data, bytes)}
        return read

    def write(self, name: str, data: bytes) -> None:
        """See :class:`Shelf`."""
        with self._reaching("written", name):
            self.files.pipe_file(f"{self.base}/{name}", data)

    def create(self, name: str, data: bytes) -> bool:
        """See :class:`Shelf`."""
        with self._reaching("written", name), contextlib.suppress(FileExistsError):
            self.files.pipe_file(f"{self.base}/{name}", data, mode="create")
            return True
        return False

    def remove(self, name: str) -> None:
        """See :class:`Shelf`."""
        with self._reaching("removed", name), contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.base}/{name}")

    @contextlib.contextmanager
    def _reaching(self, how: str, name: str = "") -> Iterator[None]:
        """Turn whatever a file system raises into one message; each has errors of its own."""
        try:
            yield
        except Exception as error:
            path = f"{self.label}/{name}" if name else self.label
            missing = isinstance(error, FileNotFoundError)  # a key needs no folder, so it is the bucket
            remedy = "make its bucket, or name another place" if missing else "see that it is there"
            raise StoreError(
                f"{path}: cannot be {how} ({type(error).__name__}: {error}); {remedy}, and start again"
            ) from error
