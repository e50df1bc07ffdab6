"""Where each key of an ASIB configuration has its home here: one table, from the user's names to ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kdbench.methods.asib.options import DEAD, ASIBOptions

Kind = Literal["anchor", "option", "command", "pair", "teacher", "given", "refused", "accepted"]


@dataclass(frozen=True)
class Home:
    """Where a key went.

    Args:
        kind: ``anchor`` key or ``option`` of the method, both named in ``at``; ``command``: part of the command line;
            ``pair``, ``teacher``: of the pair file or the teachers' artefacts; ``given``: what always holds here;
            ``refused``: not possible; ``accepted``: read and without effect.
        at: The place, in its own words.
        why: What a reader should know.
        only: For ``given`` and ``refused``: the values that are as good as what holds here; others are refused.
    """

    kind: Kind
    at: str = ""
    why: str = ""
    only: tuple[Any, ...] = ()


def anchor(*keys: str, why: str = "") -> tuple[Home, ...]:
    """Return the home of what the protocol says."""
    return tuple(Home("anchor", key, why) for key in keys)


def option(name: str) -> Home:
    """Return the home of what is the method's own."""
    return Home("option", name)


def command(text: str, why: str = "") -> tuple[Home, ...]:
    """Return the home of what each command says anew."""
    return (Home("command", text, why),)


def accepted(why: str) -> tuple[Home, ...]:
    """Return the home of what has no effect."""
    return (Home("accepted", "", why),)


def given(why: str, *only: Any) -> tuple[Home, ...]:
    """Return the home of what holds whether it is said or not."""
    return (Home("given", "", why, only),)


_NO_WORKERS = accepted("images stay in memory and are augmented in batches: there are no loader processes")
_TEACHERS_MEASURED = accepted("every teacher's test accuracy stands in its artefact; see kdbench teacher verify")
_WANDB = accepted("curves are a plugin's business: plugins/kdbench-wandb, or the hook kdbench_epoch_ended")
_LEARNING_IN_TASKS = "learning task by task is no distillation run and has no place in a preset"
_RECIPE = "kdbench teacher train --recipe, or the teacher's own file with --teacher"

