"""Early stopping: the weights of the best validation epoch so far, and when to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdbench.config.schema import Stopping
from kdbench.schedule import best_epoch, has_stopped


class Best:
    """Keeps a copy of what did best on the validation split; the test split is never asked.

    ``state`` is all it knows: the copy, or None while there is none (always, where nothing may stop).

    Args:
        stopping: The anchor's section.
    """

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self.state: list[dict[str, Any]] | None = None

    def ends(self, accuracies: Sequence[float], modules: Sequence[nn.Module]) -> bool:
        """Copy the modules if the last epoch is the best one, and return whether it was the last one for good.

        Args:
            accuracies: Of all epochs on the validation split, in percent.
            modules: What the result is made of, as it stands after the last of them.
        """
        if not self.stopping.patience:
            return False
        if best_epoch(accuracies) == len(accuracies) - 1:
            # On the host: a second copy of a large network would take room that the training needs.
            self.state = [
                {key: value.detach().cpu().clone() for key, value in module.state_dict().items()} for module in modules
            ]
        return has_stopped(self.stopping, accuracies)

    def restore(self, modules: Sequence[nn.Module]) -> None:
        """Put the best weights back, where there are any, and let go of the copy."""
        if self.state is not None:
            for module, state in zip(modules, self.state, strict=True):
                module.load_state_dict(state)
            self.state = None
