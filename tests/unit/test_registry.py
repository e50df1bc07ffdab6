"""The registry: a plugin that is wrong is named with its distribution and with how to go on without it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from kdbench import registry as registries
from kdbench.backbones.base import Backbone
from kdbench.errors import ConfigError, PluginError
from kdbench.hooks import hookimpl
from kdbench.method import Batch, Losses, Method, Options
from kdbench.registry import Plugin, Registry, Table
from kdbench.types import Source

LoadPlugin = Callable[..., Registry]


class Guest(Method[Options]):
    name = "guest"
    source = Source("t", 2020, "u")

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised()}


class Usurper(Guest):
    name = "dkd"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Install a module as entry point NAME of distribution ``dist-NAME``, version 1.2.3."""
    entries: list[metadata.EntryPoint] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints(entries))

    def add(name: str, source: str) -> None:
        module = f"guest_module_{len(entries)}"
        (tmp_path / f"{module}.py").write_text(source)
        entry = metadata.EntryPoint(name=name, value=module, group="kdbench")
        vars(entry)["dist"] = SimpleNamespace(name=f"dist-{name}", version="1.2.3")
        entries.append(entry)

    yield add
    for name in [name for name in sys.modules if name.startswith("guest_module_")]:
        del sys.modules[name]


METHOD = """
import kdbench
class M(kdbench.Method[kdbench.Options]):
    name = "{name}"
    source = kdbench.Source("t", 2020, "u")
@kdbench.hookimpl
def kdbench_methods():
    return [M]
"""


