"""Every check that several datasets share, so that one mistake has one message wherever it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import ConfigError, nearest
from kdbench.types import StageShape

Layout = Literal["NHWC", "NCHW", "NHW"]
_SHOWN = 8


def bad(where: str, problem: str, remedy: str) -> ConfigError:
    """Return the error for a dataset: where, what is wrong, what is allowed and what to do.

    Args:
        where: Dataset as the user wrote it.
        problem: What is wrong, without a full stop.
        remedy: What is allowed or what to do, as a sentence.
    """
    return ConfigError(f"{where}: {problem}. {remedy}")


def shown(names: Sequence[str]) -> str:
    """Return the first names separated by commas, and how many there are when not all are shown."""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "nothing"


@contextmanager
def readable(where: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what reading damaged or forbidden files raises into one message.

    Args:
        where: Dataset as the user wrote it.
        errors: What the format's reader raises besides OSError.

    Raises:
        ConfigError: Instead.
    """
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except caught as error:
        remedy = "It is damaged or not readable: check its permissions, or copy, download or write it again."
        raise bad(where, f"cannot be read: {error or type(error).__name__}", remedy) from error


def no_argument(name: str, argument: str) -> None:
    """Refuse a path after the name of a dataset that has its own place.

    Raises:
        ConfigError: If there is one.
    """
    if argument:
        raise bad(f"{name}:{argument}", f"dataset '{name}' takes no path", f"Write: --dataset {name}")


def existing(where: str, argument: str, kind: Literal["file", "folder"]) -> Path:
    """Return the path of a dataset after checking that it exists and is what it should be.

    Args:
        where: Dataset as the user wrote it.
        argument: Text after the colon; ``~`` is expanded.
        kind: What must be there.

    Raises:
        ConfigError: If it is missing (the nearest existing name is given) or of the other kind.
    """
    if not argument:
        raise bad(where, "the path is missing", f"Write: --dataset {where}PATH")
    # expanduser raises RuntimeError for '~nobody', exists raises OSError for names that are too long.
    with readable(where, RuntimeError):
        path = Path(argument).expanduser()
        if not path.exists():
            raise _missing(where, path.absolute(), kind)
        if path.is_dir() and kind == "file":
            raise bad(where, "is a folder, not a file", f"For class folders of images: --dataset folder:{argument}")
        if not path.is_dir() and kind == "folder":
            raise bad(where, "is a file, not a folder", f"For an npz file: --dataset npz:{argument}")
        if kind == "file" and not path.is_file():
            raise bad(where, "is not a regular file", "Give the path of an .npz file.")
    return path


def _missing(where: str, path: Path, kind: str) -> ConfigError:
    # The first missing part is what the user has to correct, not the last one.
    missing, above = path, path.parent
    while not above.exists():
        missing, above = above, above.parent
    siblings = [entry.name for entry in above.iterdir()] if above.is_dir() else []
    problem = f"no such {kind}: '{above}' has no '{missing.name}'"
    return bad(where, problem, f"{nearest(missing.name, siblings)} Give the path of an existing {kind}.".strip())


def image_layout(where: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Layout, StageShape]:
    """Return how an image array is laid out and the shape (C,H,W) of one image.

    Args:
        where: Dataset as the user wrote it.
        name: Name of the array.
        shape: (N,H,W,C), (N,C,H,W) or (N,H,W) with C in {1, 3}; if both ends fit, channels are last.
        dtype: Must be uint8.

    Raises:
        ConfigError: If dtype or shape is another one.
    """
    if dtype != np.uint8:
        remedy = "Allowed: uint8 in 0..255. For values in 0..1, save (255 * x).round().astype('uint8')."
        raise bad(where, f"{name} has dtype {dtype}", remedy)
    allowed = "Allowed: [N,H,W,C], [N,C,H,W] or, for one channel, [N,H,W]."
    if len(shape) not in (3, 4):
        raise bad(where, f"{name} has {len(shape)} axes: {list(shape)}", allowed)
    if min(shape) < 1:
        raise bad(where, f"{name} is empty: {list(shape)}", f"{allowed} Every axis needs a length of at least 1.")
    if len(shape) == 3:
        return "NHW", StageShape((1, *shape[1:]))
    if shape[3] in (1, 3):
        return "NHWC", StageShape((shape[3], shape[1], shape[2]))
    if shape[1] in (1, 3):
        return "NCHW", StageShape(shape[1:])
    raise bad(where, f"{name} has neither 1 nor 3 channels: {list(shape)}", allowed)


def label_header(where: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], images: int) -> None:
    """Check the header of a label array against the number of images it belongs to.

    Raises:
        ConfigError: If the labels are not integers, not (N,), or not one per image.
    """
    if dtype.kind not in "iu":
        raise bad(where, f"{name} has dtype {dtype}", "Allowed: integers, e.g. int64, in 0..classes-1.")
    if len(shape) != 1:
        raise bad(where, f"{name} has {len(shape)} axes: {list(shape)}", "Allowed: [N], one class index per image.")
    if shape[0] != images:
        images_name = name.replace("labels", "images")
        problem = f"{name} has {shape[0]} labels, but {images_name} has {images} images"
        raise bad(where, problem, "Give one label per image, in the same order.")


def label_values(where: str, name: str, labels: NDArray[Any], classes: Sequence[str]) -> None:
    """Check that labels are in range and that every class has an image.

    Args:
        where: Dataset as the user wrote it.
        name: Name of the label array, e.g. ``test_labels``.
        labels: Integers (N,).
        classes: Class names in label order.

    Raises:
        ConfigError: If not.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if outside.size:
        first = int(outside[0])
        problem = f"{name}[{first}] is {labels[first]}"
        raise bad(where, problem, f"Allowed: 0..{len(classes) - 1}, as there are {len(classes)} classes.")
    if absent := sorted(set(range(len(classes))) - set(np.unique(labels).tolist())):
        kind = "training" if name.startswith("train") else "test"
        which = shown([f"'{classes[index]}'" for index in absent])
        remedy = "Every class needs images in train and test: add some, or remove the class."
        raise bad(where, f"no {kind} images of class {which}", remedy)


def class_names(where: str, names: Sequence[str]) -> None:
    """Check that there are at least two classes with distinct, non-empty names.

    Raises:
        ConfigError: If not.
    """
    if len(names) < 2:
        raise bad(where, f"has {len(names)} classes: {shown(names)}", "At least 2 are needed.")
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            raise bad(where, f"the class name '{name}' is empty or used twice", "Give every class a name of its own.")


def same_shape(where: str, train: StageShape, test: StageShape) -> None:
    """Check that training and test images have one shape.

    Raises:
        ConfigError: If they differ.
    """
    if train != test:
        problem = f"training images are {train} (CxHxW), test images are {test}"
        raise bad(where, problem, "Both need the same channels, height and width: resize or convert one of them.")
