"""Checks of what a method says of itself: name, source, options, deviations, supported pairs."""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from kdbench.config.loading import validate
from kdbench.config.schema import Name
from kdbench.errors import FAULTS, KdbenchError
from kdbench.method import Options
from kdbench.options import deviations_of
from kdbench.testing.bench import Bench, shipped_anchor
from kdbench.testing.failure import CheckFailure
from kdbench.testing.outcome import check
from kdbench.types import Source

ANCHORS = ("fair_baseline", "crd")


@check()
def check_name(bench: Bench) -> None:
    """The method has a name fit for paths and commands, and a version."""
    name = getattr(bench.method_type, "name", None)
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise CheckFailure(
            f"{bench.method_type.__name__}: name is {name!r}; a name is 1 to 64 letters, digits, '.', '_' or '-', the "
            "first a letter or digit. Set the class attribute name, e.g. name = 'my_method'"
        ) from None
    version = bench.method_type.version
    if not isinstance(version, int) or version < 1:
        raise CheckFailure(f"{bench}: version is {version!r}; a version is a whole number from 1 on")


@check()
def check_source(bench: Bench) -> None:
    """The method says which paper it comes from."""
    source = getattr(bench.method_type, "source", None)
    if not isinstance(source, Source):
        raise CheckFailure(
            f"{bench}: source is {source!r}; set source = kdbench.Source(title=..., year=..., url=...) of its paper"
        )
    wrong = {
        "title": not source.title.strip(),
        "year": not 1950 <= source.year <= 2100,
        "url": not source.url.startswith(("https://", "http://")),
    }
    if bad := [field for field, is_wrong in wrong.items() if is_wrong]:
        raise CheckFailure(
            f"{bench}: source.{bad[0]} is {getattr(source, bad[0])!r}; give title, year (1950 to 2100) and the link "
            "(https://...) under which a reader finds the paper"
        )


@check(structural=True)
def check_options(bench: Bench) -> None:
    """Every option has a default and a description, options survive JSON, and recommended values are options."""
    options_type = bench.method_type.options_type
    if not (isinstance(options_type, type) and issubclass(options_type, Options)):
        raise CheckFailure(f"{bench}: options_type is {options_type!r}; it must be a subclass of kdbench.Options")
    for key in ("frozen", "extra"):
        if options_type.model_config.get(key) != Options.model_config[key]:
            raise CheckFailure(
                f"{bench}: {options_type.__name__} changes model_config['{key}']; leave it as kdbench.Options has it, "
                "so that unknown options are errors and a run's options cannot change"
            )
    for name, field in options_type.model_fields.items():
        if field.is_required():
            raise CheckFailure(f"{bench}: option '{name}' has no default; give it the published value")
        if not (field.description or "").strip():
            raise CheckFailure(f"{bench}: option '{name}' has no description; add Field(..., description='...')")
    _check_json(bench, options_type)
    for family in ANCHORS:
        values = bench.method_type.recommended(family, bench.pair)
        try:
            validate(options_type, values, f"{bench}: recommended('{family}', ...)")
        except KdbenchError as error:
            raise CheckFailure(str(error)) from error


def _check_json(bench: Bench, options_type: type[Options]) -> None:
    try:
        options = options_type()
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckFailure(
            f"{bench}: the default of option '{'.'.join(map(str, first['loc']))}' is not valid: {first['msg']}; give a "
            "default within the option's own range"
        ) from None
    for name in options_type.model_fields:
        advice = "use numbers, text, booleans, enums, or tuples and frozen models of these"
        try:
            text = json.dumps(options.model_dump(mode="json")[name], allow_nan=False)
            back = options_type.model_validate({name: json.loads(text)})
        except FAULTS as error:
            raise CheckFailure(f"{bench}: option '{name}' cannot be written as JSON ({error}); {advice}") from error
        if getattr(back, name) != getattr(options, name):
            raise CheckFailure(
                f"{bench}: option '{name}' is {getattr(options, name)!r} before and {getattr(back, name)!r} after a "
                f"round trip through JSON; {advice}"
            )


@check(structural=True)
def check_deviations(bench: Bench) -> None:
    """Deviations and owned keys are keys of an anchor, and no option overrides a locked key undeclared."""
    for family in ANCHORS:
        options = bench.method_type.options_type(**bench.method_type.recommended(family, bench.pair))
        try:
            deviations_of(bench.method_type, shipped_anchor(family), options)
        except KdbenchError as error:
            raise CheckFailure(str(error)) from error
    if bad := [d.key for d in bench.method_type.deviations if not d.reason.strip()]:
        raise CheckFailure(f"{bench}: the deviation of '{bad[0]}' has no reason; say in one sentence why it is needed")


@check(structural=True)
def check_supports(bench: Bench) -> None:
    """``supports`` answers with a reason or None, and the pair at hand is one it supports."""
    info = bench.info
    swapped = replace(info, student=info.teachers[0], teachers=(info.student,) * len(info.teachers))
    for pair in (info, swapped):
        answer = bench.method_type.supports(pair)
        if answer is not None and not (isinstance(answer, str) and answer.strip()):
            raise CheckFailure(
                f"{bench}: supports() returned {answer!r}; return None if the pair can be trained, else the reason why "
                "not, as text"
            )
    if reason := bench.method_type.supports(info):
        raise CheckFailure(
            f"{bench}: supports() declines the pair of this check, {info.student.name} from "
            f"{', '.join(t.name for t in info.teachers)}: {reason}. Name backbones it can train: "
            "check_method(..., pair=kdbench.types.Pair('kit', STUDENT, (TEACHER,), 'digits'))"
        )
