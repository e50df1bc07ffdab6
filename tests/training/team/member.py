"""What each of two processes does for the tests of teams: ``python member.py RANK ROOT TEACHERS``.

The results of a member are in ``ROOT/rankN.pt``. The tests do the same alone, and compare.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.artefacts import TeacherStore
from kdbench.errors import PluginError
from kdbench.store import RunStore
from kdbench.training.environment import Machine
from kdbench.training.lane import Lane
from kdbench.training.runs import run_cohort
from kdbench.training.team.batch_norm import JointBatchNorm
from kdbench.training.team.members import Fallen, Team, join
from kdbench.training.team.work import Together
from kdbench.training.trainer import Interrupted

SIZE = 2
CPU = torch.device("cpu")
MIXED = {"data__cutmix_alpha": 1.0}
# Losses that compare images, taken for what they are not: the flag must have teeth.
MISTAKEN = ("rkd", "sp", "cc", "pkt")


def laboratory() -> ModuleType:
    """Return the fixtures of the tests of training, as a module."""
    name = "kdbench_laboratory"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "conftest.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def lab_of(root: Path, teachers: Path, team: Team) -> Any:
    """Return a laboratory of this member."""
    store = TeacherStore(teachers)
    (manifest,) = store.all()
    place = replace(laboratory()._workplace(store), machine=Machine(CPU, 1, team))
    return laboratory().Lab(root, place, manifest.dataset, manifest.name)


def methods_of(lab: Any) -> list[str]:
    """Return the methods that come with kdbench."""
    table = lab.place.registry.methods
    return [name for name in sorted(table) if table[name].__module__.startswith("kdbench.methods.")]


# --- gradients ----------------------------------------------------------------------------------------------------


def gradients(lab: Any, method: str, where: str, **anchor: Any) -> dict[str, dict[str, Tensor]]:
    """Return the gradients of the first step of each phase, up to the main one, by phase and parameter."""
    seen: dict[str, dict[str, Tensor]] = {}
    update = Lane._update

    def watched(lane: Lane, sound: Tensor) -> None:
        if lane.phase.name not in seen:
            named = [*lane.student.named_parameters(), *lane.method.named_parameters(prefix="method")]
            seen[lane.phase.name] = {name: p.grad.clone() for name, p in named if p.grad is not None}
        done.append(lane.phase.is_main)
        update(lane, sound)

    done: list[bool] = []
    spec = lab.spec_for(method, lab.anchor(**{**MIXED, **anchor}))
    with patch.object(Lane, "_update", watched), suppress(Interrupted):
        (trained,) = lab.train([spec], where, should_stop=lambda: any(done))
        assert trained.lane.failure is None, trained.lane.failure
    return seen


def all_gradients(lab: Any) -> dict[str, Any]:
    return {method: gradients(lab, method, "all") for method in methods_of(lab)}


def accumulated(lab: Any) -> dict[str, Any]:
    return {method: gradients(lab, method, "accumulated", step__accumulate=2) for method in ("dkd", "rkd", "fitnet")}


def mistaken(lab: Any) -> dict[str, Any]:
    found = {}
    for method in MISTAKEN:
        with patch.object(lab.place.registry.methods[method], "distributed", "slices"):
            found[method] = gradients(lab, method, "mistaken")
    return found


# --- BatchNorm ----------------------------------------------------------------------------------------------------


class OwnForward(nn.BatchNorm1d):
    """A BatchNorm as other libraries have it."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum or 0.1, self.eps
        )
        return y.tanh()


def normalised(team: Team) -> dict[str, Any]:
    """Return outputs, gradients and statistics of BatchNorms on this member's share of a batch, in float64."""
    found: dict[str, Any] = {}
    draws = torch.Generator().manual_seed(3)
    for name, norm, shape in (
        ("maps", nn.BatchNorm2d(3, momentum=None), (8, 3, 4, 5)),
        ("vectors", OwnForward(6), (8, 6)),
        ("plain", nn.BatchNorm1d(6, affine=False, track_running_stats=False), (8, 6)),
    ):
        norm.double()
        whole, weights = (torch.randn(shape, generator=draws, dtype=torch.float64) * 3 + 5 for _ in range(2))
        x = whole.chunk(team.size)[team.rank].clone().requires_grad_()
        with JointBatchNorm(team) if team.size > 1 else torch.enable_grad():
            for _ in range(2):
                y = norm(x)
        (y * weights.chunk(team.size)[team.rank]).sum().backward()
        found[name] = {
            "y": y.detach(),
            "x": x.grad,
            "state": norm.state_dict(),
            "parameters": [p.grad for p in norm.parameters()],
        }
    return found


