"""A run's arrays, read where they are used: cut in order, each chunk once, and nothing that was torn or altered."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import DamagedArrayError, SourceError
from schemas.stores.features import CHUNK_IMAGES
from tests.support.watched import chunks_read
from workers.features.arrays import (
    WHOLE_ROW_IMAGES,
    ArrayRef,
    HeldFeatures,
    Segment,
    cut_segments,
    is_whole_row,
    read_chunks,
    read_distances,
    read_row,
    read_stored,
)
from workers.storage.directory import Directory

IMAGES, ROWS, COLUMNS, CHANNELS = CHUNK_IMAGES + 5, 2, 3, 4
VALUES = np.random.default_rng(0).normal(size=(IMAGES, ROWS, COLUMNS, CHANNELS)).astype(np.float16)
DISTANCES = np.abs(VALUES[..., 0].astype(np.float64))


@pytest.fixture
def stored(tmp_path: Path) -> Directory:
    """Return a directory with the features and the distances of a group."""
    directory = Directory.at(tmp_path / "run")
    root = directory.zarr_group("", "w")
    root.create_array("features", data=VALUES, chunks=(CHUNK_IMAGES, 1, COLUMNS, CHANNELS))
    root.create_array(
        "distances", shape=DISTANCES.shape, chunks=(CHUNK_IMAGES, 1, COLUMNS), dtype="f8", fill_value=np.nan
    )
    opened: Any = root["distances"]
    opened[:] = DISTANCES
    return directory


@pytest.fixture
def features(stored: Directory) -> ArrayRef:
    return ArrayRef(stored, "", "features")


@pytest.fixture
def distances(stored: Directory) -> ArrayRef:
    return ArrayRef(stored, "", "distances")


def segment(mask: NDArray[np.bool_], start: int = 0) -> Segment:
    return Segment(start, start + len(mask), mask)


@given(mask=st.lists(st.booleans(), max_size=40), size=st.integers(1, 50))
def test_segments_cover_every_image_once_in_order(mask: list[bool], size: int) -> None:
    segments = list(cut_segments(np.array(mask, dtype=bool), size))
    assert [number for cut in segments for number in range(cut.start, cut.stop)] == list(range(len(mask)))
    assert [value for cut in segments for value in cut.mask] == mask
    assert all(len(cut.mask) == cut.stop - cut.start <= size for cut in segments)


def test_a_row_is_one_task_when_it_is_one_segment_and_not_a_large_one() -> None:
    assert is_whole_row(7, 7)
    assert not is_whole_row(8, 7)
    assert is_whole_row(WHOLE_ROW_IMAGES, 10**9)
    assert not is_whole_row(WHOLE_ROW_IMAGES + 1, 10**9)


@pytest.mark.parametrize("start", [0, 3, CHUNK_IMAGES - 1])
def test_a_row_has_the_features_of_the_images_that_take_part(features: ArrayRef, start: int) -> None:
    taking_part = np.random.default_rng(1).random(IMAGES - start) < 0.5
    found = read_row(features, 1, segment(taking_part, start))
    np.testing.assert_array_equal(found, VALUES[start:, 1][taking_part])


def test_chunks_without_a_wanted_image_are_not_read(features: ArrayRef, monkeypatch: pytest.MonkeyPatch) -> None:
    read = chunks_read(monkeypatch)
    wanted = np.zeros((IMAGES, COLUMNS), dtype=bool)
    wanted[-1, 0] = True
    everything = segment(np.ones(IMAGES, dtype=bool))
    ((start, values),) = read_chunks(features, 0, everything, wanted)
    assert start == CHUNK_IMAGES
    np.testing.assert_array_equal(values, VALUES[CHUNK_IMAGES:, 0])
    assert len(read) == 1
    assert list(read_chunks(features, 0, everything, np.zeros(IMAGES, dtype=bool))) == []


def test_held_features_are_read_once_and_others_each_time(features: ArrayRef, monkeypatch: pytest.MonkeyPatch) -> None:
    read = chunks_read(monkeypatch)
    everything = segment(np.ones(IMAGES, dtype=bool))
    held = HeldFeatures.of(features)
    for _ in range(3):
        np.testing.assert_array_equal(read_row(held, 0, everything), VALUES[:, 0])
    assert len(read) == 2
    read_row(features, 0, everything)
    assert len(read) == 4


def test_an_array_travels_as_its_name(features: ArrayRef) -> None:
    content = pickle.dumps(features)
    assert len(content) < 1000
    np.testing.assert_array_equal(np.asarray(pickle.loads(content).open()[:]), VALUES)


def test_distances_are_those_of_the_images_that_take_part(distances: ArrayRef) -> None:
    taking_part = np.arange(IMAGES) % 3 == 0
    np.testing.assert_array_equal(read_distances(distances, segment(taking_part)), DISTANCES[taking_part])
    np.testing.assert_array_equal(read_distances(distances, segment(taking_part), 1), DISTANCES[taking_part, 1])


def chunk_files(directory: Directory, name: str) -> list[Path]:
    return sorted(path for path in Path(directory.url).glob(f"{name}/c/**/*") if path.is_file())


def test_distances_that_are_missing_are_an_error_even_of_one_image(stored: Directory, distances: ArrayRef) -> None:
    chunk_files(stored, "distances")[-1].unlink()
    taking_part = np.zeros(IMAGES, dtype=bool)
    read_distances(distances, segment(taking_part))
    taking_part[-1] = True
    with pytest.raises(DamagedArrayError, match=r"distances .*some were never written"):
        read_distances(distances, segment(taking_part))


def test_torn_chunks_are_errors_that_name_the_array_and_the_images(
    stored: Directory, features: ArrayRef, distances: ArrayRef
) -> None:
    for name in ("features", "distances"):
        for path in chunk_files(stored, name):
            path.write_bytes(path.read_bytes()[:-3])
    everything = segment(np.ones(IMAGES, dtype=bool))
    with pytest.raises(SourceError, match=rf"images 0 to {CHUNK_IMAGES - 1} of .*features at row 1 are damaged"):
        read_row(features, 1, everything)
    with pytest.raises(DamagedArrayError, match=r"distances is damaged .*paire recut"):
        read_stored(distances.open())
    with pytest.raises(DamagedArrayError, match="distances is damaged"):
        read_distances(distances, everything)
