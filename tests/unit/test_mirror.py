"""Folders at URLs: what changed goes there, what is there comes here, and who cannot be reached is named."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.errors import ConfigError, StoreError
from kdbench.storage import places
from kdbench.storage.mirror import Mirror, local_copy, own_mirror
from kdbench.storage.owner import namespace
from kdbench.storage.places import SCRATCH_VARIABLE, Url, scratch, where
from kdbench.storage.shelf import PathShelf, Shelf
from kdbench.storage.url_shelf import UrlShelf, shelf_at

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))


@pytest.fixture(params=["memory", "file"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    number = next(_numbers)
    url = f"memory://mirror/{number}" if request.param == "memory" else f"file://{tmp_path}/there"
    return shelf_at(Url(url))


@pytest.fixture
def mirror(shelf: Shelf, tmp_path: Path) -> Mirror:
    return Mirror(shelf, tmp_path / "here")


def contents(shelf: Shelf) -> dict[str, bytes | None]:
    return {name: shelf.read(name) for name in shelf.find()}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_shelf(shelf: Shelf) -> None:
    assert (shelf.names(), shelf.find(), shelf.read("a")) == ([], {}, None)
    shelf.write("a", b"1")
    shelf.write("a", b"22")
    assert shelf.create("b/c", b"3")
    assert not shelf.create("b/c", b"4")
    assert contents(shelf) == {"a": b"22", "b/c": b"3"}
    assert (shelf.names(), shelf.at("b").names()) == (["a", "b"], ["c"])
    assert shelf.read_all(["a", "b/c", "d"]) == {"a": b"22", "b/c": b"3"}
    assert shelf.at("b").read_all(["c"]) == {"c": b"3"}
    before = shelf.find()
    shelf.write("a", b"33")
    after = shelf.find()
    assert before["a"] != after["a"]
    assert before["b/c"] == after["b/c"]
    shelf.remove("a")
    shelf.remove("a")
    assert list(shelf.find()) == ["b/c"]


def test_push_sends_changes_and_removals_of_its_folder(
    mirror: Mirror, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run/spec", "run/checkpoint/1", "other/spec"):
        put(mirror.root / name, name)
    put(mirror.root / "run" / ".tmp-1-record", "half")
    mirror.push("run")
    assert sorted(shelf.find()) == ["run/checkpoint/1", "run/spec"]
    sent: list[str] = []
    write = type(shelf).write
    monkeypatch.setattr(type(shelf), "write", lambda self, name, data: (sent.append(name), write(self, name, data)))
    put(mirror.root / "run" / "checkpoint" / "2", "two")
    (mirror.root / "run" / "checkpoint" / "1").unlink()
    (mirror.root / "run" / "spec").unlink()  # as a sweeper of old temporary files does
    mirror.push("run", keep=("spec",))
    assert sent == ["run/checkpoint/2"]
    assert sorted(shelf.find()) == ["run/checkpoint/2", "run/spec"]


def test_pull_brings_what_is_there_and_removes_what_is_not(mirror: Mirror, shelf: Shelf) -> None:
    shelf.write("run/a", b"1")
    put(mirror.root / "run" / "b", "old")
    mirror.pull("run/a", "run/b")
    assert {path.name: path.read_bytes() for path in (mirror.root / "run").iterdir()} == {"a": b"1"}
    mirror.push("run")
    assert contents(shelf) == {"run/a": b"1"}


def test_a_folder_comes_whole_and_goes(mirror: Mirror, shelf: Shelf) -> None:
    for name in ("run/a", "run/checkpoint/1", "run/lease", "other/a"):
        shelf.write(name, name.encode())
    put(mirror.root / "run" / "left", "of an earlier claim")
    mirror.pull_folder("run", lambda name: name != "lease")
    here = [path.relative_to(mirror.root).as_posix() for path in mirror.root.rglob("*") if path.is_file()]
    assert sorted(here) == ["run/a", "run/checkpoint/1"]
    mirror.forget("run")
    mirror.push("run")  # what is forgotten here stays there
    assert sorted(shelf.find()) == ["other/a", "run/a", "run/checkpoint/1", "run/lease"]


def test_refresh_reads_only_what_changed(mirror: Mirror, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c.pt"):
        shelf.write(name, name.encode())
    read: list[list[str]] = []
    read_all = type(shelf).read_all
    monkeypatch.setattr(type(shelf), "read_all", lambda self, names: (read.append(names), read_all(self, names))[1])
    for _ in range(2):
        assert mirror.refresh(lambda name: not name.endswith(".pt")) == ["a", "b"]
    shelf.write("b", b"changed")
    shelf.remove("a")
    assert mirror.refresh(lambda name: not name.endswith(".pt")) == ["b"]
    assert read == [["a", "b"], [], ["a", "b"]]
    assert [path.read_bytes() for path in mirror.root.iterdir()] == [b"changed"]


def test_places() -> None:
    assert where("runs") == Path("runs")
    assert where("/a/b/") == Path("/a/b")
    assert where("s3://bucket/runs/") == Url("s3://bucket/runs")
    assert str(where("s3://bucket/runs/")) == "s3://bucket/runs"
    assert local_copy(Path("runs")) == Path("runs")


def test_a_file_url_is_written_as_any_folder_is(tmp_path: Path) -> None:
    shelf = shelf_at(Url(f"file://{tmp_path}/runs"))
    assert isinstance(shelf, PathShelf)
    assert shelf.folder == tmp_path / "runs"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "nonsense://x",
            r"nonsense://x: not a place that can be reached \(Protocol not known: nonsense\); give a folder, or",
        ),
        ("lakefs://x", r"lakefs://x: needs a package that is not installed \(.*lakefs.*\); install it, e.g. by pip"),
    ],
)
def test_what_cannot_be_reached_is_said_at_once(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        shelf_at(Url(url))


class Broken:
    """A file system that fails in its own way."""

    def _strip_protocol(self, path: str) -> str:
        return path

    def __getattr__(self, name: str) -> object:
        def fail(*_arguments: object, **_options: object) -> object:
            raise RuntimeError("endpoint is away")

        return fail


@pytest.mark.parametrize(
    ("use", "how"),
    [
        (lambda shelf: shelf.names(), "s3://b/run: cannot be listed"),
        (lambda shelf: shelf.find(), "s3://b/run: cannot be listed"),
        (lambda shelf: shelf.read("a"), "s3://b/run/a: cannot be read"),
        (lambda shelf: shelf.read_all(["a"]), "s3://b/run: cannot be read"),
        (lambda shelf: shelf.write("a", b""), "s3://b/run/a: cannot be written"),
        (lambda shelf: shelf.create("a", b""), "s3://b/run/a: cannot be written"),
        (lambda shelf: shelf.remove("a"), "s3://b/run/a: cannot be removed"),
    ],
)
def test_errors_of_a_file_system_become_one_message(use: object, how: str) -> None:
    with pytest.raises(StoreError) as caught:
        use(UrlShelf(Broken(), "b/run", "s3://b/run"))  # type: ignore[operator]
    assert str(caught.value) == f"{how} (RuntimeError: endpoint is away); see that it is there, and start again"


def test_a_killed_processs_copies_are_swept_and_a_live_ones_are_not(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead = scratch() / f"process-{namespace()}-{done.pid}-x"
    kept = [scratch() / f"process-{namespace()}-{os.getppid()}-x", scratch() / f"process-1-{done.pid}-x"]
    for folder in (dead, *kept):
        folder.mkdir()
    mirror = own_mirror(Url(f"file://{tmp_path}/swept"))
    assert mirror is own_mirror(Url(f"file://{tmp_path}/swept"))
    assert not dead.exists()
    assert all(folder.exists() for folder in (*kept, mirror.root))


def test_somebody_elses_scratch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / f"kdbench-{os.getuid()}").symlink_to(folder)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(SCRATCH_VARIABLE)
    with pytest.raises(ConfigError, match=r"belongs to somebody else; name a folder of your own in KDBENCH_SCRATCH"):
        scratch()
    (tmp_path / "file").touch()
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file: cannot be used for copies .* name a local folder in KDBENCH_SCRATCH"):
        places.scratch()
