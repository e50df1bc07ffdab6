"""Fuzzing: the same few damages in every run of the tests; KDBENCH_FUZZ=EXAMPLES (make fuzz) tries others, and more."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for damages and subjects
MANY = int(os.environ.get("KDBENCH_FUZZ", "0"))
MOST_MEMORY = 3 << 29  # bytes that reading a small file may ask for: a forged size asks for far more

settings.register_profile(
    "kdbench",
    max_examples=MANY or 15,
    derandomize=not MANY,
    database=None,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),  # the file itself is kept: a smaller one says little more
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("kdbench")


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Let an allocation fail that no small file has a reason for."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_MEMORY, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
