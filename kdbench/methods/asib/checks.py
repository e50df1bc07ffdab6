"""What is wrong with options on a pair, and what is allowed but should be known, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

from kdbench.errors import Unsupported
from kdbench.methods.asib.freeze import WHO, freezes, schedule_of
from kdbench.methods.asib.options import DEAD, ASIBOptions
from kdbench.methods.asib.stages import adaptation_epochs, student_epochs
from kdbench.methods.asib.targets import OF_SYNERGY
from kdbench.methods.asib.widths import Widths
from kdbench.types import Context


def refuse(options: ASIBOptions, context: Context) -> None:
    """Raise for options that do not fit each other or the pair.

    Raises:
        Unsupported: Naming every key that does not fit, with its value.
    """
    found = [*_of_stages(options, context), *_of_adaptation(options, context), *_of_targets(options)]
    if found := [*found, *_of_freezing(options, context)]:
        raise Unsupported("; ".join(found))


def _of_stages(options: ASIBOptions, context: Context) -> Iterator[str]:
    given = options.student_epochs_per_stage
    if given is not None and len(given) != options.num_stages:
        yield f"student_epochs_per_stage has {len(given)} values, but num_stages is {options.num_stages}"
    elif given is not None and sum(given) != context.epochs:
        yield (
            f"student_epochs_per_stage {list(given)} makes {sum(given)} epochs, but the anchor has {context.epochs}: "
            "every method has the same"
        )
    elif min(student_epochs(options, context.epochs)) < (turns := options.cccp_ns if options.use_cccp else 1):
        yield (
            f"num_stages is {options.num_stages} and there are {turns} B-Steps in each, but the anchor has only "
            f"{context.epochs} epochs to share"
        )


def _of_adaptation(options: ASIBOptions, context: Context) -> Iterator[str]:
    length = adaptation_epochs(options)
    if not length:
        return
    key = "teacher_adapt_epochs" if options.teacher_adapt_epochs else "ib_epochs_per_stage"
    if len(context.teachers) < 2:
        yield f"its A-Step ({key} {length}) needs two teachers or more, the pair has one"
    if not context.validation_size:
        yield (
            f"its A-Step ({key} {length}) measures the synergy on a validation split, but the anchor "
            "cuts none (data.validation_fraction 0)"
        )
    if options.synergy_only_epochs > length:
        yield f"synergy_only_epochs is {options.synergy_only_epochs}, but an A-Step has only {length} epochs"
    if not (options.a_step_lr or options.teacher_lr):
        yield "a_step_lr and teacher_lr are both 0, so the A-Step would train nothing"


def _of_targets(options: ASIBOptions) -> Iterator[str]:
    if options.kd_target in OF_SYNERGY:
        if not options.use_ib:
            yield f"kd_target is '{options.kd_target}', but use_ib is false, so its gate could never open"
        if not adaptation_epochs(options):
            yield f"kd_target is '{options.kd_target}', but no A-Step trains the synergy (teacher_adapt_epochs 0)"
    if options.min_cw > options.max_cw:
        yield f"min_cw {options.min_cw:g} is larger than max_cw {options.max_cw:g}"


def _of_freezing(options: ASIBOptions, context: Context) -> Iterator[str]:
    if not freezes(options):
        return
    for who in WHO:
        if len(levels := schedule_of(options, who)) != options.num_stages:
            yield f"{who}_freeze_level_schedule has {len(levels)} values, but num_stages is {options.num_stages}"
    if _random_frozen(options, context) and not options.allow_random_frozen:
        level, name = schedule_of(options, "student")[0], context.student.name
        yield (
            f"student_freeze_level is {level} in the first stage, but {name} "
            "starts from random weights, and what is frozen would stay random; take a pretrained student, begin with "
            "level -1, or set allow_random_frozen: true"
        )


def _random_frozen(options: ASIBOptions, context: Context) -> bool:
    first = schedule_of(options, "student")[:1]  # of a schedule that is empty, none
    return freezes(options) and any(level >= 0 for level in first) and not context.student.pretrained


def cautions(options: ASIBOptions, context: Context, widths: Widths | None) -> Iterator[str]:
    """Yield what is allowed but should be known.

    Args:
        options: Options that :func:`refuse` lets pass.
        context: Shapes and lengths.
        widths: Those of the bridge, or None without one.
    """
    fields, adapters = type(options).model_fields, options.use_distillation_adapter
    for key in DEAD:
        if (value := getattr(options, key)) != fields[key].default:
            yield f"{key} is {value!r}, which has no effect"
    if _random_frozen(options, context):
        yield f"frozen layers of {context.student.name} keep their random weights (allow_random_frozen)"
    if widths is not None:
        yield from widths.changes
        if options.feat_kd_alpha > 0 and widths.query != widths.code:
            yield (
                f"feat_kd_alpha is {options.feat_kd_alpha:g}, but the query has width {widths.query} and the bridge "
                f"{widths.code}: there is no feature term"
            )
        if adapters and not (options.train_distill_adapter_only or options.use_teacher_finetuning):
            yield "the teachers' adapters stay random projections (train_distill_adapter_only false)"
    if options.feat_kd_alpha > 0 and options.kd_target not in OF_SYNERGY:
        yield (
            f"feat_kd_alpha is {options.feat_kd_alpha:g}, but with kd_target '{options.kd_target}' the bridge does not "
            "run in the B-Step: there is no feature term"
        )
    if adapters and options.feat_kd_key == "distill_feat" and not options.feat_kd_alpha:
        yield "the student's adapter gets no gradient (feat_kd_alpha 0)"
    yield from _of_cccp(options)


def _of_cccp(options: ASIBOptions) -> Iterator[str]:
    if not options.use_cccp:
        return
    length = adaptation_epochs(options)
    if not (options.use_cccp_in_a or options.use_cccp_in_b):
        yield "use_cccp is true, but neither use_cccp_in_a nor use_cccp_in_b: there is no CCCP term"
    elif options.use_cccp_in_a and not options.use_cccp_in_b and options.synergy_only_epochs >= length:
        yield (
            f"synergy_only_epochs {options.synergy_only_epochs} leaves no epoch of the A-Step ({length}) in which "
            "CCCP acts"
        )
