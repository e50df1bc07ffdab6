"""Stores in S3, as moto plays it on this machine: the lease's one promise, and a run that is there.

Skipped without s3fs and moto, which want another python-dateutil than the one that make setup pins.
In an environment of its own: pip install s3fs 'moto[server]', then pytest tests/e2e/test_s3.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, kdbench

from kdbench.seal import unsealed
from kdbench.storage.places import SCRATCH_VARIABLE, Url
from kdbench.storage.shelf import Shelf
from kdbench.storage.url_shelf import shelf_at

WANTED = "not tested: S3, for want of s3fs and moto[server]"
pytest.importorskip("s3fs", reason=WANTED)
moto = pytest.importorskip("moto.server", reason=WANTED)

CELLS = "proto-v3/digits-20pc/tiny"
TEACHER = "digits-20pc/resnet14_w8-proto-v3-seed0"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Start a server, and return the URL of an empty bucket."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patch:
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("runs-of-kdbench")
        yield "s3://runs-of-kdbench"
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def test_one_of_many_creates_a_name(bucket: str) -> None:
    shelf = shelf_at(Url(f"{bucket}/once"))
    start, done = threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait()
        done.append((shelf.create("lease", b"%d" % number), number))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((_, winner),) = [entry for entry in done if entry[0]]
    assert shelf.read("lease") == b"%d" % winner


def test_a_shelf_there_is_like_any_other(bucket: str) -> None:
    shelf = shelf_at(Url(f"{bucket}/shelf"))
    assert (shelf.names(), shelf.find(), shelf.read("a")) == ([], {}, None)
    shelf.write("a", b"1")
    shelf.write("b/c", b"2")
    before = shelf.find()
    shelf.write("a", b"3")
    after = shelf.find()
    assert (before["a"] != after["a"], before["b/c"] == after["b/c"]) == (True, True)
    assert shelf.names() == ["a", "b"]
    assert shelf.read_all(["a", "b/c", "d"]) == {"a": b"3", "b/c": b"2"}
    shelf.remove("a")
    shelf.remove("a")
    assert list(shelf.find()) == ["b/c"]


def test_a_run_there(bucket: str, finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    shelf: Shelf = shelf_at(Url(bucket))
    for path in (finished.teachers / TEACHER).iterdir():
        if path.is_file():
            shelf.write(f"teachers/{TEACHER}/{path.name}", path.read_bytes())
    outcome = kdbench(
        "run", *Place(tmp_path).cells("dkd", 1), "--threads", 1, "--executor", "inline",
        "--out", f"{bucket}/runs", "--teachers", f"{bucket}/teachers",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    there = shelf.at(f"runs/{CELLS}/dkd/seed0")
    assert there.names() == sorted(path.name for path in finished.folder("dkd").iterdir())
    for name in ("student.safetensors", "predictions.npz", "spec.json"):
        assert there.read(name) == (finished.folder("dkd") / name).read_bytes()
    assert record(there)["accuracy"] == finished.record("dkd")["accuracy"]
    assert kdbench("status", f"{bucket}/runs").out == "1 runs: 1 ok\n"


def record(there: Shelf) -> Any:
    data = there.read("record.json")
    assert data is not None
    return unsealed(json.loads(data))[0]
