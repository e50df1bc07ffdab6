"""The check of exact resume: a run that was interrupted ends with the same bits as one that was not."""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.testing.bench import Bench, Place, Run, equal
from kdbench.testing.failure import CheckFailure
from kdbench.testing.outcome import check

_MODULE_INTERNALS = frozenset(vars(nn.Module()))


@check()
def check_resume(bench: Bench) -> None:
    """All that training changes is in the state: resumed and uninterrupted runs agree in every bit."""
    straight = bench.start()
    schedule = straight.schedule()
    for place in schedule:
        straight.step(place)
    for cut in range(1, len(schedule)):
        _compare(bench, straight, _interrupted(bench, schedule, cut))


def _interrupted(bench: Bench, schedule: list[Place], cut: int) -> Run:
    first = bench.start()
    for place in schedule[:cut]:
        first.step(place)
    second = bench.start()  # only now, as a new process would
    second.load(first.state(), schedule[cut - 1])
    for place in schedule[cut:]:
        second.step(place)
    return second


def _compare(bench: Bench, straight: Run, resumed: Run) -> None:
    # Attributes first: they are the cause where tensors differ, too.
    plain, other = _plain_attributes(straight.method), _plain_attributes(resumed.method)
    if lost := [key for key in plain.keys() | other.keys() if differs(plain.get(key), other.get(key))]:
        name = min(lost)
        raise CheckFailure(
            f"{bench}: attribute '{name}' changes in training but is not in the state: after a resume it is not what "
            "it would have been. Keep it in a buffer: self.register_buffer(name, tensor) in __init__, changed in place"
        )
    for owner in ("student", "method"):
        one, two = getattr(straight, owner).state_dict(), getattr(resumed, owner).state_dict()
        if moved := [key for key in one if differs(one[key], two.get(key))]:
            raise CheckFailure(
                f"{bench}: after a resume '{moved[0]}' of the {owner} differs from the uninterrupted run; some state "
                "is not in state_dict() (module globals, closures, non-persistent buffers). Keep it in buffers"
            )


def _plain_attributes(method: nn.Module) -> dict[str, object]:
    """Return the attributes of all modules that no state dict holds, non-persistent buffers included."""
    found: dict[str, object] = {}
    for prefix, module in method.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in _MODULE_INTERNALS}
        own |= {key: module.get_buffer(key) for key in module._non_persistent_buffers_set}
        found |= {f"{prefix}.{key}".lstrip("."): value for key, value in own.items()}
    return found


def differs(one: object, other: object, seen: frozenset[int] = frozenset()) -> bool:
    """Return whether two values hold different content; objects without ``==`` are compared attribute by attribute."""
    if one is other or id(one) in seen:
        return False
    if type(one) is not type(other):
        return True
    seen = seen | {id(one)}
    if isinstance(one, Tensor):
        return not equal(one, other)  # type: ignore[arg-type]
    if isinstance(one, np.ndarray):
        return not np.array_equal(one, other)  # type: ignore[arg-type]
    if isinstance(one, torch.Generator):
        return not torch.equal(one.get_state(), other.get_state())  # type: ignore[attr-defined]
    if isinstance(one, random.Random | np.random.Generator):
        return pickle.dumps(one) != pickle.dumps(other)
    if isinstance(one, Mapping):
        return one.keys() != other.keys() or any(differs(one[key], other[key], seen) for key in one)  # type: ignore
    if isinstance(one, list | tuple | deque):
        return len(one) != len(other) or any(  # type: ignore[arg-type]
            differs(a, b, seen)
            for a, b in zip(one, other, strict=True)  # type: ignore[call-overload]
        )
    if is_dataclass(one):  # its own comparison trips over tensors
        return any(differs(getattr(one, part.name), getattr(other, part.name), seen) for part in fields(one))
    if type(one).__eq__ is object.__eq__:
        return hasattr(one, "__dict__") and differs(vars(one), vars(other), seen)
    return bool(one != other)
