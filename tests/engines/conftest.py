"""Engines to test, each with a finished board; what cannot be had here is skipped, and counted in the summary."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import commandline
import contract
import pytest
import ray_cluster
import slurm_cluster

HERE = Path(__file__).parent

NOT_TESTED = "not tested: "  # begins the reasons of skips that the summary counts
POLL = ("--executor-option", "poll=0.2")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the acting methods as a plugin."""
    source = (HERE / "acting_methods.py").read_text(encoding="utf-8")
    folder: Path = commandline.write_plugin(tmp_path_factory.mktemp("site"), "acting_methods", source)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _plugin(site: Path) -> Iterator[None]:
    """Have the acting methods installed, here and in the workers of all engines."""
    with commandline.installed(site):
        yield


# Clusters last for one module: what they say in the environment is not for the tests of other folders.
@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    """Return a running SLURM."""
    if reason := slurm_cluster.why_not():
        pytest.skip(f"{NOT_TESTED}{reason}")
    with tempfile.TemporaryDirectory(prefix="kdslurm") as folder, pytest.MonkeyPatch.context() as patch:
        cluster = slurm_cluster.Cluster(Path(folder))
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module", name="ray_cluster")
def _ray_cluster() -> Iterator[ray_cluster.Cluster]:
    """Return a running cluster of Ray."""
    if reason := ray_cluster.why_not():
        pytest.skip(f"{NOT_TESTED}{reason}")
    with tempfile.TemporaryDirectory(prefix="kdray") as folder, pytest.MonkeyPatch.context() as patch:
        cluster = ray_cluster.Cluster(Path(folder))
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        cluster.start()
        yield cluster
        cluster.stop()


def _on_ray(cluster: ray_cluster.Cluster) -> contract.Engine:
    words = ("--executor", "ray", "--device", "cpu", "--executor-option", f"address={cluster.address}")
    return contract.Engine("ray", words, outlives=False, inside=cluster.inside)


@pytest.fixture(scope="module", params=["local", "submitit", "slurm", "ray"])
def engine(request: pytest.FixtureRequest) -> contract.Engine:
    """Return each engine."""
    if request.param == "local":
        return contract.Engine("local", ("--executor", "local"), outlives=False)
    if request.param == "ray":
        return _on_ray(request.getfixturevalue("ray_cluster"))
    if importlib.util.find_spec("submitit") is None:
        pytest.skip(f"{NOT_TESTED}no submitit (pip install 'kdbench[slurm]')")
    words = ("--executor", "slurm", "--device", "cpu", *POLL)
    if request.param == "submitit":
        return contract.Engine("submitit", (*words, "--executor-option", "cluster=local"))
    request.getfixturevalue("cluster")
    return contract.Engine("slurm", words)


@pytest.fixture(scope="session")
def undisturbed(site: Path, tmp_path_factory: pytest.TempPathFactory) -> commandline.Place:
    """Return the runs of all methods, made in this process, where nothing happens to them."""
    place = commandline.Place(tmp_path_factory.mktemp("undisturbed"))
    cells = place.cells(f"{contract.BOARD},{contract.ALONE}", 1)
    with commandline.installed(site):
        outcome = commandline.kdbench("run", *cells, "--threads", 1, "--executor", "inline")
    assert outcome.code == 0, outcome
    return place


@pytest.fixture(scope="module")
def board(engine: contract.Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[commandline.Place, object]:
    """Return the place of a board that an engine has made, teacher included, and what the command said."""
    place = commandline.Place(tmp_path_factory.mktemp(engine.name))
    with contract.acts(place.root / "acts"), engine.inside():
        outcome = commandline.kdbench(*engine.words_of(place, contract.BOARD))
    return place, outcome


@pytest.fixture(autouse=True)
def _inside(request: pytest.FixtureRequest) -> Iterator[None]:
    """Be where the commands of the engine under test must be."""
    if "engine" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("engine").inside():
        yield


@pytest.fixture
def on_ray(ray_cluster: ray_cluster.Cluster, tmp_path: Path) -> Iterator[contract.Held]:
    """Return a command on Ray that can be disturbed while its run stands still."""
    with contract.acts(tmp_path / "acts"), ray_cluster.inside():
        yield contract.Held(commandline.Place(tmp_path), _on_ray(ray_cluster), tmp_path / "acts")
        (tmp_path / "acts" / "hold").unlink(missing_ok=True)


@pytest.fixture
def held(engine: contract.Engine, tmp_path: Path) -> Iterator[contract.Held]:
    """Return a command that can be stopped while its run stands still."""
    with contract.acts(tmp_path / "acts"):
        yield contract.Held(commandline.Place(tmp_path), engine, tmp_path / "acts")
        (tmp_path / "acts" / "hold").unlink(missing_ok=True)
