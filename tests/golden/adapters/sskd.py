"""SSKD: heads, similarities, ranks, selections, and the losses of both phases; and the turned images."""

import torch
from case import Case
from torch import Tensor

from kdbench.losses import cross_entropy, kd_loss
from kdbench.method import View
from kdbench.methods.sskd import (
    MatchingHead,
    matching_loss,
    own_image,
    selection,
    similarity,
    ss_loss,
    tf_loss,
    truth_rank,
)


def parts(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (4N, D) of the upright images (N, D), and those of the turned ones (3N, D)."""
    images = rows.unflatten(0, (-1, 4))
    return images[:, 0], images[:, 1:].flatten(0, 1)


def head(case: Case, who: str, features: Tensor) -> Tensor:
    """Return a network's similarities; its representations are compared."""
    module = MatchingHead(features.shape[1])
    case.load(module, f"{who}_head.")
    representation = module(features)
    if case.has(f"out.{who}_rep"):
        case.value(f"{who}_rep", representation)
    return similarity(*parts(representation))


def run(case: Case) -> None:
    """Compare one file."""
    ours, theirs = (
        head(case, "student", case.leaf("in.student_feat")),
        head(case, "teacher", case.tensor("in.teacher_feat")),
    )
    case.value("student_simi", ours)
    case.value("teacher_simi", theirs)
    case.value("stage1_simi", theirs)
    case.value("stage1_target", own_image(theirs))
    case.loss("stage1", matching_loss(theirs))

    labels = case.tensor("in.target")
    normal, turned = parts(case.leaf("in.student_logits"))
    normal_teacher, turned_teacher = parts(case.leaf("in.teacher_logits"))
    ranked = {
        "tf": truth_rank(turned_teacher, labels.repeat_interleave(3)),
        "ss": truth_rank(theirs, own_image(theirs)),
    }
    for name, ranks in ranked.items():
        chosen, wrong = selection(ranks, case.hp(f"ratio_{name}")), ranks > 0
        case.value(f"rank_{name}", ranks)
        case.value(f"wrong_{name}", wrong.sum())
        case.value(f"wrong_keep_{name}", (wrong & chosen).sum())
        case.value(f"distill_index_{name}", chosen.nonzero()[:, 0])
    losses = {
        "ce": cross_entropy(normal, labels),
        "kd": kd_loss(normal, normal_teacher, case.hp("kd_T")),
        "tf": tf_loss(
            turned, turned_teacher, labels.repeat_interleave(3), tau=case.hp("tf_T"), ratio=case.hp("ratio_tf")
        ),
        "ss": ss_loss(ours, theirs, tau=case.hp("ss_T"), ratio=case.hp("ratio_ss")),
    }
    for name, value in {
        **losses,
        "total": sum(case.hp(f"weight_{name}") * loss for name, loss in losses.items()),
    }.items():
        case.loss(name, torch.as_tensor(value))

    if case.has("in.images_hwc_uint8"):
        images = case.tensor("in.images_hwc_uint8").permute(0, 3, 1, 2)
        case.value("views_chw_uint8", torch.stack([View(turns).turned(images) for turns in range(4)], 1))
