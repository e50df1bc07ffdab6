"""Engines as plugins bring them: options, resources, and what is missing."""

from __future__ import annotations

from types import ModuleType

import pytest

import kdbench
from kdbench.engine import GIB, Engine, Needs, ResourceOptions
from kdbench.errors import ConfigError, PluginError
from kdbench.execution.seam import Opening
from kdbench.execution.slurm import SlurmOptions
from kdbench.registry import Registry, load

NEEDS = Needs(gpus=1, cpus=4, memory=3 * GIB, seconds=1800.0)


def nothing(_opening: Opening) -> object:
    raise AssertionError("must not be opened")


def engine(**more: object) -> Engine:
    return Engine("mine", "for tests", nothing, ResourceOptions, **more)  # type: ignore[arg-type]


def guest(*engines: object) -> ModuleType:
    module = ModuleType("guest")
    module.kdbench_executors = kdbench.hookimpl(lambda: list(engines), specname="kdbench_executors")  # type: ignore[attr-defined]
    return module


def test_engines_are_registered_with_their_owners(registry: Registry) -> None:
    assert {"inline", "local", "slurm"} <= set(registry.executors)
    assert registry.executors.owner("local").distribution == "kdbench"
    known = load(extra=[guest(engine())])
    assert known.executors["mine"].description == "for tests"
    assert known.executors.owner("mine").name == "guest"


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(PluginError, match="executor 'local' is registered twice"):
        load(extra=[guest(Engine("local", "", nothing))])  # type: ignore[arg-type]


def test_what_is_no_engine_is_refused() -> None:
    with pytest.raises(PluginError, match="kdbench_executors returned 3, which is no executor"):
        load(extra=[guest(3)])


def test_options_are_read_as_yaml_and_resources_are_over_estimates() -> None:
    assert engine().options([]).over(NEEDS) == NEEDS  # type: ignore[attr-defined]
    options = engine().options(["memory=1.5", "time = 90", "gpus=0"])
    assert isinstance(options, ResourceOptions)
    assert options.over(NEEDS) == Needs(0, 4, int(1.5 * GIB), 5400.0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["memory"], "--executor-option memory: not of the form KEY=VALUE"),
        (["=3"], "--executor-option =3: not of the form KEY=VALUE"),
        (["memory="], "--executor-option memory=: not of the form KEY=VALUE"),
        (["memory={"], "--executor-option memory={: not of the form KEY=VALUE"),
        (["memroy=3"], "--executor-option of 'mine': memroy: unknown key. Did you mean 'memory'? Allowed: cpus, gpus"),
        (["cpus=0"], "--executor-option of 'mine': cpus is 0: input should be greater than or equal to 1"),
        (["time=1:30:00"], "--executor-option of 'mine': time is '1:30:00'"),
    ],
)
def test_wrong_options_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine().options(texts)
    assert str(caught.value).startswith(message)


def test_what_is_not_installed_is_named_with_the_remedy() -> None:
    needy = engine(packages=("json", "no_such_package"), requirement="kdbench[mine]")
    assert needy.missing() == "no_such_package"
    with pytest.raises(ConfigError) as caught:
        needy.check_installed()
    assert str(caught.value) == (
        "--executor mine: needs no_such_package, which is not installed; pip install 'kdbench[mine]'"
    )
    engine(packages=("json",)).check_installed()


def test_a_time_limit_that_leaves_no_time_is_refused(registry: Registry) -> None:
    slurm = registry.executors["slurm"]
    assert slurm.options(["time=3"]) == SlurmOptions(time=3)
    with pytest.raises(ConfigError) as caught:
        slurm.options(["time=1"])
    assert str(caught.value) == (
        "--executor-option of 'slurm': time is 1 minutes and signal 90 seconds: that leaves less than half of the time "
        "to work; give more time or a smaller signal"
    )


def test_how_much_an_engine_is_handed_is_a_number_or_an_option(registry: Registry) -> None:
    assert engine().waiting(ResourceOptions()) == 0
    assert engine(queue=7).waiting(ResourceOptions()) == 7
    slurm = registry.executors["slurm"]
    assert slurm.waiting(slurm.options([])) == 1000
    assert slurm.waiting(slurm.options(["queue_size=90"])) == 90


def test_numbers_may_be_names_of_partitions() -> None:
    options = SlurmOptions.model_validate({"partition": 7, "account": "a", "setup": ["module load x"]})
    assert options.partition == "7"
    assert options.of_sbatch() == {"requeue": True, "account": "a"}
