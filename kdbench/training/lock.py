"""The lock of a run's configuration: what was planned is what is done, in every attempt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdbench.config.schema import canonical_sha256
from kdbench.errors import KdbenchError
from kdbench.spec import RunSpec
from kdbench.store import SPEC, RunFolder

SHOWN = 5  # keys named per kind of change


@dataclass(frozen=True)
class Lock:
    """The configuration of a run at the moment it was locked.

    Args:
        run_id: Which run.
        tree: All that its hash covers; a copy, so that nobody can change it.
        sha256: The hash.
    """

    run_id: str
    tree: dict[str, Any]
    sha256: str

    @classmethod
    def of(cls, spec: RunSpec) -> Lock:
        """Return the lock of a spec."""
        tree = spec.configuration()
        return cls(spec.run_id, tree, canonical_sha256(tree))

    def verify(self, spec: RunSpec, folder: RunFolder, when: str) -> None:
        """Check that the configuration is still the locked one, in memory and on disk.

        Args:
            spec: The one in memory.
            folder: Where it is kept.
            when: For the message, e.g. "during the run".

        Raises:
            KdbenchError: Naming the keys that were added, removed or changed.
        """
        for where, found in (("in memory", spec), (f"in {folder.path / SPEC}", folder.spec())):
            if found.config_sha256 != self.sha256:
                raise changed(self.run_id, when, f"{where}: {differences(self.tree, found.configuration())}")


def changed(run_id: str, when: str, what: str) -> KdbenchError:
    """Return the error of a run whose configuration is not the locked one."""
    return KdbenchError(
        f"run {run_id}: its configuration changed {when} ({what}); nothing is recorded. Find out what changed it, and "
        "run it into another --out"
    )


def differences(locked: dict[str, Any], found: dict[str, Any]) -> str:
    """Return which dotted keys were added, removed and changed, the latter with both values."""
    before, after = dict(_leaves(locked)), dict(_leaves(found))
    kinds = {
        "added": [f"{key} = {after[key]!r}" for key in sorted(after.keys() - before.keys())],
        "removed": sorted(before.keys() - after.keys()),
        "changed": [
            f"{key} {before[key]!r} -> {after[key]!r}"
            for key in sorted(before.keys() & after.keys())
            if before[key] != after[key]
        ],
    }
    return "; ".join(f"{kind} {_few(keys)}" for kind, keys in kinds.items() if keys)


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
