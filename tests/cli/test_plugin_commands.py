"""Commands that plugins bring, plugins left out, and plugins at fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import failure, installed, kdbench, write_plugin

COMMAND = """
import click
import kdbench

@kdbench.hookimpl
def kdbench_commands(cli):
    @cli.command({name!r})
    @click.pass_obj
    def greet(state):
        "Greet."
        click.echo(f"{word} from {{len(state.registry().plugins)}} plugins without {{state.without}}")
"""


def test_a_plugins_command_runs_with_the_loaded_registry(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "site", "greeter", COMMAND.format(name="greet", word="hello"))
    with installed(folder):
        outcome = kdbench("greet")
        assert outcome.code == 0
        assert outcome.out.startswith("hello from ")
        assert kdbench("greet") == outcome  # a second time in one process
        assert kdbench("greet", "--help").out.startswith("Usage: kdbench greet")
        (listed,) = [line for line in kdbench("list", "plugins").out.splitlines() if line.startswith("greeter ")]
        assert " greet " in listed
        assert kdbench("list", "methods").code == 0
        suggestion = failure("greeet")
    assert suggestion == "unknown command 'greeet'. Did you mean 'greet'? All: kdbench --help"
    assert failure("greet") == "unknown command 'greet'. All: kdbench --help"


def test_a_left_out_plugin_has_no_command(tmp_path: Path) -> None:
    with installed(write_plugin(tmp_path / "site", "greeter", COMMAND.format(name="greet", word="hello"))):
        assert kdbench("greet").code == 0
        assert failure("--no-plugin", "greeter", "greet") == "unknown command 'greet'. All: kdbench --help"
        assert "greeter" not in kdbench("--no-plugin", "greeter", "list", "plugins").out


def test_a_command_of_ours_cannot_be_redefined(tmp_path: Path) -> None:
    with installed(write_plugin(tmp_path / "site", "thief", COMMAND.format(name="leaderboard", word="mine"))):
        message = failure("anything", code=3)
        assert message == (
            "plugin 'thief': its commands cannot be added: PluginError: the command 'leaderboard' exists already. "
            "Repair or uninstall it, or go on without it: kdbench --no-plugin thief ..."
        )
        assert "mine" not in failure("leaderboard")
        (listed,) = [line for line in kdbench("list", "plugins").out.splitlines() if line.startswith("thief ")]
        assert "  cannot be added  " in listed  # where it comes from is told all the same
        assert failure("--no-plugin", "thief", "anything").startswith("unknown command 'anything'.")


def test_two_plugins_cannot_share_a_command(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "site", "greeter", COMMAND.format(name="greet", word="hello"))
    with installed(write_plugin(folder, "other", COMMAND.format(name="greet", word="bye"))):
        assert "the command 'greet' exists already" in failure("greet", code=3)
        assert kdbench("--no-plugin", "other", "greet").out.startswith("hello")
        assert kdbench("--no-plugin", "greeter", "greet").out.startswith("bye")


def test_a_plugin_that_fails_while_adding_commands_is_named(tmp_path: Path) -> None:
    source = "import kdbench\n\n@kdbench.hookimpl\ndef kdbench_commands(cli):\n    raise RuntimeError('no luck')\n"
    with installed(write_plugin(tmp_path / "site", "unlucky", source)):
        message = failure("xyzzy", code=3)
        assert message.startswith("plugin 'unlucky': its commands cannot be added: RuntimeError: no luck.")
        assert "no luck" in kdbench("--debug", "xyzzy").err.partition("kdbench: plugin")[0]
        assert kdbench("list", "methods").code == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "import no_such_library_at_all\n",
            "fails on import: ModuleNotFoundError: No module named 'no_such_library_at",
        ),
        ("1 / 0\n", "fails on import: ZeroDivisionError"),
        ("import kdbench\n\n@kdbench.hookimpl\ndef kdbench_metods():\n    return []\n", "kdbench_methods"),
        (
            "import kdbench\nfrom kdbench.methods.dkd import DKD\n\n@kdbench.hookimpl\ndef kdbench_methods():\n"
            "    return [DKD]\n",
            "method 'dkd' is registered twice: by plugin 'kdbench.methods.dkd' (kdbench) and by 'faulty' (faulty)",
        ),
    ],
    ids=["missing library", "raises", "misspelt hook", "taken name"],
)
def test_a_faulty_plugin_is_named_and_can_be_left_out(tmp_path: Path, source: str, words: str) -> None:
    with installed(write_plugin(tmp_path / "site", "faulty", source)):
        message = failure("list", "methods", code=3)
        assert words in message
        assert "faulty" in message
        assert kdbench("--no-plugin", "faulty", "list", "methods").code == 0


def test_plugin_check_of_a_good_method() -> None:
    outcome = kdbench("plugin", "check", "student")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert all(line.startswith("student: ") and line.endswith(": ok") for line in lines[:-2])
    assert lines[-2] == "student: on several devices: each computes the losses of its own images"
    assert lines[-1] == "1 method(s) checked, 0 problem(s)"


def test_plugin_check_of_a_bad_method(tmp_path: Path) -> None:
    source = """
import kdbench

class Silent(kdbench.Method[kdbench.Options]):
    name = "silent"
    source = kdbench.Source("Nothing", 2020, "https://example.org")

    def losses(self, batch):
        return {"ce": kdbench.Term(batch.supervised().value.detach(), 1.0)}

@kdbench.hookimpl
def kdbench_methods():
    return [Silent]
"""
    with installed(write_plugin(tmp_path / "site", "silent_method", source)):
        for name in ("silent", "silent_method"):
            outcome = kdbench("plugin", "check", name)
            assert outcome.code == 3
            assert "silent: " in outcome.out
            assert "FAILED: " in outcome.out
            assert not outcome.out.endswith(" 0 problem(s)\n")
