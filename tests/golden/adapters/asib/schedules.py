"""Schedules, those of the B-Step and of the student's rate through the harness's own functions."""

from typing import Any

from topic import Topic

from adapters.asib import parts
from kdbench.config.schema import Loss, Schedule
from kdbench.methods.asib.schedules import beta, kd_warmup, tau_in_a
from kdbench.schedule import learning_rate, temperature


def run(case: Topic) -> None:
    """Compare one file."""
    for number, stored in enumerate(case.json("cases")):
        values = [CURVES[stored["fn"]](stored, epoch) for epoch in stored["epochs"]]
        case.number(f"cases[{number}].out", values, stored["out"])


def tau_in_b(stored: dict[str, Any], epoch: int) -> float:
    """Return the anchor's temperature of a student epoch."""
    loss = Loss(ce_alpha=1.0, kd_alpha=0.0, **{key: value for key, value in stored["cfg"].items() if value is not None})
    stage = stored["E_stage"]
    return temperature(loss, epoch % stage, stage, (epoch, stored["E_total"]))


def rate(stored: dict[str, Any], epoch: int) -> float:
    """Return the anchor's learning rate of a student epoch."""
    cfg, epochs = stored["cfg"], stored["E_total"]
    name = {"none": "constant"}.get(cfg["type"], cfg["type"])
    # A constant rate is one from the first epoch on: "none" has no warm-up.
    warmup = 0 if name == "constant" else cfg.get("lr_warmup_epochs", 0)
    settings = {"min_lr": cfg.get("min_lr", 0.0)} if name == "cosine" else {}
    if name == "step":
        first, size = min(warmup, epochs - 1), cfg.get("step_size", 30)
        settings = {"milestones": tuple(range(first + size, epochs, size)), "gamma": cfg.get("gamma", 0.1)}
    return learning_rate(Schedule(name=name, epochs=epochs, warmup_epochs=warmup, **settings), cfg["lr"], epoch)


CURVES = {
    "beta": lambda stored, epoch: beta(parts.options({"ib_beta": 1e-3, **stored["cfg"]}), epoch),
    "tau_A": lambda stored, epoch: tau_in_a(epoch, stored["T_A"], **stored["cfg"]),
    "tau_B": tau_in_b,
    "kd_alpha_eff": lambda stored, epoch: stored["cfg"]["kd_alpha"] * kd_warmup(parts.options(stored["cfg"]), epoch),
    "lr": rate,
}
