"""Which registered backbone is meant by the names that other programs give to networks, files and folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kdbench.training.foreign import NAMING

# Other names of the same networks in RepDistiller, mdistiller (its functions and the tags of its output folders) and
# SimKD, and the spelling of the papers. A name that stands for another network there is not here: SimKD's ResNet18 and
# ResNet50 are ImageNet's, its resnet38x2 has norms in the shortcuts that wrn_40_2 lacks; their keys and shapes differ.
ALIASES: dict[str, str] = {
    "mobile_half": "MobileNetV2",
    "mv2": "MobileNetV2",
    **{
        f"{word}{version}": f"ShuffleV{version}"
        for word in ("ShuffleNetV", "ShuffleNetv", "shuv")
        for version in (1, 2)
    },
    **{f"vgg{depth}_bn": f"vgg{depth}" for depth in (8, 11, 13, 16, 19)},
    **{f"res{size}": f"resnet{size}" for size in ("8", "14", "20", "32", "44", "56", "110", "8x4", "32x4")},
    **{f"res{depth}": f"ResNet{depth}" for depth in (18, 50)},
    **{
        f"{word}{depth}{mark}{widen}": f"wrn_{depth}_{widen}"
        for word, mark in (("wrn", "_"), ("wrn-", "-"), ("WRN-", "-"))
        for depth in (16, 40)
        for widen in (1, 2)
    },
}
# RepDistiller and SimKD name the folder of a distillation S:<student>_T:<teacher>_..., with ~ for : on Windows.
_PAIR = re.compile(r"S[:~](?P<student>.+?)_T[:~](?P<teacher>.+)")


def meant_by(text: str, names: Iterable[str]) -> str | None:
    """Return which of the names (or of their aliases) the text begins with; the longest one counts.

    Example:
        ``wrn_40_2_vanilla`` means ``wrn_40_2``, and ``wrn_40_10`` nothing.
    """
    known = {name: name for name in names}
    known |= {alias: ours for alias, ours in ALIASES.items() if ours in known and alias not in known}
    begins = [word for word in known if text.startswith(word) and not text[len(word) : len(word) + 1].isalnum()]
    return known[max(begins, key=len)] if begins else None


def claims(options: Mapping[str, str], part: str, file: Path) -> Iterator[tuple[str, str]]:
    """Yield what is said of the architecture of a part, as (where, name and more), best evidence first.

    Args:
        options: Entries of the command line stored in the file.
        part: ``student``, ``teacher`` or ``""``.
        file: Where it lies.
    """
    for field in NAMING[part]:
        if field in options:
            yield f"'{field}' in the file", options[field]
    if part != "teacher":  # a file of two networks is named after the student, if after any
        yield "the file's name", file.stem
    folder = file.absolute().parent.name
    if pair := _PAIR.match(folder):
        yield "the folder's name", pair[part or "student"]
    elif "," in folder:  # mdistiller: method,teacher,student
        yield "the folder's name", folder.split(",")[-2 if part == "teacher" else -1]
    else:
        yield "the folder's name", folder
