"""What phases train: groups with rates of their own, optimizers of their own, and those that go on or are let go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.backbones.freezing import FreezeLevel
from kdbench.config.schema import Optimizer
from kdbench.method import Group, Phase
from kdbench.training.networks import new_network
from kdbench.training.optimizer import FACTOR, Optimizers, make_optimizer, set_rate
from kdbench.types import StageShape, Term

PLAIN: dict[str, Any] = {
    "schedule__name": "constant",
    "schedule__warmup_epochs": 0,
    "optimizer__momentum": 0.0,
    "optimizer__nesterov": False,
    "optimizer__weight_decay": 0.0,
    "optimizer__lr": 0.01,
    "step__grad_clip_norm": 0.0,
}
ADAM = Optimizer(name="adam", lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)


# --- groups -----------------------------------------------------------------------------------------------------------


def of_its_own(rate: float, decay: float | None = None) -> Any:
    """Return a phase of the helper before the main one, in two groups."""

    def phases(self: Any) -> tuple[Phase, ...]:
        weight, bias = Group(lambda: [self.helper.weight], rate, decay), Group(lambda: [self.helper.bias])
        return (Phase("head", 1, self.shrink, groups=lambda: [weight, bias], mixes=False, student="off"), Phase())

    return phases


@pytest.mark.parametrize(("rate", "decay"), [(1.0, None), (10.0, None), (0.5, 0.3)])
def test_a_groups_rate_and_decay_by_hand(lab: Any, rate: float, decay: float | None) -> None:
    """The gradient of the phase's loss is the weight itself: w <- w - factor * rate * (1 + decay) * w."""
    lab.probe("grouped", phases=of_its_own(rate, decay))
    spec = lab.spec("grouped", anchor=lab.anchor(**PLAIN))
    states = [lab.stopped(spec, str(steps), steps)["method"] for steps in (1, 2)]
    for key, factor in (("helper.weight", rate * (1 + (decay or 0.0))), ("helper.bias", 1.0)):
        torch.testing.assert_close(states[1][key], states[0][key] * (1 - 0.01 * factor), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_groups_rate_follows_the_schedule(lab: Any, schedule: str) -> None:
    lab.probe("grouped", phases=of_its_own(10.0))
    anchor = lab.anchor(**{**PLAIN, "schedule__name": schedule})
    state = lab.stopped(lab.spec("grouped", anchor=anchor), "runs", 3)["optimizers"]["head"]
    one, other = (group["lr"] for group in state["param_groups"])
    assert one == pytest.approx(10 * other)
    assert other != anchor.optimizer.lr or schedule == "cosine"


class Of(nn.Module):
    """Something with the student and a helper."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.helper = nn.Linear(2, 2), nn.Linear(2, 2)


def optimizers(of: Of) -> Optimizers:
    return Optimizers(Optimizer(lr=0.1, weight_decay=0.1), list(of.student.parameters()))


@pytest.mark.parametrize(
    ("rate", "decay", "message"),
    [(0.1, None, "rate factor 0.1"), (2.0, None, "rate factor 2"), (1.0, 0.0, "weight decay of their own")],
)
def test_the_students_rate_and_decay_are_the_anchors_in_the_main_phase(
    rate: float, decay: float | None, message: str
) -> None:
    of = Of()
    mixed = Group(lambda: [*of.helper.parameters(), of.student.bias], rate, decay)  # one of its tensors is enough
    for place in (Phase(groups=lambda: [mixed]), Phase("part", 2, groups=lambda: [mixed], main=True)):
        with pytest.raises(ValueError, match=message):
            optimizers(of).of(place, of.parameters(), 0.1)
    found = optimizers(of).of(Phase("other", 2, groups=lambda: [mixed]), of.parameters(), 0.1)
    assert found.param_groups[0][FACTOR] == rate
    own = [Group(of.student.parameters), Group(of.helper.parameters, rate, decay)]
    found = optimizers(of).of(Phase(groups=lambda: own), of.parameters(), 0.1)
    assert [group[FACTOR] for group in found.param_groups] == [1.0, rate]
    assert found.param_groups[1]["weight_decay"] == (0.1 if decay is None else decay)


def test_in_the_main_phase_helpers_have_groups_beside_the_student(lab: Any) -> None:
    """A method cannot name the student's parameters; they are trained whatever it names, at the anchor's rate."""

    def losses(self: Any, batch: Any) -> Any:
        return {"ce": batch.supervised(), **self.shrink(batch)}

    def grouped(self: Any) -> tuple[Phase, ...]:
        return (Phase(groups=lambda: [Group(self.helper.parameters, 10.0)]),)

    def chosen(self: Any) -> tuple[Phase, ...]:
        return (Phase(parameters=self.helper.parameters),)

    ends = {}
    for name, course, factor in (("grouped", grouped, 10.0), ("chosen", chosen, 1.0)):
        lab.probe(name, losses=losses, phases=course)
        spec = lab.spec(name, anchor=lab.anchor(**PLAIN))
        one, two = (lab.stopped(spec, f"{name}{steps}", steps) for steps in (1, 2))
        torch.testing.assert_close(
            two["method"]["helper.weight"], one["method"]["helper.weight"] * (1 - 0.01 * factor), rtol=1e-5, atol=1e-8
        )
        ends[name] = lab.digest_of(two["student"])
    lab.probe("whole", losses=losses)
    whole = lab.stopped(lab.spec("whole", anchor=lab.anchor(**PLAIN)), "whole", 2)
    assert set(ends.values()) == {lab.digest_of(whole["student"])}


def test_a_lane_whose_groups_are_refused_ends_alone(lab: Any) -> None:
    def phases(self: Any) -> tuple[Phase, ...]:
        return (Phase("head", 1, self.of_helper, groups=lambda: [Group(self.helper.parameters, -1.0)]), Phase())

    lab.probe("negative", phases=phases)
    lab.probe("sound")
    bad, good = lab.train([lab.spec("negative"), lab.spec("sound")], "runs")
    assert "group: rate factor -1.0 with weight decay None; a factor is above 0" in str(bad.lane.failure)
    assert bad.lane.failed_in == "its set-up"
    assert good.lane.failure is None


# --- an optimizer of its own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_step_as_torchs_own(name: str) -> None:
    """Adam couples its weight decay, AdamW does not, and zeroed momentum starts as none does."""
    config = Optimizer(name=name, lr=0.02, betas=(0.8, 0.9), momentum=0.9, nesterov=name == "sgd", weight_decay=0.3)
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=draws, dtype=torch.float64)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference: torch.optim.Optimizer = {
        "adam": lambda: torch.optim.Adam([theirs], 0.02, (0.8, 0.9), weight_decay=0.3, foreach=False),
        "adamw": lambda: torch.optim.AdamW([theirs], 0.02, (0.8, 0.9), weight_decay=0.3, foreach=False),
        "sgd": lambda: torch.optim.SGD([theirs], 0.02, 0.9, weight_decay=0.3, nesterov=True, foreach=False),
    }[name]()
    found = make_optimizer(config, [mine], config.lr)
    for _ in range(5):
        mine.grad = torch.randn(5, 3, generator=draws, dtype=torch.float64)
        theirs.grad = mine.grad.clone()
        found.step()
        reference.step()
    torch.testing.assert_close(mine.data, theirs.data, rtol=1e-12, atol=1e-14)


def test_momentum_may_begin_late_for_some(lab: Any) -> None:
    """What is thawed in a later part has its first gradient then."""
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(Optimizer(lr=0.1, momentum=0.5, weight_decay=0.0), [early, late], 0.1)
    early.grad = torch.ones(3)
    optimizer.step()
    late.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(early.data, torch.full((3,), 1 - 0.1 - 0.15))
    torch.testing.assert_close(late.data, torch.full((3,), 0.9))


def by_adam(start: dict[str, torch.Tensor], rates: list[float]) -> list[torch.Tensor]:
    """Return the helper's weight after each step of torch's own Adam, whose gradient is the weight itself."""
    weight, found = nn.Parameter(start["helper.weight"].clone()), []
    reference = torch.optim.Adam([weight], 1.0, ADAM.betas, weight_decay=ADAM.weight_decay, foreach=False)
    for rate in rates:
        reference.param_groups[0]["lr"] = rate
        weight.grad = weight.detach().clone()
        reference.step()
        found.append(weight.detach().clone())
    return found


def adam_twice(*, continues: bool) -> Any:
    def phases(self: Any) -> tuple[Phase, ...]:
        one = Phase("one", 1, self.shrink, self.helper.parameters, optimizer=ADAM, student="off")
        slower = ADAM.model_copy(update={"lr": 0.01})
        two = replace(one, name="two", optimizer=slower, continues="one" if continues else "")
        return (one, Phase("part0", 1, main=True), two, Phase("part1", 2, main=True))

    return phases


@pytest.mark.parametrize("continues", [True, False])
def test_an_optimizer_goes_on_where_a_phase_continues_another(lab: Any, continues: bool) -> None:
    """Three steps into the second phase, of four before: momentum and step count of seven steps, or of three."""
    lab.probe("adam", phases=adam_twice(continues=continues))
    spec = lab.spec("adam", anchor=lab.anchor(**PLAIN))
    first, before = lab.stopped(spec, "a", 1), lab.stopped(spec, "b", 8)
    state = lab.stopped(spec, "c", 11)
    start = {"helper.weight": first["method"]["helper.weight"]}
    key, steps = ("one", 7) if continues else ("two", 3)
    assert set(state["optimizers"]) == {"(main)", key}
    assert int(state["optimizers"][key]["state"][0]["step"]) == steps
    if continues:
        # The state before the first step is not in a checkpoint: go back from the first, whose length is the rate.
        moments = first["optimizers"]["one"]["state"][0]["exp_avg"] / (1 - ADAM.betas[0]) / (1 + ADAM.weight_decay)
        start = {"helper.weight": moments}
        found = by_adam(start, [0.02] * 4 + [0.01] * 3)
        torch.testing.assert_close(first["method"]["helper.weight"], found[0], rtol=1e-5, atol=1e-7)
    else:
        start = {"helper.weight": before["method"]["helper.weight"]}
        found = by_adam(start, [0.01] * 3)
    torch.testing.assert_close(state["method"]["helper.weight"], found[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [2, 4, 5, 8, 9, 12, 13])
def test_every_optimizer_is_in_the_checkpoint(lab: Any, stop: int) -> None:
    lab.probe("adam", phases=adam_twice(continues=True))
    spec = lab.spec("adam")
    lab.stopped(spec, "cut", stop)
    assert lab.digest_after(spec, "cut") == lab.digest_after(spec, "whole")


@pytest.mark.parametrize("key", ["(main)", "one"])
def test_a_checkpoint_that_lacks_one_is_refused(lab: Any, key: str) -> None:
    """Also where it is another phase that needs it: eight steps in, the main one rests and ``one`` is to go on."""
    lab.probe("adam", phases=adam_twice(continues=True))
    spec = lab.spec("adam")
    state = lab.stopped(spec, "cut", 9)
    assert set(state["optimizers"]) == {"(main)", "one"}
    del state["optimizers"][key]
    del state["schema"]
    lab.checkpoints(spec, "cut").save(state, tuple(state["position"]))
    for old in sorted(lab.checkpoints(spec, "cut").path.glob("*.pt")):
        if torch.load(old, weights_only=True)["optimizers"].keys() == {"(main)", "one"}:
            old.unlink()
    lane = lab.train([spec], "cut")[0].lane
    assert lane.failed_in == "loading its state"
    assert f"the checkpoint has no optimizer '{key}'" in str(lane.failure)


def test_optimizers_are_let_go_when_no_phase_needs_them(lab: Any) -> None:
    def phases(self: Any) -> tuple[Phase, ...]:
        helper = Phase("a", 1, self.of_helper, self.helper.parameters, student="off")
        one, two = Phase("part0", 1, main=True), Phase("part1", 2, main=True)
        return (helper, one, replace(helper, name="b", continues="a"), two, replace(helper, name="c"))

    lab.probe("several", phases=phases)
    spec = lab.spec("several")
    held = {steps: set(lab.stopped(spec, str(steps), steps)["optimizers"]) for steps in (1, 5, 9, 13, 21)}
    assert held == {1: {"a"}, 5: {"a", "(main)"}, 9: {"a", "(main)"}, 13: {"(main)"}, 21: {"c"}}
    assert lab.train([spec], "whole")[0].lane.state()["optimizers"] == {}


def test_a_phase_called_main_that_is_not_has_an_optimizer_of_its_own(lab: Any) -> None:
    def phases(self: Any) -> tuple[Phase, ...]:
        return (Phase("main", 1, self.of_helper, self.helper.parameters, student="off"), Phase("student"))

    lab.probe("named", phases=phases)
    state = lab.stopped(lab.spec("named"), "runs", 6)["optimizers"]
    assert set(state) == {"(main)"}
    trained = len(state["(main)"]["param_groups"][0]["params"])
    assert trained > 10, "the student is not in it"


def test_who_goes_on_with_an_optimizer_trains_the_same(lab: Any) -> None:
    def phases(self: Any) -> tuple[Phase, ...]:
        one = Phase("one", 1, self.of_helper, self.helper.parameters, student="off")
        return (one, replace(one, name="two", parameters=lambda: [self.helper.weight], continues="one"), Phase())

    def parts(self: Any) -> tuple[Phase, ...]:
        return (
            Phase("part0", 1, main=True),
            Phase("part1", 2, parameters=self.helper.parameters, losses=self.of_helper, main=True),
        )

    def faster(self: Any) -> tuple[Phase, ...]:
        one = Phase("one", 1, self.of_helper, groups=lambda: [Group(self.helper.parameters)], student="off")
        other = replace(one, name="two", groups=lambda: [Group(self.helper.parameters, 2.0)], continues="one")
        return (one, other, Phase())

    for name, course in {"phases": phases, "parts": parts, "faster": faster}.items():
        lab.probe(name, phases=course)
        lane = lab.train([lab.spec(name)], name)[0].lane
        assert "goes on with an optimizer, but trains other parameters, or other groups" in str(lane.failure), name


def test_the_rate_of_every_group_is_set() -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [one], FACTOR: 1.0}, {"params": [two], FACTOR: 0.25}]
    optimizer = make_optimizer(Optimizer(lr=1.0, weight_decay=0.0), groups, 1.0)
    set_rate(optimizer, 0.4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.1])


# --- freezing ---------------------------------------------------------------------------------------------------------


def thawing(self: Any) -> tuple[Phase, ...]:
    return (
        Phase("part0", 1, main=True, freeze=FreezeLevel(0, freeze_bn=True)),
        Phase("head", 1, self.of_helper, self.helper.parameters, student="eval"),
        Phase("part1", 1, main=True, freeze=FreezeLevel(1)),
        Phase("part2", 1, main=True),
    )


def fresh(lab: Any) -> dict[str, torch.Tensor]:
    backbone = lab.place.registry.backbones["resnet8_w4"]
    state: dict[str, torch.Tensor] = new_network(backbone, 10, StageShape((1, 8, 8)), seed=0).state_dict()
    return state


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Return the roots of what differs: conv1, layer2, fc, ..."""
    return {key.split(".")[0] for key, value in one.items() if not torch.equal(value, other[key])}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parts_thaw_the_student(lab: Any, name: str) -> None:
    lab.probe("thaws", phases=thawing)
    changes = {"optimizer__name": name, "optimizer__nesterov": name == "sgd", "freezing__use_partial_freeze": True}
    spec = lab.spec("thaws", anchor=lab.anchor(**changes))
    states = [lab.stopped(spec, str(steps), steps)["student"] for steps in (4, 8, 12, 15)]
    assert moved(fresh(lab), states[0]) == {"fc"}, "neither weights nor statistics of what is frozen"
    assert moved(states[0], states[1]) == set(), "nothing of it in a phase in eval mode"
    learned = [
        {key: value for key, value in state.items() if "running" not in key and "num_batches" not in key}
        for state in states
    ]
    # Scale and shift of the norms are free unless freeze_bn says otherwise.
    plain = {key for key, value in learned[1].items() if not torch.equal(value, learned[2][key])}
    assert "layer3.0.conv1.weight" in plain
    assert not any(key.startswith(("conv1", "layer1.0.conv", "layer2.0.conv")) for key in plain)
    assert {"conv1", "layer1", "layer2", "layer3", "fc"} <= moved(states[2], states[3])
    lane = lab.train([spec], "whole")[0].lane
    assert lane.failure is None
    assert all(parameter.requires_grad for parameter in lane.student.parameters())


@pytest.mark.parametrize("stop", [2, 4, 6, 9, 12, 14])
def test_a_thawing_run_resumes_exactly(lab: Any, stop: int) -> None:
    lab.probe("thaws", phases=thawing)
    spec = lab.spec("thaws", anchor=lab.anchor(freezing__use_partial_freeze=True))
    lab.stopped(spec, "cut", stop)
    assert lab.digest_after(spec, "cut") == lab.digest_after(spec, "whole")


def test_a_level_beyond_the_blocks_ends_the_lane(lab: Any) -> None:
    lab.probe("deep", phases=lambda _self: (Phase(freeze=FreezeLevel(9)),))
    lane = lab.train([lab.spec("deep", anchor=lab.anchor(freezing__use_partial_freeze=True))], "runs")[0].lane
    assert lane.failure is not None
    assert "9" in str(lane.failure)
    assert not lane.history


def test_terms_of_a_shrinking_helper(lab: Any) -> None:
    """The probe's loss is what the tests above suppose it to be: its gradient is the parameter."""
    lab.probe("grouped", phases=of_its_own(1.0))
    method = lab.train([lab.spec("grouped")], "runs")[0].lane.method
    method.zero_grad()
    losses: dict[str, Term] = method.shrink(None)
    losses["size"].value.backward()
    torch.testing.assert_close(method.helper.weight.grad, method.helper.weight.data)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": float("nan")}, {"weight_decay": -0.1}])
def test_a_group_has_a_rate_and_a_decay(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a factor is above 0, and a weight decay is 0 or more, or None"):
        Group(list, **wrong)
    assert Group(list, weight_decay=0.0).weight_decay == 0.0
