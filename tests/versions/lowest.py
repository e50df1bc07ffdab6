"""Print the lowest version that pyproject.toml declares of each dependency, one ``name==version`` a line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_LOWER = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9][0-9.]*)")


def lowest(requirements: Iterable[str]) -> list[str]:
    """Return requirements pinned to their lower bounds; raises ValueError for one without such a bound."""
    pins = []
    for requirement in requirements:
        if not (match := _LOWER.fullmatch(requirement)):
            raise ValueError(f"{requirement}: write it as NAME>=VERSION, so that its lowest version can be tested")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


if __name__ == "__main__":
    print("\n".join(lowest(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"])))
