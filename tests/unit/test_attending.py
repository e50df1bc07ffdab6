"""What attends a worker on a node of a Ray cluster, without the cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench import __version__
from kdbench.errors import ConfigError
from kdbench.execution.attending import MISFIT, Orders, attend
from kdbench.execution.events import Event
from kdbench.execution.jobs import Settings
from kdbench.execution.seam import Opening
from kdbench.registry import load

# Not imported to find out: Ray reads once, when it is imported, with which token it may speak to a cluster.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="not tested: Ray is not installed (pip install 'kdbench[ray]')"
)
SAID = json.dumps({"kind": "warning", "data": {"message": "alive"}})


class Said(list[Event]):
    """Stands for the queue to the driver."""

    def put(self, event: Event) -> None:
        self.append(event)
        self.then()

    def then(self) -> None:
        """Nothing happens."""


class Interrupting(Said):
    """Interrupts this process, as Ray does to cancel a task, when the worker has said something."""

    def then(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Orders:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_TEST_TRAVELS", "no")
    (tmp_path / "there").mkdir()
    return Orders(tmp_path / "there", {"KDBENCH_TEST_TRAVELS": "yes"}, 60.0, Said())


def words(script: str) -> list[str]:
    return ["/the/drivers/python", "-c", script]


def test_a_worker_is_where_and_what_the_driver_is(orders: Orders) -> None:
    script = f"""
import os, sys
print('noise'); print({SAID!r})
print(os.getcwd(), os.environ['KDBENCH_TEST_TRAVELS'], file=sys.stderr)
sys.exit(65)
"""
    before = signal.getsignal(signal.SIGINT)
    assert attend(words(script), orders) == (65, f"{orders.folder} yes")
    assert [event.data for event in orders.events] == [{"message": "alive"}]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_lets_it_save_and_a_second_one_does_not(orders: Orders) -> None:
    say, sleep = f"print({SAID!r}, flush=True)", "time.sleep(99)"
    polite = ["import signal, sys, time", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))", say, sleep]
    deaf = ["import signal, time", "signal.signal(signal.SIGTERM, signal.SIG_IGN)", say, "time.sleep(1)", say, sleep]
    orders = replace(orders, events=Interrupting())
    assert attend(words("\n".join(polite)), orders)[0] == 75
    assert attend(words("\n".join(deaf)), orders)[0] == -9


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": "0.0.9"}, f"has kdbench {__version__}, the driver 0.0.9; install the same version on every node"),
        (
            {"folder": Path("/not/there")},
            "has no folder /not/there; start the command in a folder that all nodes share",
        ),
    ],
)
def test_a_node_that_differs_is_named_and_starts_nothing(
    change: dict[str, object], problem: str, orders: Orders
) -> None:
    exit_code, said = attend([sys.executable, "-c", "raise SystemExit(9)"], replace(orders, **change))  # type: ignore[arg-type]
    assert exit_code == MISFIT
    assert said.startswith("kdbench: node ")
    assert said.endswith(problem)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "address=127.0.0.1:1",
            "--executor ray: no cluster at 127.0.0.1:1 ([Errno 111] Connection refused); start one ",
        ),
        ("time=3", "--executor-option of 'ray': time is 3: input should be None"),
        (
            "max_retries=-2",
            "--executor-option of 'ray': max_retries is -2: input should be greater than or equal to -1",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_work(option: str, message: str, tmp_path: Path) -> None:
    engine = load().executors["ray"]
    settings = Settings(tmp_path, tmp_path, tmp_path, ("cpu",), 1)
    with pytest.raises(ConfigError) as caught:
        engine.open(Opening(settings, lambda _event: None, engine.options([option])))
    assert str(caught.value).startswith(message)


def test_a_cluster_that_wants_a_token_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.exceptions import RayError

    def refuse(*_arguments: object, **_options: object) -> None:
        raise RayError("Token authentication is enabled but no authentication token was found")  # as its subclass does

    monkeypatch.setattr(ray, "init", refuse)
    engine = load().executors["ray"]
    settings = Settings(tmp_path, tmp_path, tmp_path, ("cpu",), 1)
    with pytest.raises(ConfigError) as caught:
        engine.open(Opening(settings, lambda _event: None, engine.options([])))
    assert str(caught.value).startswith(
        "--executor ray: this machine cannot be joined (Token authentication is enabled but no authentication token "
        "was found); with RAY_AUTH_MODE=token the cluster's token must be here, too"
    )
