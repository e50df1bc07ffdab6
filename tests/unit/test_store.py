"""The store: one writer per run, conflicts refused before anything is written, records never lost."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.errors import ConfigError, StoreError
from kdbench.files import TEMPORARY
from kdbench.records import EpochReport, Record, parse_json
from kdbench.seal import SEAL
from kdbench.spec import DeclaredDeviation, RunSpec
from kdbench.storage.lease import LeaseLost
from kdbench.storage.places import SCRATCH_VARIABLE, Url
from kdbench.storage.url_shelf import UrlShelf
from kdbench.store import LOCK, RECORD, SPEC, RunBusy, RunFolder, RunStore

GOOD = "crd-v1/digits-5pc/tiny/dkd/seed0"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def test_register_and_read_back(store: RunStore, spec: RunSpec) -> None:
    other = spec.model_copy(update={"seed": 1})
    store.register([spec, other])
    store.register([spec])
    assert [(folder.path.name, found) for folder, found in store.runs()] == [("seed1", other), ("seed3", spec)]
    assert store.folder(spec.run_id).path == store.root / spec.run_id
    assert store.folder(spec.run_id).record() is None


def test_conflict_of_options(store: RunStore, spec: RunSpec) -> None:
    store.register([spec])
    changed = spec.model_copy(update={"options": {"alpha": 1.0, "beta": 8.0}})
    with pytest.raises(ConfigError) as caught:
        store.register([changed])
    folder = store.root / spec.run_id
    assert str(caught.value) == (
        f"{folder}: holds a run of another configuration (beta 2.0 there, 8.0 now); choose another --out"
    )
    assert store.folder(spec.run_id).spec() == spec


def test_conflict_of_several_kinds_writes_nothing(store: RunStore, spec: RunSpec) -> None:
    store.register([spec])
    anchor = spec.anchor.model_copy(update={"version": 1, "loss": spec.anchor.loss.model_copy(update={"tau": 2.0})})
    deviation = DeclaredDeviation(key="loss.tau", value=2.0, reason="r")
    changed = spec.model_copy(
        update={"anchor": anchor, "deviations": (deviation,), "options": {"alpha": 3.0, "beta": 2.0}}
    )
    fresh = spec.model_copy(update={"seed": 9})
    with pytest.raises(ConfigError, match=r"\(different options, deviations, anchor\); choose another --out"):
        store.register([fresh, changed])
    assert not (store.root / fresh.run_id).exists()


def test_a_spec_in_a_wrong_place_hides_no_run(store: RunStore, spec: RunSpec) -> None:
    store.register([spec])
    for place in (store.root, store.folder(spec.run_id).path.parent):
        (place / SPEC).write_text(spec.model_dump_json(), encoding="utf-8")
    assert len(store.runs()) == 3


def test_a_folder_that_is_gone_has_no_conflicts(store: RunStore, spec: RunSpec) -> None:
    assert store.folder(spec.run_id).conflicts() == []


def test_another_teacher_is_another_run(store: RunStore, spec: RunSpec) -> None:
    """Else a finished run would be shown as the one that was asked for, with the teacher it had before."""
    store.register([spec])
    with pytest.raises(ConfigError, match=r"\(different teacher_names\); choose another --out"):
        store.register([spec.model_copy(update={"teacher_names": ("other",)})])


def test_where_and_by_whom_is_no_conflict(store: RunStore, spec: RunSpec) -> None:
    store.register([spec])
    moved = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"name": "npz:/elsewhere.npz"})})
    store.register([moved])
    assert store.folder(spec.run_id).spec() == spec


def test_spec_that_is_damaged(store: RunStore, spec: RunSpec) -> None:
    store.register([spec])
    path = store.root / spec.run_id / SPEC
    path.write_text(path.read_text()[:50])
    with pytest.raises(StoreError, match=r"spec.json: not JSON"):
        store.register([spec])
    with pytest.raises(StoreError, match=r"spec.json: not JSON"):
        store.runs()


@pytest.mark.parametrize(
    "run_id",
    [
        "",
        ".",
        "..",
        "/etc",
        "../" * 4 + "seed0",
        "a/b/c/../seed0",
        "a/./c/d/seed0",
        "a//c/d/seed0",
        f"/{GOOD}",
        f"{GOOD}/",
        f"{GOOD}/record.json",
        f"{GOOD}\n",
        f"{GOOD}\0",
        GOOD.replace("seed0", "seed-1"),
        GOOD.replace("seed0", "seed\u0661"),
        GOOD.replace("tiny", ".tiny"),
        GOOD.replace("tiny", "..\\tiny"),
        GOOD.replace("/", "\\"),
        "seed0",
    ],
)
def test_ids_that_are_none(store: RunStore, run_id: str) -> None:
    with pytest.raises(ConfigError) as caught:
        store.folder(run_id)
    assert str(caught.value) == f"run '{run_id}': not a run id (anchor/dataset/pair/method[@variant]/seedK)"


@pytest.mark.parametrize("place", ["crd-v1", GOOD])
def test_links_out_of_the_store_are_refused(store: RunStore, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.root / place).parent.mkdir(parents=True)
    (store.root / place).symlink_to(outside)
    with pytest.raises(ConfigError, match="not a run id"):
        store.folder(GOOD)


def test_the_store_itself_may_be_a_link(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    store.root.symlink_to(tmp_path / "disk")
    assert store.folder(GOOD).path == store.root / GOOD


def test_one_writer(store: RunStore) -> None:
    folder = store.folder(GOOD)
    with folder.claimed():
        assert (folder.path / LOCK).exists()
        with pytest.raises(RunBusy) as caught, folder.claimed():
            pass
        assert str(caught.value) == f"{folder.path}: another process is training this run; wait for it or stop it"
        assert caught.value.exit_code == 75
        assert folder.held()
        assert (folder.path / LOCK).exists()  # whoever was refused must not take the holder's lock away
    assert not folder.held()
    assert not (folder.path / LOCK).exists()
    with folder.claimed():
        pass


def test_another_process_is_refused_and_a_killed_one_lets_go(store: RunStore) -> None:
    folder = store.folder(GOOD)
    code = (
        "import sys, time, pathlib; from kdbench.store import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).claimed():\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunBusy), folder.claimed():
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (folder.path / LOCK).exists()  # left behind by the kill, and no obstacle
    assert not folder.held()
    assert not (folder.path / LOCK).exists()
    with folder.claimed():
        pass


def test_claiming_sweeps_what_a_killed_writer_left_and_survives_an_error(store: RunStore) -> None:
    folder = store.folder(GOOD)
    folder.path.mkdir(parents=True)
    (folder.path / ".tmp-1-record.json").write_text("half")

    def fail() -> None:
        with folder.claimed():
            assert ".tmp-1-record.json" not in folder.shelf.names()
            raise RuntimeError("training failed")

    with pytest.raises(RuntimeError):
        fail()
    with folder.claimed():
        pass


def test_a_killed_writers_lock_is_tidied_away_and_a_live_ones_is_not(store: RunStore) -> None:
    folder = store.folder(GOOD)
    folder.tidy()
    assert not folder.path.exists()
    with folder.claimed():
        folder.tidy()
        assert (folder.path / LOCK).exists()
    (folder.path / LOCK).touch()
    left = folder.path / f"{TEMPORARY}1-record.json"
    left.touch()
    folder.tidy()
    assert list(folder.path.iterdir()) == []


def test_a_lock_that_cannot_be_opened_is_said_and_not_waited_for(
    store: RunStore, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is somebody else's: a driver that took the run for held would wait for ever."""

    def refuse(*_: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = store.folder(record.run_id)
    folder.path.mkdir(parents=True)
    (folder.path / LOCK).touch()
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(StoreError, match=rf"{LOCK}: cannot be written \(Permission denied\)"):
        folder.held()
    assert folder.held(only_look=True)


def test_half_written_record_is_set_aside_and_kept(store: RunStore, record: Record) -> None:
    folder = store.folder(record.run_id)
    folder.write_record(record)
    assert folder.record() == folder.peek() == record
    path = folder.path / RECORD
    half = path.read_text()[:100]
    path.write_text(half)
    with pytest.raises(StoreError, match=r"record.json: not JSON"):
        folder.peek()
    assert folder.result() is None
    assert path.read_text() == half  # to look changes nothing
    assert folder.record() is None
    assert not path.exists()
    assert path.with_name("record.json.corrupt").read_text() == half
    assert folder.record() is None
    assert folder.peek() is None


def test_a_newer_kdbenchs_record_is_a_result_and_stays(store: RunStore, record: Record) -> None:
    folder = store.folder(record.run_id)
    folder.write_record(record)
    path = folder.path / RECORD
    tree = record.model_dump(mode="json")
    colour = (
        "a record of another kdbench, which this one does not know: colour: Extra inputs are not permitted; upgrade"
    )
    newer = {
        "record schema 2, this kdbench reads 1; upgrade kdbench": {**tree, "schema_version": 2, SEAL: "in other words"},
        colour: resealed({**tree, "colour": "red"}),
    }
    for message, content in newer.items():
        path.write_text(json.dumps(content), encoding="utf-8")
        for read in (folder.record, folder.peek, folder.result):
            with pytest.raises(StoreError, match=re.escape(message)):
                read()
    assert [found.name for found in folder.path.iterdir()] == [RECORD]


def resealed(tree: dict[str, object]) -> dict[str, object]:
    """Return a tree with the seal that its writer would give it."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return {**tree, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def test_an_unreadable_record_is_not_set_aside(store: RunStore, record: Record) -> None:
    folder = store.folder(record.run_id)
    (folder.path / RECORD).mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be read"):
        folder.record()
    assert (folder.path / RECORD).is_dir()


def test_epochs_are_json_lines(store: RunStore) -> None:
    folder = RunFolder(store.root / GOOD)
    report = EpochReport(
        run_id=GOOD, phase="main", epoch=0, epochs=2, learning_rate=0.1, losses={"ce": float("nan"), "kd": 1.5},
        images_per_second=1.0, seconds=1.0,
    )  # fmt: skip
    folder.write_epochs([report, report.model_copy(update={"epoch": 1})])
    lines = (folder.path / "epochs.jsonl").read_text().splitlines()
    assert [EpochReport.model_validate_json(line).epoch for line in lines] == [0, 1]
    assert EpochReport.model_validate_json(lines[0]).losses == {"ce": None, "kd": 1.5}


def test_check_writable(store: RunStore, tmp_path: Path) -> None:
    store.check_writable()
    assert list(store.root.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file: cannot be written \(.*\); choose another folder and start again"):
        RunStore(tmp_path / "file").check_writable()


@pytest.mark.parametrize(("made", "times"), [(True, 2), (False, 0)])
def test_a_url_where_a_name_is_not_created_once_is_refused(
    made: bool, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a server that takes no notice of If-None-Match: two workers would claim the same run."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    store = RunStore(Url("memory://probed/runs"))
    assert store.mirror is not None
    store.check_writable()
    create = UrlShelf.create

    def careless(shelf: UrlShelf, name: str, data: bytes) -> bool:
        create(shelf, name, data)
        return made

    monkeypatch.setattr(UrlShelf, "create", careless)
    with pytest.raises(ConfigError) as caught:
        store.check_writable()
    assert str(caught.value) == (
        f"memory://probed/runs: a file that was created there twice was made {times} times; unless that is once, two "
        "workers could train the same run. Give a store that takes notice of If-None-Match, or a folder"
    )
    assert store.mirror.shelf.names() == []


def test_an_empty_store(store: RunStore) -> None:
    assert store.runs() == []


def test_a_run_has_one_result(store: RunStore, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    folder = store.folder(record.run_id)
    assert folder.write_record(record, {"student.safetensors": b"first"}) == record
    later = record.model_copy(update={"ended_at": "2999-01-01T00:00:00+00:00"})
    assert folder.write_record(later, {"student.safetensors": b"second"}) == record
    assert (folder.path / "student.safetensors").read_bytes() == b"first"
    assert (folder.conflicts(), caplog.messages) == ([], [])
    failed = record.model_copy(update={"status": "infra_failed", "accuracy": None})
    assert folder.write_record(failed, {"student.safetensors": b"second"}) == folder.peek() == record
    (other,) = folder.conflicts()
    assert parse_json(Record, other) == failed
    assert (folder.path / "student.safetensors").read_bytes() == b"first"
    (said,) = caplog.messages
    assert said.startswith(
        f"{folder.path}: has a result already; another one is in {other.name} (status diverged and infra_f"
    )


def test_of_two_results_at_once_the_first_one_stands(store: RunStore, record: Record) -> None:
    """The second writer has seen no record when it begins to write."""
    folder, late = store.folder(record.run_id), store.folder(record.run_id)

    def first() -> dict[str, bytes]:
        folder.write_record(record)
        return {}

    class Late(dict[str, bytes]):
        def items(self) -> object:  # type: ignore[override]
            return first().items()

    failed = record.model_copy(update={"status": "infra_failed", "accuracy": None})
    assert late.write_record(failed, Late(a=b"")) == record
    assert len(folder.conflicts()) == 1


def test_whoever_has_lost_the_run_writes_no_result(store: RunStore, record: Record) -> None:
    folder = store.folder(record.run_id)
    with folder.claimed():
        (folder.path / "lease-00002.json").write_text("{}")
        with pytest.raises(LeaseLost, match="another process has taken this run over"):
            folder.write_record(record)
        assert folder.peek() is None


def test_cancelled_until_it_is_wanted_again(store: RunStore, record: Record) -> None:
    folder = store.folder(GOOD)
    assert not folder.cancelled
    folder.cancel()
    assert folder.cancelled
    folder.uncancel()
    folder.uncancel()
    assert not folder.cancelled
