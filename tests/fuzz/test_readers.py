"""Any file, however damaged or forged, is either read or refused with one message; nothing it holds is run."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subjects import SUBJECTS, Subject

from kdbench.errors import KdbenchError


@pytest.fixture(scope="module", params=SUBJECTS)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Path]:
    """Return a subject and the folder with its files."""
    subject = SUBJECTS[request.param]
    folder = tmp_path_factory.mktemp("example")
    subject.make(folder)
    return subject, folder


def test_the_whole_file_is_read(example: tuple[Subject, Path]) -> None:
    subject, folder = example
    subject.read(folder)


@pytest.mark.timeout(600)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(example: tuple[Subject, Path], data: st.DataObject) -> None:
    subject, folder = example
    path = folder / subject.file
    whole = path.read_bytes()
    damaged = data.draw(subject.damage(whole))
    path.write_bytes(damaged)
    refusal: KdbenchError | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about what they read
            subject.read(folder)
    except KdbenchError as error:
        refusal = error
    finally:
        path.write_bytes(whole)
    assert refusal is None or (str(refusal).strip() and (not subject.named or path.name in str(refusal)))
    assert not Path("owned").exists()
