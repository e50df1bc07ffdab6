"""Help, version, unknown words, and what a mistake looks like with and without --debug."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commandline import ROOT, failure, kdbench

HEAVY = ("torch", "torchvision", "pydantic", "sklearn", "scipy", "numpy", "timm")
COMMANDS = (
    "run", "plan", "list", "show", "ablate", "teacher", "status", "cancel", "leaderboard", "verify", "merge", "plugin",
)  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], ["teacher", "import", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom kdbench.cli import main\ntry:\n"
        f"    main({words!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines()[-1] == "loaded:"
    assert run.stderr == ""


def test_help_names_every_command() -> None:
    outcome = kdbench("--help")
    assert outcome.code == 0
    lines = [line.split()[0] for line in outcome.out.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert [word for word in lines if word in COMMANDS] == list(COMMANDS)
    assert "run-one" not in lines
    assert kdbench("-h") == outcome


def test_no_words_show_the_help_and_fail() -> None:
    outcome = kdbench()
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("Usage: kdbench [OPTIONS] COMMAND [ARGS]...")


def test_version() -> None:
    import kdbench as package

    assert kdbench("--version").out == f"kdbench, version {package.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    outcome = kdbench(command, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"Usage: kdbench {command} [OPTIONS]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["leaderbord"], "unknown command 'leaderbord'. Did you mean 'leaderboard'? All: kdbench --help"),
        (["xyzzy"], "unknown command 'xyzzy'. All: kdbench --help"),
        (["teacher", "imprt"], "unknown command 'imprt'. Did you mean 'import'? All: kdbench teacher --help"),
        (["run", "--pair", "tiny"], "Missing option '--method'."),
        (["run", "--methods", "x", "--pair", "tiny"], "--methods"),
        (["list", "method"], "'method' is not one of 'methods', 'backbones'"),
        (["--no-plugin", "nobody", "list", "methods"], "--no-plugin: unknown plugin 'nobody'."),
        (["plugin", "check", "nobody"], "unknown method 'nobody'. All: kdbench list methods"),
        (["plugin", "check", "kdbench.backbones.vgg"], "brings no method, and the kit checks methods alone"),
        (["show", "keras:resnet18"], "unknown library 'keras'. All: timm:MODEL, torchvision:MODEL"),
        (
            ["plan", "--method", "student", "--pair", "tiny", "--cache-size", "inf"],
            "inf is no such size; the largest is 1e+09.",
        ),
        (
            ["plan", "--method", "student", "--pair", "tiny", "--memory", "nan"],
            "nan is no such size; the largest is 1e+09.",
        ),
        (
            ["run", "--method", "student", "--pair", "tiny", "--timeout", "inf"],
            "inf is no such size; the largest is 1e+09.",
        ),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    assert message in failure(*words)


def test_debug_shows_the_traceback_and_keeps_message_and_exit_code() -> None:
    plain, debug = kdbench("show", "nothing"), kdbench("--debug", "show", "nothing")
    assert plain.code == debug.code == 2
    assert "Traceback" not in plain.err
    assert debug.err.startswith("Traceback (most recent call last):")
    assert "kdbench.errors.ConfigError: unknown name 'nothing'" in debug.err
    assert debug.err.endswith(plain.err)
