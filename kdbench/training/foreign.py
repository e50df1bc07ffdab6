"""Files of other programs: read without running code, unwrapped, and taken apart into the networks they hold."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from kdbench.errors import ConfigError
from kdbench.training.torch_files import check_archive, is_plain, overlaps

State = dict[str, Tensor]

# Parts of a file of distillation. A network of unknown part is filed under "".
ROLES = ("student", "teacher")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", *reversed(ROLES), "weights", "params")
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "net.", "network.")
# Where training programs keep their command line, and what in it names the network of each part.
_OPTIONS = ("opt", "args", "config")
NAMING = {
    "": ("model", "model_s", "arch", "backbone"),
    "student": ("model_s", "student"),
    "teacher": ("model_t", "teacher"),
}
_CODE = re.compile(r"(?:GLOBAL|unrecognized function|unsupported class) (\S+)")  # in torch's refusals
_MOST_WRAPPERS = 8


class _Options:
    """Stands in for a parsed command line: keeps what was stored, as data."""

    def __init__(self) -> None:
        self.entries: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.entries = dict(state) if isinstance(state, dict) else {}


class _Number:
    """Stands in for a NumPy scalar and for its type: takes any arguments and state, and keeps none."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# What training scripts of the field save beside tensors: their command line, and accuracies and learning rates that
# NumPy computed. Each name is bound to a class above instead of to what the file means, so that neither argparse nor
# NumPy sees anything from the file; the classes call nothing and look nothing up. Any other name is refused by torch.
_INERT = [
    (_Options, "argparse.Namespace"),
    (_Number, "numpy.dtype"),
    (_Number, "numpy.core.multiarray.scalar"),  # NumPy 1
    (_Number, "numpy._core.multiarray.scalar"),  # NumPy 2
]


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        parts: Networks by part (``student``, ``teacher``, or ``""`` where the file does not say), under plain keys.
        helpers: Modules and state dicts beside them, which are left out.
        options: Entries of the stored command line that name an architecture.
    """

    parts: dict[str, State]
    helpers: tuple[str, ...]
    options: dict[str, str]


def read_checkpoint(path: Path) -> Contents:
    """Return the networks of a checkpoint under plain keys; nothing in the file is executed.

    Raises:
        ConfigError: If it is missing, damaged, holds code, or holds no state dict.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the path of a checkpoint")
    try:
        if path.suffix == ".safetensors":
            tree: object = load_file(path)
        else:
            check_archive(path, str(path))
            with safe_globals(_INERT):  # type: ignore[arg-type]  # pairs are documented, but not in the signature
                tree = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ConfigError(f"{path}: {_why_unreadable(error)}") from error
    return _Unpacking(path).contents(tree)


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and (found := _CODE.search(str(error))):
        return (
            f"holds more than tensors ({found[1]}), and kdbench runs no code from files; save only the state dict "
            "(torch.save(model.state_dict(), ...)) with the program that made it"
        )
    detail = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:100]
    return f"not a readable checkpoint (damaged or foreign): {type(error).__name__}: {detail}; get the file again"


class _Unpacking:
    """Takes a loaded file apart, and remembers what it passes on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.helpers: list[str] = []
        self.options: dict[str, str] = {}
        self.deepest: object = None

    def contents(self, tree: object) -> Contents:
        parts = self._networks(tree, "", 0)
        if not parts:
            tree = self.deepest
            keys = some(map(str, tree), 8) if isinstance(tree, Mapping) else type(tree).__name__
            raise ConfigError(
                f"{self.path}: no state dict in it (found: {keys}); known wrappers: {', '.join(_WRAPPERS)}"
            )
        return Contents(parts, tuple(dict.fromkeys(self.helpers)), self.options)

    def _networks(self, tree: object, role: str, depth: int) -> dict[str, State]:
        self.deepest = tree
        if not isinstance(tree, Mapping) or depth == _MOST_WRAPPERS:  # a pickle may hold itself
            return {}
        self.options.update(_named(tree))
        # Wrappers first: training programs put tensors such as the best accuracy beside the state dict.
        inner = [key for key in _WRAPPERS if isinstance(tree.get(key), Mapping)]
        if not inner:
            tensors = {str(key): value for key, value in tree.items() if isinstance(value, Tensor)}
            _refuse_views(tensors, self.path)
            return self._split(tensors, role) if tensors else {}
        taken = [key for key in ROLES if key in inner] if inner[0] in ROLES else inner[:1]
        self.helpers += [str(key) for key, value in tree.items() if key not in taken and _is_state(value)]
        parts: dict[str, State] = {}
        for key in taken:
            parts.update(self._networks(tree[key], key if key in ROLES else role, depth + 1))
        return parts

    def _split(self, state: State, role: str) -> dict[str, State]:
        """Take apart what one module that holds student, teacher and helpers saved as a whole."""
        state = _strip(state)
        groups = {name: _below(state, f"{name}.") for name in ROLES}
        groups = {name: group for name, group in groups.items() if group}
        if not groups:
            return {role: state}
        self.helpers += [key.split(".")[0] for key in state if key.split(".")[0] not in groups]
        if len(groups) == 1:
            ((name, group),) = groups.items()
            return self._split(group, role or name)
        return {name: _strip(group) for name, group in groups.items()}


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _named(tree: Mapping[object, object]) -> dict[str, str]:
    """Return what a level of the file says by name of its networks."""
    stored = [tree.get(key) for key in _OPTIONS]
    tables = [item.entries if isinstance(item, _Options) else item for item in stored]
    known = {field for fields in NAMING.values() for field in fields}
    found: dict[str, str] = {}
    for table in (tree, *(table for table in tables if isinstance(table, Mapping))):
        found.update({field: value for field in known if isinstance(value := table.get(field), str)})
    return found


def _refuse_views(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A few stored bytes can claim to be a tensor of any size by a stride of zero; a meta tensor has none at all."""
    for key, tensor in tensors.items():
        if not is_plain(tensor):
            raise ConfigError(f"{path}: {some([key])}: not a plain dense tensor; save an unquantised, dense state dict")
        if overlaps(tensor):
            raise ConfigError(f"{path}: {some([key])}: claims {tuple(tensor.shape)}, more than the file holds; refused")


def _below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _strip(state: State) -> State:
    """Drop prefixes that every key has, such as the ``module.`` of data-parallel training."""
    while state and (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)):
        state = _below(state, prefix)
    return state


def some(keys: Iterable[str], most: int = 6) -> str:
    """Return the first of the keys, and how many more there are; what a terminal would obey is shown as ``?``."""
    listed = ["".join(letter if letter.isprintable() else "?" for letter in key) for key in keys]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
