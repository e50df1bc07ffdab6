"""Clamps, cutmix boxes, the moving average of the synergy's accuracy, gates."""

from typing import Any

import torch
from topic import Topic

from adapters.asib import parts
from kdbench.method import total
from kdbench.methods.asib.clamp import kd_scale, limited
from kdbench.methods.asib.gate import gate_in_a, gate_in_b, updated
from kdbench.training.mixing import cutmix_box
from kdbench.types import Term


def run(case: Topic) -> None:
    """Compare one file."""
    for number, stored in enumerate(case.json("cases")):
        KINDS[stored["kind"]](case, f"cases[{number}]", stored)


def loss(case: Topic, key: str, stored: dict[str, Any]) -> None:
    """Compare the limit of a loss, given in two parts, and its derivative."""
    options = parts.options(stored["cfg"], loss_clamp_warmup_epochs=1)
    value = torch.tensor(stored["L"], requires_grad=True)
    terms = {"one": Term(value, 0.25), "other": Term(value, 0.75)}
    found = limited(terms, options, epochs=0 if stored["in_warmup"] else 1)
    sum_ = total(found.terms)
    (slope,) = torch.autograd.grad(sum_, value)
    case.number(f"{key}.out", sum_.item(), stored["out"])
    case.number(f"{key}.dL", slope.item(), stored["dL"])


def kd_max_ratio(case: Topic, key: str, stored: dict[str, Any]) -> None:
    """Compare the limit of KD against CE."""
    options = parts.options({}, kd_max_ratio=stored["kd_max_ratio"], kd_warmup_epochs=stored["kd_warmup_epochs"])
    kd = torch.tensor(stored["kd"])
    scale = kd_scale(torch.tensor(stored["ce"]), kd, options, stored["ep"])
    case.number(f"{key}.scale", scale.item(), stored["scale"])
    case.number(f"{key}.out", (scale * kd).item(), stored["out"])


def box(case: Topic, key: str, stored: dict[str, Any]) -> None:
    """Compare the patch of cutmix; the centre is the middle of a pixel."""
    centre = [(stored["cx"] + 0.5) / stored["W"], (stored["cy"] + 0.5) / stored["H"]]
    corners, share = cutmix_box(stored["lam"], centre, (stored["H"], stored["W"]))
    case.number(f"{key}.out", [*corners, share], stored["out"])


def ema(case: Topic, key: str, stored: dict[str, Any]) -> None:
    """Compare the moving average after each epoch; null = never measured."""
    options = parts.options({"synergy_ema_alpha": stored["synergy_ema_alpha"]})
    last, values = None, []
    for measured in stored["measured_pct"]:
        last = updated(last, measured, options)
        values.append(last)
    case.equal(f"{key}.unmeasured", [v is None for v in values], [v is None for v in stored["out"]])
    numbers = [[v for v in series if v is not None] for series in (values, stored["out"])]
    case.number(f"{key}.out", *numbers)


def gate(case: Topic, key: str, stored: dict[str, Any]) -> None:
    """Compare both gates."""
    options = parts.options({"use_ib": True, "enable_kd_after_syn_acc": stored["thr"]})
    case.equal(f"{key}.open_a", gate_in_a(options, stored["last"]), stored["open_a"])
    case.equal(f"{key}.open_b", gate_in_b(options, stored["last"], teachers=2), stored["open_b"])


KINDS = {"loss": loss, "kd_max_ratio": kd_max_ratio, "cutmix_box": box, "ema": ema, "gate": gate}
