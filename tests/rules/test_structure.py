"""Rules of the code base that no linter knows."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import click
import pytest

from kdbench.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kdbench"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FUNCTION = 40
# Methods whose names are words of their own: the network that every method trains, and the protocol of one paper.
ALSO_A_WORD = {"student", "crd"}
SHORT = 3  # names so short are looked for as whole string constants only: "at" is English


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): length(path) for path in SOURCES if length(path) > 400}
    assert not long
    assert statistics.median(map(length, SOURCES)) < 120


def test_functions_are_short() -> None:
    """Counts the lines of the body after the docstring: arguments and documentation may take their room."""
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {lines}")
    assert not long


def constants(path: Path) -> set[str]:
    """Return the string constants of a Python file, or the words of another one."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return set(re.findall(r"[\w.-]+", text))
    nodes = ast.walk(ast.parse(text))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def is_own(path: Path, own: Path) -> bool:
    """Return whether a file is the one that registers a method, or lies in the package that does."""
    return own.parent in path.parents if own.name == "__init__.py" else path == own


def may_name_methods(path: Path) -> bool:
    """Return whether a file is data about methods: presets and ladders of a method's package, or claims."""
    folders = (PACKAGE / "methods", PACKAGE / "leaderboard" / "claims")
    return path.suffix == ".yaml" and any(folder in path.parents for folder in folders)


def test_no_method_is_named_outside_its_own_file(registry: Registry) -> None:
    found = []
    for name in set(registry.methods) - ALSO_A_WORD:
        own = Path(registry.methods.owner(name).file)
        word = re.compile(rf"(?<![.\w]){re.escape(name)}\b")
        for path in (*SOURCES, *PACKAGE.rglob("*.yaml")):
            if is_own(path, own) or may_name_methods(path):
                continue
            named = name in constants(path) if len(name) <= SHORT else word.search(path.read_text(encoding="utf-8"))
            # An English "at" in a description is no name of a method.
            if named and not (name == "at" and path.suffix == ".yaml"):
                found.append(f"{name} in {path.relative_to(ROOT)}")
    assert not found


def test_only_the_evaluator_reads_test_data() -> None:
    reading = [path for path in SOURCES if re.search(r"\.test\(\)", path.read_text(encoding="utf-8"))]
    # A dataset made from another one passes on what it is asked for.
    assert [path.relative_to(PACKAGE).as_posix() for path in reading] == ["datasets/overlap.py", "evaluation.py"]


def test_every_hook_is_documented() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    hooks = re.findall(r"^def (kdbench_\w+)", (PACKAGE / "hooks.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(hooks) == 13
    assert [hook for hook in hooks if hook not in text] == []


def test_the_tutorial_method_is_the_plugin_that_is_tested() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    plugin = (ROOT / "plugins" / "kdbench-dist" / "kdbench_dist.py").read_text(encoding="utf-8")
    assert plugin.strip() in readme
    assert len(plugin.splitlines()) < 60


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *ROOT.glob("docs/**/*.md"), *ROOT.glob("leaderboards/**/README.md"), *ROOT.glob("plugins/*/README.md"),
]  # fmt: skip
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


@each_document
def test_documents_name_only_commands_that_exist(path: Path, registry: Registry) -> None:
    from kdbench.cli.main import _COMMANDS, add_commands

    brought = click.Group()
    for implementation in registry.hook.kdbench_commands.get_hookimpls():
        add_commands(brought, implementation)
    used = set(
        re.findall(r"(?:^|`|then `|&& |')kdbench ([a-z][a-z-]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert used <= {*_COMMANDS, *brought.commands}


@each_document
def test_documents_name_only_pairs_and_protocols_that_exist(path: Path, registry: Registry) -> None:
    """Names in lower case are real ones; NAME, P and files stand for the reader's own."""
    text = path.read_text(encoding="utf-8")
    tables = {"pair": registry.pairs, "anchor": registry.anchors, "preset": registry.presets}
    for option, table in tables.items():
        listed = re.findall(rf"--{option} ([a-z0-9][\w,-]*)(?![\w./|])", text)
        names = {name for names in listed for name in names.split(",")} - {"all"}
        # "--anchor names the protocol" is English
        assert names - {"names"} <= set(table.as_mapping())


@pytest.mark.parametrize("name", ["docs/reliability.md", "docs/asib.md"])
def test_documents_name_only_tests_that_exist(name: str) -> None:
    """These pages say of each promise which test holds it."""
    named = re.findall(r"`(?:tests/)?([\w/.-]*test_\w+\.py)(?:::(\w+))?`", (ROOT / name).read_text(encoding="utf-8"))
    assert named
    for file, function in named:
        found = [path for path in (ROOT / "tests").rglob("test_*.py") if path.as_posix().endswith("/" + file)]
        assert found, file
        assert not function or any(f"def {function}(" in path.read_text(encoding="utf-8") for path in found), function
