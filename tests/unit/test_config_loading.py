"""Anchor files: YAML without its traps, inheritance, locks, and every problem of a file in one message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.config.loading import load_anchor, parse_yaml, read_yaml
from kdbench.config.schema import Anchor
from kdbench.errors import ConfigError, ProblemList

Write = Callable[..., Path]
LoadFile = Callable[[Path], Anchor]


def message(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return str(caught.value)


def problems(function: Callable[..., object], *arguments: object) -> tuple[str, ...]:
    with pytest.raises(ProblemList) as caught:
        function(*arguments)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E+2", 500.0),
        ("-2.5e1", -25.0),
        (".5", 0.5),
        ("4.", 4.0),
        ("7", 7),
        ("-7", -7),
        ("1_000", 1000),
        ("0", 0),
        (".inf", float("inf")),
        # Text, which the schema then reads or refuses: YAML 1.1 says 8, 90 and 16.
        ("010", "010"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("true", True),
        ("null", None),
        ("[1, 2e0]", [1, 2.0]),
    ],
)
def test_scalars(text: str, value: object) -> None:
    read = parse_yaml(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nname: y\n", ":2: not valid YAML: key 'name' appears twice"),
        ("loss:\n  tau: 1\n  tau: 1\n", ":3: not valid YAML: key 'tau' appears twice"),
        ("1: x\n", ":1: not valid YAML: key 1 is not text"),
        ("on: x\n", ":1: not valid YAML: key True is not text"),
        ("? [a, b]\n: x\n", ":1: not valid YAML: key ['a', 'b'] is not text"),
        ("a: [1\nb: 2\n", ":2: not valid YAML: expected ',' or ']'"),
        ("a: !!python/object/apply:os.system [id]\n", ":1: not valid YAML: tag tag:yaml.org,2002:python/object/apply"),
        ("a: !!int ''\n", ":1: not valid YAML: tag tag:yaml.org,2002:int: write the value alone"),
        ("a: !!timestamp x\n", ":1: not valid YAML: tag tag:yaml.org,2002:timestamp: write the value alone"),
        ("a: 1\nb: !!bool x\n", ":2: not valid YAML: tag tag:yaml.org,2002:bool: write the value alone"),
        ("!!set {a}\n", ":1: not valid YAML: tag tag:yaml.org,2002:set: write the value alone"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
        ("name: 2024-99-99\n", ": not valid YAML: month must be in 1..12"),
        ("- a\n", ": holds list, not a mapping"),
        ("", ": holds NoneType, not a mapping"),
        ("just text\n", ": holds str, not a mapping"),
        ("a: &x 1\nb: *x\n", ":2: not valid YAML: alias *x: write it out"),
        ("loss: &a {tau: *a}\n", ":1: not valid YAML: alias *a: write it out"),
        ("a: &a {t: 1}\nb:\n  <<: *a\n", ":3: not valid YAML: alias *a"),
        ("a: " + "[" * 5000, ": not valid YAML: maximum recursion depth"),
        ("a: " + "{a: " * 5000, ": not valid YAML: maximum recursion depth"),
        ("a: \x00\n", ": not valid YAML: "),
    ],
)
def test_not_a_mapping_of_text_to_values(write: Write, text: str, said: str) -> None:
    path = write(text)
    assert message(read_yaml, path).startswith(f"{path}{said}")


def test_alias_bomb_is_refused_before_it_unfolds(write: Write) -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in range(1, 12)]
    assert "alias *a0: write it out" in message(read_yaml, write("\n".join(lines)))


def test_file_that_is_no_small_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    assert message(read_yaml, path) == f"{path}: is not UTF-8 text; a configuration file is YAML"
    path.write_bytes(b"")
    os.truncate(path, (1 << 20) + 1)
    assert message(read_yaml, path) == f"{path}: larger than 1048576 bytes; a configuration file is small text"
    assert message(read_yaml, tmp_path) == f"{tmp_path}: cannot be read (Is a directory); check the path"
    gone = tmp_path / "gone.yaml"
    assert message(read_yaml, gone) == f"{gone}: cannot be read (No such file or directory); check the path"


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(tmp_path / "x.yaml") == {"name": "x"}


def test_unknown_anchor_names_the_nearest(load_file: LoadFile) -> None:
    said = message(load_file, Path("fair_basline"))
    assert said == "unknown anchor 'fair_basline'. Did you mean 'fair_baseline'? All: kdbench list anchors"


def test_everything_wrong_with_a_file_at_once(write: Write, load_file: LoadFile) -> None:
    path = write(
        "name: a/b\nnmae: x\nloss: {ce_alpha: -1, kd_alpha: yes, tua: 4}\noptimizer: {lr: .nan, weight_decay: .inf}\n"
        "schedule: {epochs: 010000}\ndata: {batch_size: 1:30, crop_padding: '4x'}\n"
    )
    said = problems(load_file, path)
    assert len(said) == 10
    where = f"anchor {path}: "
    assert all(text.startswith(where) for text in said)
    starts = {text.removeprefix(where).partition(": ")[0] for text in said}
    assert starts == {
        "name is 'a/b'",
        "nmae",
        "loss.ce_alpha is -1",
        "loss.kd_alpha is True",
        "loss.tua",
        "optimizer.lr is nan",
        "optimizer.weight_decay is inf",
        "data.batch_size is '1:30'",
        "data.crop_padding is '4x'",
        "step",
    }
    assert (
        f"{where}loss.tua: unknown key. Did you mean 'tau'? Allowed: ce_alpha, ce_label_smoothing, kd_alpha"
        in "\n".join(said)
    )
    assert f"{where}nmae: unknown key. Did you mean 'name'?" in "\n".join(said)
    assert f"{where}step: required, but missing" in said
    assert f"{where}loss.kd_alpha is True: input should be a valid number" in said


def test_numeric_text_is_a_number_and_decimal(write: Write, load_file: LoadFile) -> None:
    path = write("extends: minimal.yaml\nname: m\nschedule: {epochs: 010}\noptimizer: {lr: '5e-05'}\n")
    anchor = load_file(path)
    assert (anchor.schedule.epochs, anchor.optimizer.lr) == (10, 5e-5)


def test_long_values_are_cut_in_messages(write: Write, load_file: LoadFile) -> None:
    (said,) = problems(load_file, write(f"extends: minimal.yaml\nname: {'x' * 5000}\n"))
    assert "name is 'xxx" in said
    assert len(said) < 400


def test_extends_merges_key_by_key(write: Write, load_file: LoadFile) -> None:
    write(
        "extends: minimal.yaml\nname: middle\nversion: 7\noptimizer: {momentum: 0.5}\nlocked: [optimizer.lr]\n",
        "b.yaml",
    )
    anchor = load_file(write("extends: b.yaml\nname: leaf\noptimizer: {nesterov: true}\n"))
    assert anchor.optimizer.model_dump(include={"lr", "momentum", "nesterov", "weight_decay"}) == {
        "lr": 0.2,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.0,
    }
    assert anchor.lineage == ("middle", "minimal")
    assert anchor.family == "minimal"
    assert anchor.label == "leaf-v1"  # neither name nor version is inherited
    assert anchor.locked == ("loss.tau", "loss.ce_label_smoothing", "optimizer.lr_by_student", "optimizer.lr")


def test_lists_replace(write: Write, load_file: LoadFile) -> None:
    write("extends: minimal.yaml\nname: b\nschedule: {milestones: [1, 2]}\n", "b.yaml")
    anchor = load_file(write("extends: b.yaml\nname: leaf\nschedule: {milestones: [3]}\n"))
    assert anchor.schedule.milestones == (3,)


@pytest.mark.parametrize("target", ["mine.yaml", "../{folder}/mine.yaml", "other.yaml"])
def test_a_file_that_extends_itself(write: Write, load_file: LoadFile, target: str, tmp_path: Path) -> None:
    write("extends: mine.yaml\nname: other\n", "other.yaml")
    path = write(f"extends: {target.format(folder=tmp_path.name)}\nname: mine\n")
    assert "extends itself through mine.yaml" in message(load_file, path)


@pytest.mark.parametrize(
    ("parent", "name"), [("minimal.yaml", "minimal"), ("b.yaml", "minimal"), ("minimal.yaml", "''")]
)
def test_a_name_of_its_own(write: Write, load_file: LoadFile, parent: str, name: str) -> None:
    write("extends: minimal.yaml\nname: b\n", "b.yaml")
    path = write(f"extends: {parent}\nname: {name}\n")
    assert message(load_file, path) == f"{path}: name: an anchor that extends '{parent}' needs a name of its own"


def test_locked_key_names_both_values_and_files(write: Write, load_file: LoadFile, tmp_path: Path) -> None:
    path = write("extends: minimal.yaml\nname: m\nloss: {tau: 2, kd_alpha: 0.6}\n")
    base = tmp_path / "minimal.yaml"
    assert problems(load_file, path) == (
        f"{path}: loss.tau is 2, but {base} locks it at 3.0; remove the key, or write an anchor that extends nothing",
    )


@pytest.mark.parametrize(
    ("line", "key", "now", "fixed"),
    [
        ("loss: {ce_label_smoothing: 0.1}", "loss.ce_label_smoothing", "0.1", "0.0"),  # locked at its default
        ("optimizer: {lr_by_student: {resnet8: 0.9}}", "optimizer.lr_by_student", "{'resnet8': 0.9}", "{}"),
        ("strict_mode: false", "strict_mode", "False", "True"),
    ],
)
def test_locks_hold_for_defaults_tables_and_strictness(
    write: Write, load_file: LoadFile, tmp_path: Path, line: str, key: str, now: str, fixed: str
) -> None:
    path = write(f"extends: minimal.yaml\nname: m\n{line}\n")
    (said,) = problems(load_file, path)
    assert said.startswith(f"{path}: {key} is {now}, but {tmp_path / 'minimal.yaml'} locks it at {fixed}; ")


def test_strictness_that_is_only_a_default_cannot_be_switched_off(write: Write, load_file: LoadFile) -> None:
    base = Path(write("", "unused.yaml")).with_name("minimal.yaml").read_text().replace("strict_mode: true\n", "")
    write(base.replace("minimal", "tacit"), "tacit.yaml")
    (said,) = problems(load_file, write("extends: tacit.yaml\nname: m\nstrict_mode: false\n"))
    assert "strict_mode is False" in said
    assert "tacit.yaml locks it at True" in said


def test_locks_of_grandparents_hold_and_all_are_reported(write: Write, load_file: LoadFile, tmp_path: Path) -> None:
    write("extends: minimal.yaml\nname: b\nschedule: {epochs: 9}\nlocked: [schedule.epochs]\n", "b.yaml")
    path = write("extends: b.yaml\nname: m\nloss: {tau: 1.0, ce_label_smoothing: 0.5}\nschedule: {epochs: 8}\n")
    said = problems(load_file, path)
    assert len(said) == 3
    assert f"{path}: schedule.epochs is 8, but {tmp_path / 'b.yaml'} locks it at 9" in "\n".join(said)


def test_the_same_value_is_no_change(write: Write, load_file: LoadFile) -> None:
    path = write(
        "extends: minimal.yaml\nname: m\nloss: {tau: 3, ce_label_smoothing: 0}\nlocked: []\nstrict_mode: true\n"
    )
    assert load_file(path).locked[:1] == ("loss.tau",)


def test_without_strict_mode_locks_may_change(write: Write, load_file: LoadFile, tmp_path: Path) -> None:
    loose = (tmp_path / "minimal.yaml").read_text().replace("strict_mode: true", "strict_mode: false")
    write(loose.replace("minimal", "loose"), "loose.yaml")
    assert load_file(write("extends: loose.yaml\nname: m\nloss: {tau: 9}\n")).loss.tau == 9


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("loss: 3", "loss is 3: input should be a valid dictionary"),
        ("freezing: null", "freezing is None: input should be a valid dictionary"),
        ("locked: 3", "locked is 3: input should be a valid tuple"),
        ("locked: loss.tau", "locked is 'loss.tau': input should be a valid tuple"),
        ("locked: [{a: 1}]", "locked.3 is {'a': 1}: input should be a valid string"),
        ("locked: [loss.tua]", "locked: 'loss.tua' is not a key of an anchor"),
        ("optimizer: {name: adamw, nesterov: true}", "optimizer.nesterov belongs to sgd"),
        ("step: {accumulate: 3}", "step.accumulate 3 must divide data.batch_size 16"),
        ("loss: {kd_alpha: 0.5}", "loss.ce_alpha 0.4 + loss.kd_alpha 0.5 is 0.9; the sum must be 1"),
    ],
)
def test_wrong_sections(write: Write, load_file: LoadFile, line: str, said: str) -> None:
    path = write(f"extends: minimal.yaml\nname: m\n{line}\n")
    assert said in message(load_file, path)


def test_extends_by_name_and_unknown_parent(write: Write, load_file: LoadFile) -> None:
    assert load_file(write("extends: crd\nname: m\nschedule: {epochs: 3}\n")).family == "crd"
    path = write("extends: crdd\nname: m\n")
    assert message(load_file, path).startswith(f"{path}: extends: unknown anchor 'crdd'. Did you mean 'crd'?")


def renormalised(tmp_path: Path, alphas: str) -> Anchor:
    text = (tmp_path / "minimal.yaml").read_text().replace("strict_mode: true", "strict_mode: false\nauto_renorm: true")
    (tmp_path / "r.yaml").write_text(text.replace("ce_alpha: 0.4, kd_alpha: 0.6", alphas))
    return load_anchor(str(tmp_path / "r.yaml"), {})


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [
        ("ce_alpha: 0.7, kd_alpha: 0.4", (0.7 / 1.1, 0.4 / 1.1)),
        ("ce_alpha: 3, kd_alpha: 1", (0.75, 0.25)),
        ("ce_alpha: 0, kd_alpha: 0", (0.5, 0.5)),
    ],
)
def test_auto_renorm(write: Write, tmp_path: Path, alphas: str, expected: tuple[float, float]) -> None:
    loss = renormalised(tmp_path, alphas).loss
    assert (loss.ce_alpha, loss.kd_alpha) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("alphas", "said"),
    [
        ("kd_alpha: 1", "loss.ce_alpha: required, but missing"),
        ("ce_alpha: null, kd_alpha: 1", "loss.ce_alpha is None: input should be a valid number"),
        ("ce_alpha: [1], kd_alpha: 1", "loss.ce_alpha is [1]: input should be a valid number"),
        ("ce_alpha: x, kd_alpha: 1", "loss.ce_alpha is 'x': input should be a valid number"),
        ("ce_alpha: -1, kd_alpha: 3", "loss.ce_alpha is -0.5: input should be greater than or equal to 0"),
        ("ce_alpha: .inf, kd_alpha: 1", "loss.ce_alpha is nan: "),
    ],
)
def test_auto_renorm_of_what_is_no_weight(write: Write, tmp_path: Path, alphas: str, said: str) -> None:
    assert said in message(renormalised, tmp_path, alphas)


def test_auto_renorm_needs_strict_mode_off(write: Write, load_file: LoadFile) -> None:
    path = write("extends: minimal.yaml\nname: m\nauto_renorm: true\n")
    assert message(load_file, path) == f"anchor {path}: auto_renorm: true needs strict_mode: false"


def test_sum_of_one_up_to_rounding(write: Write, load_file: LoadFile, tmp_path: Path) -> None:
    text = (tmp_path / "minimal.yaml").read_text()
    fine = write(text.replace("ce_alpha: 0.4", "ce_alpha: 0.400000001"))
    assert load_file(fine).loss.ce_alpha == 0.400000001
    off = write(text.replace("ce_alpha: 0.4", "ce_alpha: 0.40000002"))
    assert "the sum must be 1" in message(load_file, off)


def test_hash_covers_values_and_not_the_description(write: Write, load_file: LoadFile) -> None:
    def digest(text: str) -> str:
        return load_file(write(f"extends: minimal.yaml\nname: m\n{text}")).sha256

    plain = digest("")
    assert digest("description: other words\n") == plain
    assert digest("loss: {tau: 3}\n") == plain
    others = [digest(line) for line in ("version: 2\n", "schedule: {epochs: 5}\n", "locked: [schedule.epochs]\n")]
    assert len({plain, *others}) == 4


# --- weights of teachers ----------------------------------------------------------------------------------------------


def test_weights_of_teachers_in_order_or_by_name(write: Write, load_file: LoadFile) -> None:
    first = write("extends: minimal.yaml\nname: first\nloss: {teacher_weights: {a: 1, b: 2}}\n", "first.yaml")
    assert load_file(first).loss.teacher_weights == {"a": 1.0, "b": 2.0}
    assert load_file(first).keys()["loss.teacher_weights"] == {"a": 1.0, "b": 2.0}
    assert not [key for key in load_file(first).keys() if key.startswith("loss.teacher_weights.")]  # noqa: SIM118
    # A file that extends it gives other teachers' weights: none of the old names stays.
    second = write("extends: first.yaml\nname: second\nloss: {teacher_weights: {b: 3, c: 4}}\n")
    assert load_file(second).loss.teacher_weights == {"b": 3.0, "c": 4.0}
    third = write("extends: first.yaml\nname: third\nloss: {teacher_weights: [3, 4]}\n")
    assert load_file(third).loss.teacher_weights == (3.0, 4.0)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("{a: 1, b: -1}", "loss.teacher_weights.b is -1: input should be greater than 0"),
        ("{a: .inf}", "loss.teacher_weights.a is inf: input should be a finite number"),
        ("[1, 0]", "loss.teacher_weights.1 is 0: input should be greater than 0"),
        ("{a: 1, b: yes}", "loss.teacher_weights.b is True: input should be a number"),
        ("[1, no]", "loss.teacher_weights.1 is False: input should be a number"),
        ("heavy", "loss.teacher_weights is 'heavy': input should be a valid tuple"),
        ("3", "loss.teacher_weights is 3: input should be a valid tuple"),
    ],
)
def test_wrong_weights_of_teachers(write: Write, load_file: LoadFile, weights: str, said: str) -> None:
    path = write(f"extends: minimal.yaml\nname: mine\nloss: {{teacher_weights: {weights}}}\n")
    assert problems(load_file, path) == (f"anchor {path}: {said}",)


def test_locked_weights_of_teachers(write: Write, load_file: LoadFile) -> None:
    text = "locked: [loss.teacher_weights]\nloss: {teacher_weights: {a: 1, b: 2}}\n"
    write(f"extends: minimal.yaml\nname: first\n{text}", "first.yaml")
    same = write("extends: first.yaml\nname: mine\nloss: {teacher_weights: {b: 2, a: 1}}\n")
    assert load_file(same).loss.teacher_weights == {"a": 1.0, "b": 2.0}
    (said,) = problems(load_file, write("extends: first.yaml\nname: mine\nloss: {teacher_weights: {a: 1}}\n"))
    assert "loss.teacher_weights is {'a': 1}, but" in said
    assert "locks it at {'a': 1, 'b': 2}" in said
