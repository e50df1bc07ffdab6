"""Networks without memory for their weights: shapes as ever, no value made, nothing drawn, and the same errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.backbones.weightless import weightless


class Reads(nn.Module):
    """Computes widths with a tensor and with a weight whose values it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.empty(()))
        nn.init.constant_(self.width, 4.0)
        self.layer = nn.Linear(int(self.width.detach()), int(torch.tensor([2, 5]).numpy().max()))
        nn.init.normal_(self.layer.weight)


def filled() -> nn.Module:
    """Return a module whose weights are made in each of the ways there are: by layers, by ``init``, in place."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    for fill in (nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.trunc_normal_, nn.init.orthogonal_):
        fill(module[2].weight)
    nn.init.constant_(tensor=module[2].bias, val=1.0)
    with torch.no_grad():
        module[0].weight.normal_(0.0, 0.1).mul_(2.0)
    module.register_buffer("drawn", torch.rand(3, device="cpu"))
    return module.to(module[0].weight.device)


@pytest.mark.parametrize("build", [filled, Reads])
def test_shapes_without_values_and_without_draws(build: type[nn.Module]) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    found = weightless(build)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(tensor.is_meta for tensor in found.state_dict().values())
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in build().state_dict().items()}


WRONG = {
    "a leaf Variable that requires grad": lambda: nn.Conv2d(3, 4, 3).weight.normal_(0.0, 0.1),
    "Fan in and fan out can not be computed": lambda: nn.init.kaiming_uniform_(nn.Parameter(torch.empty(3))),
    "my own trouble": lambda: (_ for _ in ()).throw(RuntimeError("my own trouble")),
    "division": lambda: nn.Linear(int(torch.tensor(1)) // 0, 3),  # on the meta device the first number is the trouble
}


@pytest.mark.parametrize("message", WRONG)
def test_what_a_build_raises_is_raised(message: str) -> None:
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError), match=message):
        weightless(WRONG[message])
