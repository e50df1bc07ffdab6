"""The digits: values, split and fingerprint."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kdbench.datasets import digits
from kdbench.datasets.base import Split
from kdbench.datasets.digits import open_digits
from kdbench.errors import ConfigError

FINGERPRINT = "5f96ca04b167779a"


def test_split_is_class_balanced() -> None:
    source = open_digits("", Path())
    # Class sizes 178 182 177 183 181 182 181 179 174 180, a third of each, rounded.
    assert torch.bincount(source.test().labels).tolist() == [59, 61, 59, 61, 60, 61, 60, 60, 58, 60]
    assert (source.info.train_size, source.info.test_size) == (1198, 599)


def test_every_image_is_in_one_split_and_scaled() -> None:
    source = open_digits("", Path())
    ours = torch.cat([source.train().images, source.test().images]).reshape(-1, 64).numpy()
    lookup = np.array([round(value * 255 / 16) for value in range(17)], dtype=np.uint8)
    theirs = lookup[load_digits().data.astype(np.int64)]
    assert (lookup[0], lookup[1], lookup[8], lookup[16]) == (0, 16, 128, 255)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


def test_facts() -> None:
    info = open_digits("", Path()).info
    assert info.mirror is False
    assert info.normalisation is None
    assert info.fingerprint == FINGERPRINT


def test_fingerprint_covers_content(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits._load()
    changed = train.images.clone()
    changed[7, 0, 3, 3] ^= 1
    monkeypatch.setattr(digits, "_load", lambda: (Split(changed, train.labels), test))
    assert open_digits("", Path()).info.fingerprint != FINGERPRINT


def test_callers_cannot_change_each_others_images() -> None:
    open_digits("", Path()).train().images.zero_()
    assert open_digits("", Path()).train().images.any()


def test_path_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        open_digits("8x8", Path())
    assert str(caught.value) == "digits:8x8: dataset 'digits' takes no path. Write: --dataset digits"


def test_they_are_read_without_importing_the_library_that_ships_them() -> None:
    code = (
        "import sys; from pathlib import Path; from kdbench.datasets.digits import open_digits\n"
        f"assert open_digits('', Path()).info.fingerprint == '{FINGERPRINT}'\n"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_the_file_has_moved_the_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "_FILE", "sklearn/elsewhere.csv.gz")
    assert np.array_equal(digits._table(), np.column_stack(load_digits(return_X_y=True)))
    monkeypatch.undo()
    assert np.array_equal(digits._table(), np.column_stack(load_digits(return_X_y=True)))
