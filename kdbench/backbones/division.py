"""How a network is divided for partial freezing: blocks from shallow to deep, what lies behind them, and the head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from kdbench.errors import Unsupported

Names = tuple[str, ...]


@dataclass(frozen=True)
class Division:
    """The parts of a network, each as names of its modules or parameters; a name stands for all that is in it.

    Args:
        blocks: Names in each block, shallow to deep; the first one usually is the stem.
        behind: What lies between the deepest block and the head: it trains as soon as a block does.
        head: The classifier.
        always: What trains at every level whatever it is inside of, as adapters do.
    """

    blocks: tuple[Names, ...]
    behind: Names = ()
    head: Names = ()
    always: Names = ()

    def inside(self, name: str) -> Division:
        """Return the same parts as seen from a module that has the divided one as its child ``name``."""

        def moved(parts: Names) -> Names:
            return tuple(f"{name}.{part}" for part in parts)

        return Division(tuple(map(moved, self.blocks)), moved(self.behind), moved(self.head), moved(self.always))

    def open_at(self, level: int) -> Names:
        """Return the names of what trains at a level >= 0, norms aside.

        Raises:
            Unsupported: If there are not as many blocks.
        """
        if level > len(self.blocks):
            raise Unsupported(
                f"freeze level {level}: the network has {len(self.blocks)} blocks; allowed are -1..{len(self.blocks)}, "
                "of which -1 trains everything"
            )
        deepest = [name for block in self.blocks[len(self.blocks) - level :] for name in block]
        return (*deepest, *(self.behind if level else ()), *self.head, *self.always)

    def check(self, model: nn.Module) -> None:
        """See that the parts are the model's and leave nothing out.

        Raises:
            Unsupported: If a name is none of the model's, or a parameter is in no part.
        """
        named = [*self.always, *self.behind, *self.head, *(name for block in self.blocks for name in block)]
        known = {*dict(model.named_modules()), *dict(model.named_parameters())}
        if strange := sorted(set(named) - known):
            raise Unsupported(_wrong(model, f"its blocks name {_some(strange)}, which it does not have"))
        left_out = [name for name, _ in model.named_parameters() if not lies_in(name, named)]
        if left_out:
            raise Unsupported(_wrong(model, f"{_some(left_out)} is in no block, behind none, and not in the head"))


def lies_in(name: str, parts: Iterable[str]) -> bool:
    """Return whether a dotted name is one of the parts or inside one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def names_in(model: nn.Module, modules: Iterable[nn.Module]) -> Names:
    """Return the names under which a model has these modules, in their order; those it does not have are left out."""
    names = {id(module): name for name, module in model.named_modules()}
    return tuple(names[id(module)] for module in modules if id(module) in names)


def by_children(model: nn.Module, count: int, others: Collection[str]) -> tuple[Names, ...]:
    """Return one block per child with parameters, for a network that has one child for each of its stages.

    Args:
        model: The network.
        count: How many stages it has.
        others: Names of children that are in no stage.

    Raises:
        Unsupported: If it has more or fewer children.
    """
    held = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    children = [name for name in held if name not in others]
    if len(children) != count:
        raise Unsupported(
            _wrong(model, f"it has {count} stages and {len(children)} modules besides head and final layers")
        )
    return tuple((name,) for name in children)


def undivided(model: nn.Module, why: str) -> Unsupported:
    """Return the error for a model that cannot say what its blocks are."""
    return Unsupported(_wrong(model, why))


def cut(model: nn.Module, ends: Collection[str], head: str, first: str = "") -> Division:
    """Return a division of a model whose modules are registered in the order in which they are run.

    Args:
        model: The model.
        ends: Name of the last module of each block.
        head: Name of the classifier.
        first: Module that starts a block although none ends in front of it.
    """
    groups: list[list[str]] = [[]]
    for name, has_parameters in _units(model, {*ends, head, first}):
        if name == first:
            groups.append([])
        if has_parameters and not lies_in(name, (head,)):
            groups[-1].append(name)
        if name in ends:
            groups.append([])
    *blocks, behind = groups
    return Division(tuple(tuple(block) for block in blocks if block), tuple(behind), (head,))


def _units(module: nn.Module, wanted: Collection[str], path: str = "") -> Iterator[tuple[str, bool]]:
    """Yield (name, has parameters) of the largest parts of a module that have no wanted name inside, in order."""
    for name, _ in module.named_parameters(recurse=False):
        yield path + name, True
    for name, child in module.named_children():
        if any(part.startswith(f"{path}{name}.") for part in wanted):
            yield from _units(child, wanted, f"{path}{name}.")
        else:
            yield path + name, any(True for _ in child.parameters())


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _wrong(model: nn.Module, what: str) -> str:
    return (
        f"freezing {type(model).__name__}: {what}; freeze levels from 0 on need a network that publishes its blocks. "
        "Set the level to -1, take another backbone, or let the class say them: freeze_blocks() in docs/plugins.md"
    )
