"""From distances and thresholds to the clean set, its floor, and the evidence for each image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import TrimConfig
from workers.verdict.selection import MIN_FITTED, Evidence, gather_evidence, margins, select

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

seeds = st.integers(0, 2**32 - 1)


def frozen(values: Array) -> Array:
    values.flags.writeable = False
    return values


def everyone(count: int) -> Mask:
    mask = np.ones(count, np.bool_)
    mask.flags.writeable = False
    return mask


def indices(mask: Mask) -> list[int]:
    return [int(index) for index in np.flatnonzero(mask)]


def select_maps(distances: Array, thresholds: Array, trim: TrimConfig) -> tuple[Mask, bool]:
    """Return the clean set of whole distance maps (images, positions), all of which take part."""
    margin = frozen(margins(distances, thresholds).max(axis=1))
    selection = select(margin, everyone(len(distances)), trim)
    return selection.clean, selection.floor_applied


@st.composite
def maps(draw: st.DrawFn, *, ties: bool) -> tuple[Array, Array]:
    """Draw distances (images, rows, columns) and thresholds (rows, columns), some of them infinite."""
    rng = np.random.default_rng(draw(seeds))
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    if ties:
        distances, thresholds = rng.integers(0, 4, shape).astype(float), rng.integers(1, 4, shape[1:]).astype(float)
    else:
        distances, thresholds = rng.lognormal(size=shape), rng.lognormal(1, 1, shape[1:])
    thresholds[rng.random(shape[1:]) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = np.inf
    return frozen(distances), frozen(thresholds)


def test_a_margin_is_distance_over_threshold_and_nothing_where_there_is_no_threshold() -> None:
    found = margins(frozen(np.array([[1.0, 5.0], [4.0, 0.0]])), frozen(np.array([2.0, np.inf])))
    np.testing.assert_array_equal(found, [[0.5, 0.0], [2.0, 0.0]])


@given(distance=st.floats(1e-300, 1e300), steps=st.integers(-3, 3))
def test_a_margin_is_below_1_exactly_where_the_distance_is_below_the_threshold(distance: float, steps: int) -> None:
    # Also for neighbouring numbers, where a quotient might round to 1.
    threshold = distance
    for _ in range(abs(steps)):
        threshold = float(np.nextafter(threshold, np.inf if steps > 0 else 0))
    margin = margins(np.array([[distance]]), np.array([threshold]))[0, 0]
    assert (margin < 1) == (distance < threshold)


def test_clean_is_below_the_threshold_at_every_position() -> None:
    distances = frozen(np.array([[0.9, 1.9], [1.0, 0.1], [0.1, 2.1], [0.0, 0.0], [0.5, 0.5]]))
    clean, floor_applied = select_maps(distances, np.array([1.0, 2.0]), TrimConfig())
    assert indices(clean) == [0, 3, 4]
    assert not floor_applied


def test_without_thresholds_every_image_that_takes_part_is_clean() -> None:
    measured = np.array([True, False, True, True, False])
    margin = frozen(np.array([0.0, np.nan, 0.0, 0.0, np.nan]))
    selection = select(margin, measured, TrimConfig())
    assert indices(selection.clean) == [0, 2, 3]
    assert not selection.floor_applied


@given(
    situation=maps(ties=False),
    factors=st.lists(st.floats(0.01, 1), min_size=16, max_size=16),
    floor=st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_lower_thresholds_never_add_an_image_unless_the_floor_applies(
    situation: tuple[Array, Array], factors: list[float], floor: float
) -> None:
    distances, thresholds = situation[0].reshape(len(situation[0]), -1), situation[1].ravel()
    trim = TrimConfig(min_clean_fraction=floor)
    clean, _ = select_maps(distances, thresholds, trim)
    # An infinite threshold may become a finite one.
    lower = np.minimum(thresholds, 5.0) * np.array(factors[: len(thresholds)])
    cleaner, floor_applied = select_maps(distances, lower, trim)
    assert floor_applied or not (cleaner & ~clean).any()


@given(situation=maps(ties=True), floor=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_floor_keeps_every_image_that_passes_and_then_the_smallest_margins(
    situation: tuple[Array, Array], floor: float
) -> None:
    distances, thresholds = situation[0].reshape(len(situation[0]), -1), situation[1].ravel()
    margin = margins(distances, thresholds).max(axis=1)
    clean, floor_applied = select_maps(distances, thresholds, TrimConfig(min_clean_fraction=floor))
    assert clean[margin < 1].all()
    if floor_applied:
        assert clean.sum() > (margin < 1).sum()
        assert margin[clean].max() <= margin[~clean].min(initial=np.inf)
    else:
        np.testing.assert_array_equal(clean, margin < 1)


@pytest.mark.parametrize(
    ("images", "fraction", "kept"),
    [(100, 0.1, 10), (95, 0.1, 10), (91, 0.1, 10), (20, 0.1, 3), (100, 0.0, 3), (5, 0.1, 3), (2, 0.1, 2), (7, 1.0, 7)],
)
def test_the_floor_is_the_share_rounded_up_but_never_fewer_than_three(images: int, fraction: float, kept: int) -> None:
    margin = frozen(2 + np.random.default_rng(0).permutation(images).astype(float))
    selection = select(margin, everyone(images), TrimConfig(min_clean_fraction=fraction))
    assert selection.floor_applied
    assert sorted(margin[selection.clean]) == [2.0 + place for place in range(kept)]


@pytest.mark.parametrize(
    ("images", "fraction"), [(100, 0.1), (70, 0.1), (30, 0.1), (100, 0.07), (180, 0.55), (300, 0.07), (1000, 0.3)]
)
def test_exactly_the_floors_share_passing_is_enough(images: int, fraction: float) -> None:
    passing = round(fraction * images)
    margin = frozen(np.where(np.arange(images) < passing, 0.5, 1.5))
    selection = select(margin, everyone(images), TrimConfig(min_clean_fraction=fraction))
    assert int(selection.clean.sum()) == passing
    assert not selection.floor_applied


def test_among_equal_margins_the_floor_keeps_earlier_images() -> None:
    margin = frozen(np.array([3.0, 2.0, 3.0, 3.0, 2.0, 3.0]))
    assert indices(select(margin, everyone(6), TrimConfig(min_clean_fraction=0.6)).clean) == [0, 1, 2, 4]


def test_the_floor_counts_and_keeps_only_images_that_take_part() -> None:
    margin = frozen(np.where(np.arange(40) % 2 == 0, np.nan, 5.0 + np.arange(40)))
    selection = select(margin, np.arange(40) % 2 == 1, TrimConfig(min_clean_fraction=0.2))
    assert indices(selection.clean) == [1, 3, 5, 7]


@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_a_group_of_no_more_than_three_is_clean_as_a_whole(images: int) -> None:
    assert MIN_FITTED == 3
    selection = select(frozen(np.full(images, 9.0)), everyone(images), TrimConfig())
    assert int(selection.clean.sum()) == images


def literal_evidence(distances: Array, thresholds: Array) -> dict[str, list[float]]:
    """Return the evidence as `Evidence` defines it, by going through all positions in row-major order."""
    found: dict[str, list[float]] = {name: [] for name in ("score", "margin", "row", "column", "distance", "threshold")}
    for image in distances:
        positions = [(row, column) for row in range(image.shape[0]) for column in range(image.shape[1])]
        ratios = [float(image[place] / thresholds[place]) for place in positions]
        # max() returns the first among equals.
        by_margin = max(range(len(positions)), key=lambda index: ratios[index])
        by_distance = max(range(len(positions)), key=lambda index: image[positions[index]])
        worst = positions[by_margin] if max(ratios) > 0 else positions[by_distance]
        found["score"].append(float(image.max()))
        found["margin"].append(max(ratios))
        found["row"].append(worst[0])
        found["column"].append(worst[1])
        found["distance"].append(float(image[worst]))
        found["threshold"].append(float(thresholds[worst]))
    return found


def assert_evidence(evidence: Evidence, expected: dict[str, list[float]]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(evidence, name), values, err_msg=name)


@given(situation=maps(ties=False))
@settings(max_examples=50, deadline=None)
def test_evidence_is_that_of_the_position_with_the_largest_margin(situation: tuple[Array, Array]) -> None:
    assert_evidence(gather_evidence(*situation), literal_evidence(*situation))


@given(situation=maps(ties=True))
@settings(max_examples=50, deadline=None)
def test_among_equal_positions_evidence_names_the_first_in_row_major_order(situation: tuple[Array, Array]) -> None:
    assert_evidence(gather_evidence(*situation), literal_evidence(*situation))


def test_without_thresholds_evidence_names_the_largest_distance() -> None:
    distances = frozen(np.array([[[1.0, 2.0], [4.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    evidence = gather_evidence(distances, np.full((2, 2), np.inf))
    assert evidence.margin.tolist() == [0.0, 0.0]
    assert evidence.score.tolist() == evidence.distance.tolist() == [4.0, 0.0]
    assert list(zip(evidence.row.tolist(), evidence.column.tolist(), strict=True)) == [(1, 0), (0, 0)]
    assert evidence.threshold.tolist() == [np.inf, np.inf]


def test_evidence_prefers_a_position_with_a_threshold_to_a_larger_distance_without_one() -> None:
    distances = frozen(np.array([[[100.0, 1.0], [50.0, 7.0]]]))
    evidence = gather_evidence(distances, np.array([[np.inf, 2.0], [np.inf, 70.0]]))
    assert (evidence.row[0], evidence.column[0], evidence.margin[0]) == (0, 1, 0.5)
    assert (evidence.score[0], evidence.distance[0], evidence.threshold[0]) == (100.0, 1.0, 2.0)


def test_evidence_of_no_images_is_empty_with_small_integer_positions() -> None:
    evidence = gather_evidence(np.empty((0, 2, 3)), np.ones((2, 3)))
    assert evidence.score.shape == evidence.row.shape == (0,)
    assert evidence.row.dtype == evidence.column.dtype == np.int16


def test_positions_keep_their_dtype_through_the_fold() -> None:
    evidence = gather_evidence(frozen(np.ones((3, 2, 2))), np.ones((2, 2)))
    assert evidence.row.dtype == evidence.column.dtype == np.int16


@given(seed=seeds)
def test_shared_evidence_is_that_of_the_worse_of_an_image_and_its_representative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = gather_evidence(frozen(rng.lognormal(size=(8, 2, 3))), frozen(rng.lognormal(size=(2, 3))))
    representative = np.minimum(np.arange(8), rng.integers(0, 8, 8))
    shared = own.shared(representative)
    np.testing.assert_array_equal(shared.margin, np.maximum(own.margin, own.margin[representative]))
    np.testing.assert_array_equal(shared.score, np.maximum(own.score, own.score[representative]))
    # Place, distance and threshold belong to the margin.
    np.testing.assert_allclose(shared.distance / shared.threshold, shared.margin)
    np.testing.assert_array_equal(own.shared(np.arange(8)).row, own.row)