# --- members ------------------------------------------------------------------------------------------------------


def words(team: Team) -> dict[str, Any]:
    """Return what members hear of each other."""
    with_gradient = nn.Parameter(torch.tensor([1.0, 2.0]))
    without = nn.Parameter(torch.tensor([3.0]))
    with_gradient.grad = torch.tensor([1.0, 10.0]) * (team.rank + 1)
    team.average_gradients([with_gradient, without])
    rows = torch.full((2, 1), float(team.rank), requires_grad=True)
    (team.gathered(rows) * torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * (team.rank + 1)).sum().backward()
    return {
        "anyone": [team.anyone(team.rank == 1), team.anyone(False)],
        "told": team.told(f"by {team.rank}"),
        "everyones": team.everyones(team.rank),
        "everywhere": [bool(team.everywhere(torch.tensor(flag))) for flag in (True, team.rank == 0)],
        "gradients": (with_gradient.grad, without.grad),
        "rows": rows.grad,
        "empty": team.gathered(torch.empty(2, 0)).shape,
    }


def agreement(team: Team) -> dict[str, Any]:
    """Return how members find out that they differ, and what the leader's word changes."""
    found: dict[str, Any] = {}
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(team.rank)
    Together(team, 0, "slices", "local").agree([norm])
    found["local"] = norm.running_mean.clone()
    norm.running_mean.fill_(team.rank)
    for name, change in (("buffer", lambda: None), ("parameter", lambda: norm.weight.data.fill_(team.rank))):
        change()
        try:
            Together(team, 0, "slices", "sync" if name == "buffer" else "local").agree([norm])
        except PluginError as error:
            found[name] = str(error)
    return found


# --- whole runs ---------------------------------------------------------------------------------------------------

RUNS = {"crd": "sync", "vanilla_kd": "local"}


def anchor_of(lab: Any, method: str) -> Any:
    return lab.anchor(f"on_two_{RUNS[method]}", **MIXED, step__batch_norm=RUNS[method], step__ema_decay=0.9)


def run(lab: Any, spec: Any, where: str, **changes: Any) -> list[Any]:
    """Train a run in a store that the members share; a driver would have planned it."""
    store = RunStore(lab.root / where)
    lab.place.machine.team.leader_first(lambda: store.register([spec]))
    return run_cohort([spec.run_id], store, replace(lab.place, **changes))


def whole_runs(lab: Any) -> None:
    for method in RUNS:
        run(lab, lab.spec(method, anchor=anchor_of(lab, method)), "whole")


def cut_runs(lab: Any) -> dict[str, bool]:
    """Train the runs with a stop in the middle of the second epoch, of which one member alone hears."""
    stopped = {}
    for method in RUNS:
        spec = lab.spec(method, anchor=anchor_of(lab, method))
        hears = lab.stop_after(6) if lab.place.machine.team.rank == 1 else lambda: False
        try:
            run(lab, spec, "cut", should_stop=hears)
        except Interrupted:
            stopped[method] = True
        run(lab, spec, "cut")
        run(lab, spec, "cut")  # finished: nobody waits for anybody
    return stopped


def fallen(lab: Any) -> str:
    """Train a run in which one member alone fails, and return how that ends for it; the team ends with it."""
    method = lab.place.registry.methods["vanilla_kd"]
    losses, calls = method.losses, [0]

    def fails(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if lab.place.machine.team.rank == 1 and calls[0] == 3:
            raise ValueError("out of luck")
        return losses(self, batch)

    with patch.object(method, "losses", fails):
        try:
            (record,) = run(lab, lab.spec("vanilla_kd"), "fallen")
        except Fallen as error:
            return str(error)
    return f"{record.status}: {record.reason}"


def main(rank: int, root: Path, teachers: Path) -> None:
    torch.set_num_threads(1)
    team = join(CPU, dist.FileStore(str(root / "rendezvous"), SIZE), rank, SIZE)
    own, shared = lab_of(root / f"own{rank}", teachers, team), lab_of(root / "shared", teachers, team)
    tasks: dict[str, Callable[[], object]] = {
        "words": lambda: words(team),
        "agreement": lambda: agreement(team),
        "normalised": lambda: normalised(team),
        "all_gradients": lambda: all_gradients(own),
        "accumulated": lambda: accumulated(own),
        "mistaken": lambda: mistaken(own),
        "whole_runs": lambda: whole_runs(shared),
        "cut_runs": lambda: cut_runs(shared),
        "fallen": lambda: fallen(shared),
    }
    torch.save({name: task() for name, task in tasks.items()}, root / f"rank{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
