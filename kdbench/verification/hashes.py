"""The hashes of a board's files against its manifest: nothing changed, nothing missing, nothing added."""

from __future__ import annotations

from kdbench.leaderboard.manifest import MANIFEST, digest
from kdbench.leaderboard.publishing import FOLDER
from kdbench.leaderboard.writing import NAME
from kdbench.verification.bundle import Bundle
from kdbench.verification.report import Check, counted

_RESTORE = "bring back the published file, or publish the board again"


def check_hashes(bundle: Bundle) -> Check:
    """Return whether the files are those the manifest lists; a board without one is older, which is no fault."""
    manifest = bundle.manifest
    if manifest is None:
        said = "cannot be read" if bundle.flaws else "none, as in boards of older versions; hashes not compared"
        return Check("manifest", said, list(bundle.flaws))
    problems = []
    for name, expected in manifest.files.items():
        path = bundle.root / name
        if name in bundle.strange:
            continue  # named as what it is among the runs' problems
        if name not in bundle.files:
            problems.append(f"{path}: missing; {MANIFEST} lists it with sha256 {expected[:12]}..; {_RESTORE}")
        elif (found := digest(bundle.files[name])) != expected:
            problems.append(f"{path}: sha256 is {found[:12]}.., {MANIFEST} says {expected[:12]}..; {_RESTORE}")
    problems += [
        f"{bundle.root / name}: not in {MANIFEST}; a board holds what it was published with: remove it, or publish "
        "the board again"
        for name in bundle.files
        if name not in manifest.files and _belongs(name)
    ]
    said = f"{counted(len(manifest.files), 'file')}, written by kdbench {manifest.kdbench_version}"
    return Check("manifest", said, problems)


def _belongs(name: str) -> bool:
    """Return whether a file claims to be part of the board; a README or licence beside it is nobody's business."""
    return name.startswith((f"{FOLDER}/", f"{NAME}."))
