"""The journal of a group: what is recalled, what is not believed, what replaces what."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.run_directory.journal import Journal, StaleJournalError
from workers.storage.directory import Directory

FITTED = np.array([True, False, True])
SCORES = np.array([0.1, np.nan, 2.0])
ASKED = {"smoothing": 3, "neighbours": True}


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    """Return a journal in which two passes over the same images are noted."""
    journal = Journal(Directory.at(tmp_path / "journal"), "group")
    assert not journal.is_begun
    for scores in (SCORES, SCORES + 1):
        assert journal.recall("score", FITTED, **ASKED) is None
        journal.note({"scores": scores})
    return Directory.at(tmp_path / "journal")


def test_repeated_passes_over_the_same_images_are_different_passes(directory: Directory) -> None:
    journal = Journal(directory, "group")
    assert journal.is_begun
    for expected in (SCORES, SCORES + 1):
        assert journal.expects("score", FITTED, **ASKED)
        found = journal.recall("score", FITTED, **ASKED)
        assert found is not None
        np.testing.assert_array_equal(found["scores"], expected, strict=True)
    assert not journal.expects("score", FITTED, **ASKED)
    assert journal.recall("score", FITTED, **ASKED) is None


@pytest.mark.parametrize(
    ("group", "kind", "fitted", "asked"),
    [
        ("other", "score", FITTED, ASKED),
        ("group", "measure", FITTED, ASKED),
        ("group", "score", ~FITTED, ASKED),
        ("group", "score", FITTED, ASKED | {"smoothing": 1}),
        ("group", "score", FITTED, ASKED | {"neighbours": False}),
        ("group", "score", FITTED, ASKED | {"estimator": None}),
    ],
)
def test_another_pass_is_not_believed(
    directory: Directory, group: str, kind: str, fitted: np.ndarray, asked: dict[str, object]
) -> None:
    with pytest.raises(StaleJournalError, match="another pass"):
        Journal(directory, group).recall(kind, fitted, **asked)


def test_an_entry_is_torn_at_any_byte_or_flipped(directory: Directory) -> None:
    content = directory.read("0001.npz")
    for cut in range(0, len(content), 7):
        directory.write("0001.npz", content[:cut])
        with pytest.raises(StaleJournalError):
            Journal(directory, "group").recall("score", FITTED, **ASKED)
    place = content.index(SCORES.tobytes())
    directory.write("0001.npz", content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(StaleJournalError, match="cannot be read"):
        Journal(directory, "group").recall("score", FITTED, **ASKED)


def test_an_object_array_is_never_loaded(directory: Directory, tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", key=np.array([print], dtype=object))
    directory.write("0001.npz", (tmp_path / "evil.npz").read_bytes())
    with pytest.raises(StaleJournalError, match="cannot be read"):
        Journal(directory, "group").recall("score", FITTED, **ASKED)


def test_the_ending_takes_the_place_of_the_passes(directory: Directory) -> None:
    journal = Journal(directory, "group")
    for _ in range(2):
        journal.recall("score", FITTED, **ASKED)
    assert journal.ending() is None
    journal.note_ending({"clean": FITTED})
    again = Journal(directory, "group")
    assert not again.is_begun
    found = again.ending()
    assert found is not None
    np.testing.assert_array_equal(found["clean"], FITTED)
    with pytest.raises(StaleJournalError):
        Journal(directory, "other").ending()
    again.clear()
    assert again.ending() is None
