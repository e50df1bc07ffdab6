"""kdbench: a benchmark harness for knowledge distillation.

The names below are what a plugin author needs; nothing else is promised. They are loaded on first use, so that
``kdbench --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdbench.adapters import AdapterWidths as AdapterWidths
    from kdbench.adapters import ChannelAdapter as ChannelAdapter
    from kdbench.adapters import DistillAdapter as DistillAdapter
    from kdbench.adapters import DistillAdapters as DistillAdapters
    from kdbench.adapters import settle_widths as settle_widths
    from kdbench.backbones.base import Backbone as Backbone
    from kdbench.backbones.base import Network as Network
    from kdbench.backbones.freezing import FreezeLevel as FreezeLevel
    from kdbench.config.schema import Optimizer as Optimizer
    from kdbench.datasets.base import Dataset as Dataset
    from kdbench.datasets.base import DatasetInfo as DatasetInfo
    from kdbench.datasets.base import Split as Split
    from kdbench.errors import Unsupported as Unsupported
    from kdbench.hooks import hookimpl as hookimpl
    from kdbench.method import AnyMethod as AnyMethod
    from kdbench.method import Batch as Batch
    from kdbench.method import Group as Group
    from kdbench.method import Interlude as Interlude
    from kdbench.method import Losses as Losses
    from kdbench.method import LossProtocol as LossProtocol
    from kdbench.method import Method as Method
    from kdbench.method import Mix as Mix
    from kdbench.method import Options as Options
    from kdbench.method import Phase as Phase
    from kdbench.method import Setup as Setup
    from kdbench.method import TapRequest as TapRequest
    from kdbench.method import View as View
    from kdbench.method import Viewed as Viewed
    from kdbench.seeds import stream as stream
    from kdbench.types import Context as Context
    from kdbench.types import Deviation as Deviation
    from kdbench.types import Features as Features
    from kdbench.types import LossWeights as LossWeights
    from kdbench.types import Pair as Pair
    from kdbench.types import PairInfo as PairInfo
    from kdbench.types import Source as Source
    from kdbench.types import StageShape as StageShape
    from kdbench.types import Taps as Taps
    from kdbench.types import Term as Term

_HOMES = {
    "adapters": ("AdapterWidths", "ChannelAdapter", "DistillAdapter", "DistillAdapters", "settle_widths"),
    "backbones.base": ("Backbone", "Network"),
    "backbones.freezing": ("FreezeLevel",),
    "config.schema": ("Optimizer",),
    "datasets.base": ("Dataset", "DatasetInfo", "Split"),
    "errors": ("Unsupported",),
    "hooks": ("hookimpl",),
    "method": (
        "AnyMethod",
        "Batch",
        "Group",
        "Interlude",
        "LossProtocol",
        "Losses",
        "Method",
        "Mix",
        "Options",
        "Phase",
        "Setup",
        "TapRequest",
        "View",
        "Viewed",
    ),
    "seeds": ("stream",),
    "types": (
        "Context",
        "Deviation",
        "Features",
        "LossWeights",
        "Pair",
        "PairInfo",
        "Source",
        "StageShape",
        "Taps",
        "Term",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'kdbench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"kdbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
