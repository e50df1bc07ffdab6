"""Folders at URLs: what changed goes there, what is there comes here, and who cannot be reached is named."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile

from kdbench.errors import ConfigError, StoreError
from kdbench.storage import places
from kdbench.storage.mirror import Mirror, local_copy, own_mirror
from kdbench.storage.owner import here_hash
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


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> UrlShelf:
    """Return a folder that lists names as a bucket does, to the letter; older releases of fsspec lose some here."""
    shelf = shelf_at(Url(f"memory://mirror/{next(_numbers)}"))
    assert isinstance(shelf, UrlShelf)
    monkeypatch.setattr(shelf.files, "store", {})

    def find(base: str, detail: bool) -> dict[str, object]:
        return {key: {"size": file.size} for key, file in shelf.files.store.items() if key.startswith(f"{base}/")}

    monkeypatch.setattr(shelf.files, "find", find)
    return shelf


def put_there(bucket: UrlShelf, name: str, data: bytes) -> None:
    key = f"{bucket.base}/{name}"
    bucket.files.store[key] = MemoryFile(bucket.files, key, data)


@pytest.mark.parametrize(
    "name",
    ["../evil", "../../evil", "a/../../../evil", "{here}/evil", "..", ".", "", "a/", "a//b", "a/./b", "a/..",
     "..\\evil", "a\0b", "a\nb", "\x1b[2J", "\x85", "\ud800"],
)  # fmt: skip
def test_a_name_that_may_lead_out_of_the_folder_is_refused_and_nothing_is_written(
    name: str, tmp_path: Path, bucket: UrlShelf
) -> None:
    here, name = tmp_path / "a" / "b" / "here", name.format(here=tmp_path)
    put_there(bucket, "runs/good", b"1")
    put_there(bucket, f"runs/{name}", b"2")
    with pytest.raises(StoreError) as caught:
        Mirror(bucket.at("runs"), here).refresh(lambda _name: True)
    assert str(caught.value).startswith(f"{bucket.label}/runs: the name {name!r} of a file there may lead out of the ")
    with pytest.raises(StoreError) as caught:
        Mirror(bucket, here).pull_folder("runs", lambda _name: True)
    assert f"{bucket.label}: the name {f'runs/{name}'!r} of a file there may lead" in str(caught.value)
    assert everything(tmp_path) == {}


def test_what_a_console_leaves_for_an_empty_folder_is_no_file(tmp_path: Path, bucket: UrlShelf) -> None:
    for name in ("", "run/", "run/a", "run/checkpoint/"):
        put_there(bucket, name, b"1" if name.endswith("a") else b"")
    mirror = Mirror(bucket, tmp_path)
    for _ in range(2):
        assert mirror.refresh(lambda _name: True) == ["run/a"]
    mirror.pull_folder("run", lambda _name: True)
    assert everything(tmp_path) == {tmp_path / "run" / "a": b"1"}


def test_no_file_beside_the_folder_is_read_written_or_removed(mirror: Mirror, tmp_path: Path) -> None:
    put(tmp_path / "mine", "mine")
    put(mirror.root / "run" / "a", "1")
    uses = (mirror.pull, mirror.push, mirror.push_file, mirror.forget)
    for use in uses:
        for name in ("../mine", str(tmp_path / "mine"), "run/../../mine", ".."):
            with pytest.raises(StoreError, match="may lead out of the folder"):
                use(name)
    with pytest.raises(StoreError, match="may lead out of the folder"):
        mirror.place_of(mirror.root / "run" / ".." / ".." / "mine")
    assert everything(tmp_path) == {tmp_path / "mine": b"mine", mirror.root / "run" / "a": b"1"}


def test_the_name_of_the_folder_itself(mirror: Mirror, shelf: Shelf) -> None:
    shelf.write("a", b"1")
    shelf.at(mirror.place_of(mirror.root)).write("stop", b"")
    assert shelf.names() == ["a", "stop"]


def test_names_that_look_like_patterns_are_read_to_the_letter(shelf: Shelf) -> None:
    there = {"a[1]": b"1", "a1": b"2", "b*": b"3", "b?": b"4", "c": b"5"}
    for name, data in there.items():
        shelf.write(name, data)
    assert shelf.read_all([*there, "d*", "e"]) == there
    assert shelf.read_all(["b*", "d*"]) == {"b*": b"3"}


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


class Bucketless(Broken):
    """A file system whose bucket is not there, as s3fs says it."""

    def __getattr__(self, name: str) -> object:
        def fail(*_arguments: object, **_options: object) -> object:
            raise FileNotFoundError("The specified bucket does not exist")

        return fail


def test_a_bucket_that_is_not_there_is_empty_and_cannot_be_written() -> None:
    shelf = UrlShelf(Bucketless(), "b/run", "s3://b/run")
    assert (shelf.names(), shelf.find(), shelf.read("a"), shelf.read_all(["a"])) == ([], {}, None, {})
    shelf.remove("a")
    for use in (shelf.write, shelf.create):
        with pytest.raises(StoreError) as caught:
            use("a", b"")
        assert str(caught.value) == (
            "s3://b/run/a: cannot be written (FileNotFoundError: The specified bucket does not exist); make its "
            "bucket, or name another place, and start again"
        )


def test_a_file_where_a_folder_must_be_is_said() -> None:
    shelf = shelf_at(Url(f"memory://mirror/{next(_numbers)}"))
    shelf.write("a", b"1")
    with pytest.raises(StoreError, match=r"/a/b: cannot be written \(FileExistsError"):
        shelf.write("a/b", b"2")


def test_a_killed_processs_copies_are_swept_and_a_live_ones_are_not(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead = scratch() / f"process-{here_hash()}-{done.pid}-x"
    names = (f"{here_hash()}-{os.getppid()}-x", f"1-{done.pid}-x", f"{here_hash()}-notes")
    kept = [scratch() / f"process-{name}" for name in names]
    for folder in (dead, *kept):
        folder.mkdir()
    mirror = own_mirror(Url(f"file://{tmp_path}/swept"))
    assert mirror is own_mirror(Url(f"file://{tmp_path}/swept"))
    assert not dead.exists()
    assert all(folder.exists() for folder in (*kept, mirror.root))


def test_nodes_that_share_the_folder_leave_each_others_copies_alone(tmp_path: Path) -> None:
    """Nearly all machines have the same pid namespace, and what is no process here may be one there."""
    code = (
        "import os, sys\nfrom kdbench.storage import mirror, owner, places\n"
        "owner.here = lambda: f'another/boot/{owner.namespace()}'\n"
        "print(mirror.own_mirror(places.Url(sys.argv[1])).root, flush=True)\nos._exit(0)"
    )
    url = f"file://{tmp_path}/runs"
    theirs = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True).stdout
    own_mirror(Url(url))
    assert Path(theirs.strip()).is_dir()


def test_a_copy_that_somebody_removed_removes_nothing_there(mirror: Mirror, shelf: Shelf) -> None:
    for name in ("run/spec", "run/checkpoint/1"):
        put(mirror.root / name, name)
    mirror.push("run")
    shutil.rmtree(mirror.root)
    with pytest.raises(StoreError) as caught:
        mirror.push("run", keep=("spec",))
    assert str(caught.value) == (
        f"{mirror.root}/run: somebody has removed this copy of what lies at {shelf.label} while it was in use; name a "
        "folder that nobody clears in KDBENCH_SCRATCH, and start again"
    )
    assert sorted(shelf.find()) == ["run/checkpoint/1", "run/spec"]


def test_a_copy_that_was_removed_and_begun_anew_removes_nothing_there(tmp_path: Path) -> None:
    """As by a run that goes on and saves its next checkpoint."""
    mirror = own_mirror(Url(f"file://{tmp_path}/anew"))
    put(mirror.root / "run" / "attempts", "1")
    mirror.push("run")
    shutil.rmtree(mirror.root)
    put(mirror.root / "run" / "checkpoint", "2")
    with pytest.raises(StoreError, match="somebody has removed this copy"):
        mirror.push("run")
    assert list(mirror.shelf.find()) == ["run/attempts"]


@pytest.mark.parametrize("moment", ["stat", "read_bytes"])
def test_files_that_vanish_during_a_push_are_not_removed_there(
    mirror: Mirror, shelf: Shelf, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run/spec", "run/epochs"):
        put(mirror.root / name, name)
    mirror.push("run")
    put(mirror.root / "run" / "epochs", "more of them")
    real = getattr(Path, moment)

    def swept(path: Path, **how: object) -> object:
        if path.is_relative_to(mirror.root) and path.name == "epochs" and not how:
            path.unlink(missing_ok=True)
        return real(path, **how)

    with monkeypatch.context() as patch:
        # What is listed is a file, until it is looked at more closely.
        patch.setattr("kdbench.storage.mirror._is_file", lambda path: path.name in {"spec", "epochs"})
        patch.setattr(Path, moment, swept)
        with pytest.raises(StoreError, match="somebody has removed this copy"):
            mirror.push("run")
    assert contents(shelf) == {"run/spec": b"run/spec", "run/epochs": b"run/epochs"}


def test_nothing_is_removed_there_while_more_and_more_is_missing_here(mirror: Mirror, shelf: Shelf) -> None:
    for name in ("run/a", "run/b", "run/c"):
        put(mirror.root / name, name)
    mirror.push("run")
    (mirror.root / "run" / "a").unlink()
    put(mirror.root / "run" / "c", "changed")
    with pytest.raises(StoreError, match="somebody has removed this copy"):
        mirror.push("run", ready=(mirror.root / "run" / "b").unlink)
    assert sorted(shelf.find()) == ["run/a", "run/b", "run/c"]


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
