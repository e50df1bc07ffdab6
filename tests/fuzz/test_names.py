"""Whatever a file at a URL is called: its copy lies in the folder of copies, or there is none and a message why."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import KdbenchError, StoreError
from kdbench.storage.mirror import Mirror
from kdbench.storage.places import Url
from kdbench.storage.shelf import PathShelf
from kdbench.storage.url_shelf import UrlShelf, shelf_at

PARTS = ["", ".", "..", "...", "~", "a", "b", "a\\..\\b", "C:", "a\nb", "\0", "\x1b[2J", "\x85", "\ud800", "\u202e",
         "*", "[a]", "a?", "a" * 300, ".tmp-1-b"]  # fmt: skip
NAMES = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=5).map("/".join)
_numbers = itertools.count()


@given(name=NAMES)
def test_a_name_is_one_of_a_file_in_the_folder_or_refused(name: str) -> None:
    mirror, refusal = Mirror(PathShelf(Path("there")), Path("/copies/of/it")), ""
    try:
        path = mirror.path_of(name)
    except StoreError as error:
        refusal = str(error)
    if refusal:
        assert repr(name) in refusal
        return
    assert os.path.normpath(path) == str(path)
    assert mirror.root in path.parents
    assert mirror.place_of(path) == name


@pytest.mark.timeout(600)
@given(listings=st.lists(st.lists(NAMES, max_size=4), min_size=1, max_size=3))
def test_what_is_listed_is_copied_or_refused(
    listings: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Some names and then others, of which one may be a folder of another's."""
    around = tmp_path_factory.mktemp("around")
    shelf = shelf_at(Url(f"memory://fuzz/{next(_numbers)}"))
    assert isinstance(shelf, UrlShelf)
    mirror = Mirror(shelf, around.joinpath(*"abcdef"))
    for names in listings:
        keys = [f"{shelf.base}/{name}" for name in names]
        with pytest.MonkeyPatch.context() as patch:
            for key in keys:
                patch.setitem(shelf.files.store, key, MemoryFile(shelf.files, key, b"1"))
            # As a bucket lists it, to the letter; older releases of fsspec go from folder to folder here.
            patch.setattr(
                shelf.files, "find", lambda _base, detail, keys=keys: {key: {"detail": detail} for key in keys}
            )
            with contextlib.suppress(KdbenchError):
                assert mirror.refresh(lambda _name: True) == sorted(set(names))
                assert all(mirror.path_of(name).read_bytes() == b"1" for name in names)
        assert all(mirror.root in path.parents for path in around.rglob("*") if path.is_file())
