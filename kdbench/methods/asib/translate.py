"""From a resolved ASIB configuration to what this harness knows: protocol, options, pair, and what to tell the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.config.loading import read_yaml
from kdbench.errors import ProblemList, nearest
from kdbench.methods.asib.keys import ALIASES, HOMES, Home, home_of
from kdbench.methods.asib.options import ASIBOptions

OWN = "asib"
# Options of other methods by the names that their files here give them.
COUNTERPARTS = Path(__file__).with_name("counterparts.yaml")
_PRECISIONS = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "float32": "fp32"}
_SCHEDULES = {"cosine": "cosine", "step": "step", "none": "constant"}


@dataclass
class Translation:
    """A configuration in this harness's words.

    Args:
        anchor: Keys of the protocol, dotted.
        options: Options of the method.
        pair: ``student``, ``teacher1``, ``teacher2``, ``overlap_pct``, where they are stated.
        notes: What went elsewhere or has no effect, a sentence each.
    """

    anchor: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    pair: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def translate(config: Mapping[str, Any], method: str = OWN) -> Translation:
    """Translate a flat configuration (see ``layers.resolve``).

    Args:
        config: Values by dotted key.
        method: Method that will be run with it; of others the options have other names.

    Raises:
        ProblemList: With every key that is unknown or whose value cannot be had here.
    """
    made, problems = Translation(), []
    known = {ALIASES.get(key, key): value for key, value in config.items()}
    theirs = read_yaml(COUNTERPARTS).get(method, {}) if method != OWN else {}
    for key, value in known.items():
        homes = home_of(key)
        if key in theirs:
            _of_another(made, key, value, theirs[key], method)
        elif homes is None:
            problems.append(f"{key}: unknown key.{nearest(key, HOMES)}")
        else:
            problems += [text for home in homes if (text := _place(made, key, value, home, method))]
    for convert in (_loss, _weights, _optimizer, _length, _schedule, _data):
        problems += convert(made, known)
    if problems:
        raise ProblemList(problems)
    return made


def _of_another(made: Translation, key: str, value: Any, name: str | None, method: str) -> None:
    if name is None:
        made.notes.append(f"{key}: {value}: has no counterpart in method '{method}' here")
    else:
        made.options[name] = value


def _place(made: Translation, key: str, value: Any, home: Home, method: str) -> str | None:
    """Put a value where it belongs if it means the same there; return why it cannot be had."""
    if home.kind == "option":
        if method == OWN:
            made.options[home.at] = value
        elif key != "kd_target" and value != ASIBOptions.model_fields[home.at].default:
            made.notes.append(f"{key}: {value}: an option of {OWN}, without effect on method '{method}'")
    elif home.kind == "anchor":
        if key == "kd_target" and method == OWN:
            return None
        made.anchor[home.at] = value  # where it means something else there, it is converted below
    elif home.kind in {"given", "refused"} and value not in home.only:
        return f"{key}: {value}: not possible: {home.why}; allowed: {', '.join(map(str, home.only))}"
    elif home.kind == "pair":
        made.pair[_pair_key(key)] = value
    elif home.kind == "accepted":
        _say(made, key, value, home)
    return None


def _pair_key(key: str) -> str:
    return {"model.student.name": "student", "teacher1.name": "teacher1", "teacher2.name": "teacher2"}.get(key, key)


def _say(made: Translation, key: str, value: Any, home: Home) -> None:
    """Note a key without effect; a dead option at its default is not worth a word."""
    fields = ASIBOptions.model_fields
    if key not in fields or value != fields[key].default:
        made.notes.append(f"{key}: {value}: without effect: {home.why}")


def _loss(made: Translation, known: Mapping[str, Any]) -> list[str]:
    """Check that the two weights are shares of one, and fill in the one that is not said."""
    ce, kd = known.get("ce_alpha"), known.get("kd_alpha")
    if ce is not None and kd is None:
        made.anchor["loss.kd_alpha"] = round(1 - ce, 10)
        made.notes.append(f"kd_alpha: is not set; 1 - ce_alpha = {made.anchor['loss.kd_alpha']} is meant")
    if ce is None or kd is None or abs(ce + kd - 1) <= 1e-8:
        return []
    if known.get("auto_renorm") and not known.get("strict_mode", True):
        return []  # the anchor divides them by their sum
    return [f"ce_alpha {ce} + kd_alpha {kd} is {ce + kd:g}; the sum must be 1, or strict_mode false with auto_renorm"]


def _weights(made: Translation, known: Mapping[str, Any]) -> list[str]:
    weights = known.get("teacher_weights")
    if not isinstance(weights, list):
        return []
    names = [known[key] for key in ("teacher1.name", "teacher2.name") if key in known]
    if len(names) != len(weights):
        return [f"teacher_weights: {weights}: of which teachers? Bind them to names: {{name: weight, ..}}"]
    made.anchor["loss.teacher_weights"] = dict(zip(names, weights, strict=True))
    return []


def _optimizer(made: Translation, known: Mapping[str, Any]) -> list[str]:
    made.anchor.pop("optimizer.betas", None)
    if known.get("optimizer") == "adamw":
        for key in ("optimizer.momentum", "optimizer.nesterov"):
            made.anchor.pop(key, None)
        if {"adam_beta1", "adam_beta2"} & known.keys():
            made.anchor["optimizer.betas"] = [known.get("adam_beta1", 0.9), known.get("adam_beta2", 0.999)]
    return []


def _length(made: Translation, known: Mapping[str, Any]) -> list[str]:
    """The student's epochs are the anchor's; the stages share them."""
    epochs, stages = known.get("student_epochs_per_stage"), known.get("num_stages")
    if epochs is None and "student_epochs" in known:
        epochs = [known["student_epochs"]] * (stages or 1)
    made.anchor.pop("schedule.epochs", None)
    if epochs is None:
        return []
    if stages is not None and len(epochs) != stages:
        return [
            f"student_epochs_per_stage: {epochs}: {len(epochs)} stages, but num_stages is {stages}; make them agree"
        ]
    if "student_epochs_per_stage" in made.options:
        made.options["student_epochs_per_stage"] = epochs
    made.anchor["schedule.epochs"] = sum(epochs)
    return []


def _schedule(made: Translation, known: Mapping[str, Any]) -> list[str]:
    anchor, kind = made.anchor, known.get("schedule.type")
    step = anchor.pop("schedule.milestones", None)
    if kind is None:
        return []
    if kind not in _SCHEDULES:
        return [f"schedule.type: {kind}: allowed: {', '.join(_SCHEDULES)}"]
    anchor["schedule.name"] = _SCHEDULES[kind]
    if kind == "step":
        first, every = known.get("schedule.lr_warmup_epochs", 5), step or 30
        anchor["schedule.milestones"] = list(range(first + every, anchor.get("schedule.epochs", 0), every))
    return []


def _data(made: Translation, known: Mapping[str, Any]) -> list[str]:
    """Augmentation and precision: one of their keys here stands for several there, or the other way round."""
    if {"use_amp", "amp_dtype"} & known.keys():
        kind = str(known.get("amp_dtype", "bfloat16"))
        if kind not in _PRECISIONS:
            return [f"amp_dtype: {kind}: allowed: {', '.join(_PRECISIONS)}"]
        made.anchor["step.precision"] = _PRECISIONS[kind] if known.get("use_amp", True) else "fp32"
    level = known.get("dataset.data_aug")
    if level is None:
        return []
    if level not in {0, 1}:
        return [f"dataset.data_aug: {level}: allowed: 0 (none), 1 (crop with reflected padding, mirror)"]
    made.anchor["data.crop_padding"] = 4 * level
    made.anchor["data.mirror"] = level == 1
    made.anchor["data.padding_mode"] = "reflect"
    return []