HOMES: dict[str, tuple[Home, ...]] = {
    **{name: (option(name),) for name in ASIBOptions.model_fields},
    **{name: (Home("accepted", name, "read nowhere in the training of the original"),) for name in DEAD},
    # where and by what it runs
    "device": command("--device"),
    "seed": command("--seeds, --seed-list", "several seeds to a command"),
    "small_input": given("up to 64 pixels every stem keeps the resolution", True),
    "results_dir": command("--out"),
    "exp_id": command("--variant", "a run is found by protocol, dataset, pair, method, variant and seed"),
    "method": command("--method"),
    "name": command("--method"),
    # data
    "dataset.name": command("--dataset", "the pair's own unless the command names one"),
    "dataset.root": command("--data"),
    "dataset.data_aug": anchor("data.crop_padding", "data.padding_mode", "data.mirror", why="0 or 1"),
    "dataset.small_input": given("up to 64 pixels every stem keeps the resolution", True),
    "dataset.batch_size": anchor("data.batch_size"),
    "dataset.num_workers": _NO_WORKERS,
    "dataset.pin_memory": _NO_WORKERS,
    "dataset.persistent_workers": _NO_WORKERS,
    "dataset.prefetch_factor": _NO_WORKERS,
    "dataset.backend": command("--dataset", "cifar100, or npz:PATH: the same images"),
    "mixup_alpha": anchor("data.mixup_alpha"),
    "cutmix_alpha_distill": anchor("data.cutmix_alpha"),
    # length and precision
    "num_stages": (option("num_stages"), Home("anchor", "schedule.epochs", "stages times their epochs")),
    "student_epochs_per_stage": (
        option("student_epochs_per_stage"),
        Home("anchor", "schedule.epochs", "their sum"),
    ),
    "student_epochs": (option("student_epochs_per_stage"), Home("anchor", "schedule.epochs", "stages times it")),
    "use_amp": anchor("step.precision", why="with amp_dtype"),
    "amp_dtype": anchor("step.precision", why="with use_amp"),
    "grad_scaler_init_scale": accepted("fp16 has a scaler with its library's own first scale"),
    "use_channels_last": anchor("step.channels_last"),
    # the student's optimizer
    "optimizer": anchor("optimizer.name"),
    "student_lr": anchor("optimizer.lr"),
    "student_weight_decay": anchor("optimizer.weight_decay"),
    "b_step_momentum": anchor("optimizer.momentum", why="with sgd"),
    "b_step_nesterov": anchor("optimizer.nesterov", why="with sgd"),
    "adam_beta1": (option("adam_beta1"), Home("anchor", "optimizer.betas", "the first, with adamw")),
    "adam_beta2": (option("adam_beta2"), Home("anchor", "optimizer.betas", "the second, with adamw")),
    "schedule.type": anchor("schedule.name", why="none is called constant"),
    "schedule.lr_warmup_epochs": anchor("schedule.warmup_epochs"),
    "schedule.min_lr": anchor("schedule.min_lr"),
    "schedule.step_size": anchor("schedule.milestones", why="every so many epochs after the warm-up"),
    "schedule.gamma": anchor("schedule.gamma"),
    "grad_clip_norm": anchor("step.grad_clip_norm"),
    # loss
    "ce_alpha": anchor("loss.ce_alpha"),
    "kd_alpha": anchor("loss.kd_alpha", why="unset: 1 - ce_alpha"),
    "ce_label_smoothing": anchor("loss.ce_label_smoothing"),
    "kd_target": (option("kd_target"), Home("anchor", "loss.kd_target", "for every other method")),
    "kd_teacher_index": anchor("loss.kd_teacher_index"),
    "teacher_weights": anchor("loss.teacher_weights", why="bound to names: a list fits one order of teachers only"),
    "tau": anchor("loss.tau"),
    "tau_schedule": anchor("loss.tau_schedule", why="over each phase, that is, each B-Step"),
    "tau_start": anchor("loss.tau_start"),
    "tau_end": anchor("loss.tau_end"),
    "tau_decay_power": anchor("loss.tau_decay_power"),
    "strict_mode": anchor("strict_mode"),
    "auto_renorm": anchor("auto_renorm"),
    # freezing
    "use_partial_freeze": (option("use_partial_freeze"), *anchor("freezing.use_partial_freeze")),
    "student_freeze_bn": (option("student_freeze_bn"), *anchor("freezing.student_freeze_bn")),
    # networks
    "teacher1.name": (Home("pair", "teachers[0]"),),
    "teacher2.name": (Home("pair", "teachers[1]"),),
    "teacher1.pretrained": (Home("teacher", _RECIPE),),
    "teacher2.pretrained": (Home("teacher", _RECIPE),),
    "teacher1_ckpt": (Home("teacher", "kdbench teacher import, --teacher"),),
    "teacher2_ckpt": (Home("teacher", "kdbench teacher import, --teacher"),),
    "model.student.name": (Home("pair", "student"),),
    "model.student.pretrained": (Home("pair", "student", "NAME_scratch or NAME_pretrain"),),
    "model.student.use_adapter": accepted("read nowhere; adapters are use_distillation_adapter"),
    "overlap_pct": (Home("pair", "overlap_pct", "negative: off"),),
    "use_overlap_sampling": accepted("read nowhere; overlap_pct of the pair divides the classes"),
    # measuring and running
    "compute_teacher_eval": _TEACHERS_MEASURED,
    **{
        f"teacher_eval_{name}": _TEACHERS_MEASURED
        for name in ("on_gpu", "amp", "batch_size", "max_batches", "force_cudnn", "num_workers")
    },
    "use_safe_mode": anchor("step.safe_retry", why="a second start in fp32 without cuDNN, from the initial state"),
    "disable_cudnn": accepted("cuDNN is left out where step.safe_retry starts a run again"),
    "deterministic": given("equal seeds give equal bits; there is no other mode", True, False),
    "use_wandb": _WANDB,
    "wandb_*": _WANDB,
    "log_level": accepted("the command says what happens; --debug shows an error's traceback"),
    "debug_verbose": accepted("--debug shows an error's traceback"),
    "print_config_only": command("--dry-run"),
    # learning task by task
    "cl_mode": (Home("refused", "", _LEARNING_IN_TASKS, (False,)),),
    **{
        name: accepted(f"without effect unless cl_mode is on: {_LEARNING_IN_TASKS}")
        for name in ("num_tasks", "replay_ratio", "replay_capacity", "lambda_ewc", "epochs")
    },
}

ALIASES = {
    "stages": "num_stages",
    "dataset_batch_size": "dataset.batch_size",
    "teacher_iters": "teacher_adapt_epochs",
    "student_iters": "student_epochs",
    "student_epochs_schedule": "student_epochs_per_stage",
    "student_freeze_schedule": "student_freeze_level_schedule",
    **{name: f"schedule.{name}" for name in ("lr_warmup_epochs", "min_lr", "step_size", "gamma")},
}


def home_of(key: str) -> tuple[Home, ...] | None:
    """Return where a key has its home, under its name or an older one; None if no configuration has such a key."""
    if key.startswith("wandb_"):
        return HOMES["wandb_*"]
    return HOMES.get(ALIASES.get(key, key))