def fault(function: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(PluginError) as caught:
        function(*arguments, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_entry_point(install: Callable[[str, str], None], tmp_path: Path) -> None:
    install("good", METHOD.format(name="good_method"))
    registry = registries.load()
    owner = registry.methods.owner("good_method")
    assert (owner.name, owner.distribution, owner.version) == ("good", "dist-good", "1.2.3")
    assert owner.file == str(tmp_path / "guest_module_0.py")
    assert len(owner.ref().file_sha256) == 64
    assert registry.methods.owner("dkd").distribution == "kdbench"


def test_the_hash_of_a_plugin_is_that_of_its_whole_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plugin's module says little where another module of its package computes."""
    package = tmp_path / "guest_package"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py", "losses.py"):
        (package / name).touch()
    (package / "inner" / "plugin.py").write_text(METHOD.format(name="packed_method"))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("guest_package.inner.plugin")
    registry = registries.load(extra=[module])
    owner = registry.methods.owner("packed_method")
    before = owner.ref()
    assert before in registry.guests
    assert before.distribution == "guest_package"
    assert not {guest.distribution for guest in registry.guests} & {"kdbench"}
    (package / "losses.py").write_text("WEIGHT = 2")
    assert owner.ref().file_sha256 != before.file_sha256


FAILING = {
    "import": ("raise ImportError('no such library')", "fails on import: ImportError: no such library"),
    "syntax": ("def", "fails on import: SyntaxError: "),
    "exit": ("raise SystemExit(0)", "fails on import: SystemExit: 0"),
    "hook": (
        "import kdbench\n@kdbench.hookimpl\ndef kdbench_methods():\n    raise KeyError('weights')",
        "kdbench_methods failed: KeyError: 'weights'",
    ),
    "generator": (
        "import kdbench\n@kdbench.hookimpl\ndef kdbench_backbones():\n    yield from (1 / 0,)",
        "kdbench_backbones failed: ZeroDivisionError",
    ),
    "exit in hook": (
        "import kdbench\n@kdbench.hookimpl\ndef kdbench_pairs():\n    raise SystemExit(0)",
        "kdbench_pairs failed: SystemExit: 0",
    ),
    "returns": (
        "import kdbench\n@kdbench.hookimpl\ndef kdbench_datasets():\n    return 3",
        "kdbench_datasets failed: TypeError: 'int' object is not iterable",
    ),
    "no method": (
        "import kdbench\n@kdbench.hookimpl\ndef kdbench_methods():\n    return ['dkd']",
        "kdbench_methods returned 'dkd', which is no method: AttributeError",
    ),
    "no anchor": (
        "import kdbench\n@kdbench.hookimpl\ndef kdbench_anchors():\n    return ['a.yaml']",
        "kdbench_anchors returned 'a.yaml', which is no anchor: AttributeError",
    ),
    "arguments": (
        "import kdbench\n@kdbench.hookimpl\ndef kdbench_methods(config):\n    return []",
        "does not fit the hooks: PluginValidationError: ",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_failing_plugin_is_named_and_can_be_left_out(install: Callable[[str, str], None], case: str) -> None:
    source, said = FAILING[case]
    install("bad", source)
    install("good", METHOD.format(name="good_method"))
    message = fault(registries.load)
    assert message.startswith(f"plugin 'bad' of distribution 'dist-bad' {said}")
    assert message.endswith(
        "Repair or uninstall it (pip uninstall dist-bad), or go on without it: kdbench --no-plugin bad ..."
    )
    registry = registries.load(without=["bad"])
    assert "good_method" in registry.methods
    assert [plugin.name for plugin in registry.plugins if not plugin.name.startswith("kdbench.")] == ["good"]


def test_misspelt_hook(install: Callable[[str, str], None]) -> None:
    install("bad", "import kdbench\n@kdbench.hookimpl\ndef kdbench_method():\n    return []")
    assert fault(registries.load).startswith(
        "plugin 'bad' (dist-bad) implements kdbench_method: unknown hook 'kdbench_method'. "
        "Did you mean 'kdbench_methods'? The hooks: kdbench_anchors, "
    )
    assert registries.load(without=["bad"])


def test_hook_without_decorator(with_plugin: LoadPlugin) -> None:
    assert fault(with_plugin, decorate=False, kdbench_methods=lambda: [Guest]) == (
        "plugin 'guest' (guest): kdbench_methods lacks @kdbench.hookimpl, so it is never called; add the decorator"
    )


def test_hooks_may_return_nothing(with_plugin: LoadPlugin) -> None:
    registry = with_plugin(kdbench_methods=lambda: None, kdbench_pairs=lambda: ())
    assert "guest" in {plugin.name for plugin in registry.plugins}


def test_name_of_a_built_in(with_plugin: LoadPlugin) -> None:
    assert fault(with_plugin, kdbench_methods=lambda: [Usurper]) == (
        "method 'dkd' is registered twice: by plugin 'kdbench.methods.dkd' (kdbench) and by 'guest' (guest); "
        "leave one out with kdbench --no-plugin guest"
    )


def test_the_built_in_can_be_left_out_instead(install: Callable[[str, str], None]) -> None:
    install("mine", METHOD.format(name="dkd"))
    assert "registered twice" in fault(registries.load)
    registry = registries.load(without=["kdbench.methods.dkd"])
    assert registry.methods.owner("dkd").distribution == "dist-mine"


def test_two_plugins_bring_one_name(install: Callable[[str, str], None]) -> None:
    install("a", METHOD.format(name="same"))
    install("b", METHOD.format(name="same"))
    assert fault(registries.load) == (
        "method 'same' is registered twice: by plugin 'a' (dist-a) and by 'b' (dist-b); leave one out with "
        "kdbench --no-plugin b"
    )
    assert registries.load(without=["a"]).methods.owner("same").name == "b"


def test_two_plugins_of_one_name(install: Callable[[str, str], None]) -> None:
    install("a", METHOD.format(name="one"))
    install("a", METHOD.format(name="two"))
    assert fault(registries.load).startswith("plugin 'a' of distribution 'dist-a' does not fit the hooks: ValueError")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("goood", " Did you mean 'good'?"), ("kdbench.methods.dkdd", " Did you mean 'kdbench.methods.dkd'?"), ("zzz", "")],
)
def test_leaving_out_what_is_not_there(install: Callable[[str, str], None], name: str, hint: str) -> None:
    install("good", METHOD.format(name="good_method"))
    with pytest.raises(ConfigError) as caught:
        registries.load(without=[name])
    assert str(caught.value) == f"--no-plugin: unknown plugin '{name}'.{hint} All: kdbench list plugins"


def test_anchors_and_pairs_of_a_plugin(with_plugin: LoadPlugin, tmp_path: Path) -> None:
    (tmp_path / "house.yaml").write_text("extends: crd\nname: house\n")
    (tmp_path / "p.yaml").write_text("name: mine\nstudent: resnet8\nteachers: [resnet20]\ndataset: digits\n")
    registry = with_plugin(
        kdbench_anchors=lambda: [tmp_path / "house.yaml"], kdbench_pairs=lambda: [tmp_path / "p.yaml"]
    )
    assert registry.anchors["house"] == tmp_path / "house.yaml"
    assert registry.pairs["mine"].teachers == ("resnet20",)
    assert registry.pairs.owner("mine").name == "guest"


def test_pair_may_use_a_backbone_of_a_later_plugin(install: Callable[[str, str], None], tmp_path: Path) -> None:
    """Names are resolved when everything is registered, so the order of plugins does not matter."""
    (tmp_path / "p.yaml").write_text("name: mixed\nstudent: late_net\nteachers: [resnet20]\ndataset: digits\n")
    file = f"pathlib.Path({str(tmp_path / 'p.yaml')!r})"
    pairs = f"import kdbench, pathlib\n@kdbench.hookimpl\ndef kdbench_pairs():\n    return [{file}]"
    net = "kdbench.Backbone('late_net', 'x', None, kdbench.Source('t', 2020, 'u'))"
    install("a", pairs)
    install("z", f"import kdbench\n@kdbench.hookimpl\ndef kdbench_backbones():\n    return [{net}]")
    assert registries.load().pairs["mixed"].student == "late_net"


def test_observers_are_called(with_plugin: LoadPlugin) -> None:
    module = ModuleType("watcher")
    seen: list[object] = []

    @hookimpl
    def kdbench_run_finished(record: object) -> None:
        seen.append(record)

    module.kdbench_run_finished = kdbench_run_finished  # type: ignore[attr-defined]
    registries.load(extra=[module]).hook.kdbench_run_finished(record="r")
    assert seen == ["r"]


def test_table() -> None:
    table: Table[int] = Table("backbone")
    owner = Plugin("p", "d", "1", "")
    table.add("resnet20", 1, owner)
    table.add("alexnet", 2, owner)
    assert (list(table), table.values(), "alexnet" in table, table["resnet20"]) == (
        ["alexnet", "resnet20"],
        [2, 1],
        True,
        1,
    )
    assert table.owner("alexnet") == owner
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnet2'. Did you mean 'resnet20'"):
        table["resnet2"]
    with pytest.raises(TypeError):
        table.as_mapping()["new"] = 3  # type: ignore[index]


def test_built_ins(registry: Registry) -> None:
    assert registry.methods["student"].baseline
    assert isinstance(registry.backbones["resnet20"], Backbone)
    assert len({plugin.name for plugin in registry.plugins}) == len(registry.plugins)


LAZY = """
import sys
{statement}
heavy = sorted({{"torch", "torchvision", "sklearn", "scipy", "pandas", "timm"}} & set(sys.modules))
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import kdbench; dir(kdbench); kdbench.__version__",
        "import kdbench.cli",
        "import kdbench.errors, kdbench.files, kdbench.hooks, kdbench.stats",
        "from kdbench.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code",
    ],
)
def test_light_imports_are_light(statement: str) -> None:
    code = LAZY.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_promised_name_is_there() -> None:
    import kdbench

    assert all(getattr(kdbench, name) is not None for name in kdbench.__all__)
    of_phases = {"Phase", "Group", "Optimizer", "FreezeLevel", "Interlude", "LossProtocol"}
    assert of_phases <= set(kdbench.__all__)
    with pytest.raises(AttributeError, match="module 'kdbench' has no attribute 'Metod'"):
        kdbench.Metod  # noqa: B018
