"""The kit itself: every broken subject triggers its check with its message and no other; sound ones pass."""

from __future__ import annotations

import random

import kit_behaviour  # noqa: F401 (adds to subjects.BROKEN)
import kit_phases as staged  # and so does this
import kit_subjects as subjects
import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError, PluginError, Unsupported
from kdbench.method import AnyMethod, Batch, Losses, Options, Phase, TapRequest
from kdbench.testing import METHOD_CHECKS, CheckFailure, check_method
from kdbench.testing.bench import PAIR, TWO_TEACHERS, pair_for
from kdbench.testing.outcome import STRUCTURAL
from kdbench.types import Context, Pair, PairInfo, Taps


def _id(value: object) -> str | None:
    return value.__name__ if isinstance(value, type) else None


@pytest.mark.parametrize(("subject", "check", "message"), subjects.BROKEN, ids=_id)
def test_broken_subject(subject: type[AnyMethod], check: str, message: str) -> None:
    results = check_method(subject)
    assert [result.name for result in results if not result.ok] == [check]
    found = results[[result.name for result in results].index(check)].message
    assert message in found
    assert "\n" not in found
    ran = [result.name for result in results]
    expected = list(METHOD_CHECKS)
    assert ran == (expected[: expected.index(check) + 1] if check in STRUCTURAL else expected)


class Exits(subjects.Sound):  # type: ignore[misc,name-defined]
    def losses(self, batch: Batch) -> Losses:  # noqa: ARG002
        raise SystemExit(0)


def test_a_method_that_exits_does_not_end_the_checks_as_if_all_were_well() -> None:
    (*_, last) = check_method(Exits)
    assert not last.ok
    assert "raised SystemExit: 0" in last.message


def test_every_check_has_a_broken_subject() -> None:
    assert {check for _, check, _ in subjects.BROKEN} == set(METHOD_CHECKS)


@pytest.mark.parametrize("subject", [subjects.Sound, subjects.Plain, staged.Staged], ids=_id)
def test_sound_subjects_pass(subject: type[AnyMethod]) -> None:
    results = check_method(subject)
    assert [result.message for result in results if not result.ok] == []
    assert [result.name for result in results] == list(METHOD_CHECKS)


def test_other_networks_and_several_teachers() -> None:
    pair = Pair("kit", "ShuffleV2", ("vgg8", "resnet14_w8"), "digits")
    METHOD_CHECKS["supports"](subjects.Plain, pair)
    METHOD_CHECKS["deploy"](subjects.Plain, pair)
    METHOD_CHECKS["gradient"](subjects.Plain, pair)


def test_taps_hold_for_the_first_teacher_unless_every_one_is_asked() -> None:
    pair = Pair("kit", "resnet8_w4", ("vgg8", "resnet14_w8"), "digits")  # five stages and four

    class Deep(subjects.Plain):  # type: ignore[misc, name-defined]
        taps = TapRequest(teachers=Taps((4,)))

    METHOD_CHECKS["builds"](Deep, pair)
    METHOD_CHECKS["gradient"](Deep, pair)
    Deep.taps = TapRequest(teachers=Taps((4,)), every_teacher=True)
    with pytest.raises(CheckFailure, match=r"taps\.teachers of resnet14_w8: stage 4 does not exist"):
        METHOD_CHECKS["builds"](Deep, pair)


class Several(subjects.Plain):  # type: ignore[misc, name-defined]
    """Wants two teachers, and a phase before the main one whose images are never mixed."""

    name = "several"

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        if len(context.teachers) < 2:
            raise Unsupported("needs two teachers, the pair has one")
        self.share = nn.Parameter(torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        return Phase("share", 1, self.share_losses, lambda: [self.share], mixes=False), Phase()

    def share_losses(self, batch: Batch) -> Losses:
        assert batch.mix is None
        one, other = (teacher.logits for teacher in batch.teachers)
        return {"ce": batch.supervised(one.lerp(other, self.share.sigmoid()))}


class Picky(subjects.Plain):  # type: ignore[misc, name-defined]
    name = "picky"

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        return None if len(pair.teachers) > 1 else "two teachers or nothing"


class Never(Several):
    name = "never"

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        raise Unsupported("cannot be built on any pair")


@pytest.mark.parametrize("subject", [Several, Picky], ids=_id)
def test_a_method_that_declines_one_teacher_gets_two(subject: type[AnyMethod]) -> None:
    assert pair_for(subject) is TWO_TEACHERS
    results = check_method(subject)
    assert [result.message for result in results if not result.ok] == []
    assert [result.name for result in results] == list(METHOD_CHECKS)
    one = check_method(subject, pair=PAIR)  # a pair that is named is the pair that is meant
    assert not one[-1].ok


def test_other_methods_get_one_teacher() -> None:
    assert pair_for(subjects.Plain) is pair_for(Never) is PAIR
    last = check_method(Never)[-1]
    assert (last.name, last.ok) == ("builds", False)
    assert "needs two teachers, the pair has one" in last.message


def test_an_unknown_backbone_is_the_callers_fault() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnet8w4'\. Did you mean 'resnet8_w4'"):
        check_method(subjects.Plain, pair=Pair("kit", "resnet8w4", ("resnet14_w8",), "digits"))


def test_a_single_check_raises() -> None:
    subject = next(subject for subject, check, _ in subjects.BROKEN if check == "mixed_images")
    with pytest.raises(CheckFailure, match=r"batch\.over_labels"):
        METHOD_CHECKS["mixed_images"](subject)
    assert issubclass(CheckFailure, PluginError)


def test_the_process_is_left_as_it_was() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads()
    check_method(subjects.Plain)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.get_num_threads() == before[3]


def test_a_method_may_decline_to_train_without_a_validation_split() -> None:
    class Demanding(subjects.Plain):  # type: ignore[misc, name-defined]
        def __init__(self, options: object, context: Context) -> None:
            super().__init__(options, context)
            if not context.validation_size:
                raise Unsupported("it measures itself on the validation split")

    METHOD_CHECKS["interludes"](Demanding)
