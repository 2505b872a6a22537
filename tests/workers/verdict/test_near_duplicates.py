"""Near-duplicates are found whatever else a group holds, and only they."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.features.arrays import ArrayRef, Segment, cut_segments
from workers.storage.directory import Directory
from workers.verdict.near_duplicates import SKETCH, Sketches, find_representatives, sketch_segment

IMAGES, COPIES = 60, 5
CLOSENESS = 0.2


def independent(images: int = IMAGES, seed: int = 0) -> Sketches:
    return np.random.default_rng(seed).normal(size=(images, SKETCH)).astype(np.float32)


def with_copies(images: int = IMAGES, copies: int = COPIES, *, spread: float = 0.05) -> Sketches:
    """Return independent sketches, the last of them ``copies`` of one."""
    sketches = independent(images)
    noise = np.random.default_rng(1).normal(size=(copies, SKETCH)).astype(np.float32)
    sketches[-copies:] = sketches[-copies] + spread * noise
    return sketches


def test_independent_images_represent_themselves() -> None:
    np.testing.assert_array_equal(find_representatives([independent()], CLOSENESS), np.arange(IMAGES))


def test_copies_are_represented_by_the_first_of_them() -> None:
    expected = np.arange(IMAGES)
    expected[-COPIES:] = IMAGES - COPIES
    np.testing.assert_array_equal(find_representatives([with_copies()], CLOSENESS), expected)


def test_images_that_are_equal_are_copies() -> None:
    assert find_representatives([with_copies(spread=0.0)], CLOSENESS)[-1] == IMAGES - COPIES


def test_a_closeness_of_zero_finds_none() -> None:
    np.testing.assert_array_equal(find_representatives([with_copies(spread=0.0)], 0.0), np.arange(IMAGES))


def test_a_kind_of_images_is_not_a_set_of_copies() -> None:
    sketches = independent()
    sketches[: IMAGES // 3] += 5.0  # another product: far from the rest, as varied in itself
    np.testing.assert_array_equal(find_representatives([sketches], CLOSENESS), np.arange(IMAGES))


def test_a_chain_of_small_changes_is_not_one_image() -> None:
    sketches = independent(200)
    step = np.random.default_rng(2).normal(size=SKETCH)
    sketches[100:120] = sketches[100] + 0.3 * np.arange(20)[:, np.newaxis] * step
    assert len(np.unique(find_representatives([sketches], CLOSENESS)[100:120])) > 1


@pytest.mark.parametrize(("spread", "are_copies"), [(0.06, True), (0.08, False)])
def test_however_sparse_the_others_are_a_copy_differs_little_from_its_original(spread: float, are_copies: bool) -> None:
    # Two copies lie apart by sqrt(2) times the spread, as a share of their length.
    found = find_representatives([with_copies(spread=spread)], 0.9)
    assert (found[-COPIES:] == IMAGES - COPIES).all() == are_copies
    assert len(np.unique(found)) == (IMAGES - COPIES + 1 if are_copies else IMAGES)


@pytest.mark.parametrize(("each", "are_copies"), [(2, True), (3, False)])
def test_more_copies_than_half_of_the_images_are_none(each: int, are_copies: bool) -> None:
    sketches = np.repeat(independent(20), each, axis=0)
    found = find_representatives([sketches], CLOSENESS)
    expected = np.repeat(np.arange(20) * each, each) if are_copies else np.arange(20 * each)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_handful_of_copies_is_left_as_it_is(count: int) -> None:
    np.testing.assert_array_equal(
        find_representatives([np.ones((count, SKETCH), np.float32)], CLOSENESS), np.arange(count)
    )


def test_a_group_of_a_few_images_saved_many_times_is_left_as_it_is() -> None:
    sketches = np.repeat(independent(5), 10, axis=0)
    np.testing.assert_array_equal(find_representatives([sketches], CLOSENESS), np.arange(50))


@settings(max_examples=25, deadline=None)
@given(st.integers(10, 60), st.floats(0.0, 0.9), st.integers(0, 5))
def test_representatives_come_first_represent_themselves_and_are_near(images: int, closeness: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sketches = independent(images, seed)[rng.integers(0, images, images)]
    sketches += (0.2 * rng.normal(size=(images, SKETCH))).astype(np.float32)
    representative = find_representatives([sketches], closeness)
    assert (representative <= np.arange(images)).all()
    np.testing.assert_array_equal(representative[representative], representative)


def test_in_what_parts_the_sketches_come_changes_nothing() -> None:
    sketches = with_copies(700)  # more than one block of comparisons
    np.testing.assert_array_equal(
        find_representatives([sketches[:10], sketches[10:]], CLOSENESS), find_representatives([sketches], CLOSENESS)
    )


@pytest.fixture
def features(tmp_path: Path) -> ArrayRef:
    values = np.random.default_rng(0).normal(size=(300, 9, 7, 32)).astype(np.float16)
    group = zarr.open_group(str(tmp_path / "store"), mode="w")
    group.create_array("part", shape=values.shape, chunks=(256, 1, 7, 32), dtype="float16")[:] = values
    return ArrayRef(Directory(str(tmp_path / "store")), "", "part")


def test_sketches_keep_distances(features: ArrayRef) -> None:
    mask = np.ones(300, bool)
    sketches = sketch_segment(features, Segment(0, 300, mask))
    lattice = np.asarray(features.open()[:])[:, [1, 3, 5, 7]][:, :, [0, 2, 4, 6]].reshape(300, -1).astype(np.float64)
    ratio = np.linalg.norm(sketches[1:] - sketches[0], axis=1) / np.linalg.norm(lattice[1:] - lattice[0], axis=1)
    assert abs(ratio.mean() - 1.0) < 0.05
    assert ratio.std() < 0.1


def test_only_masked_images_are_sketched_in_order(features: ArrayRef) -> None:
    mask = np.arange(300) % 3 == 0
    everything = sketch_segment(features, Segment(0, 300, np.ones(300, bool)))
    parts = [sketch_segment(features, segment) for segment in cut_segments(mask, 256)]
    np.testing.assert_allclose(np.concatenate(parts), everything[mask], rtol=1e-5, atol=1e-4)
