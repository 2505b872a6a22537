"""The tasks of one pass: rows and segments of stored features, whatever the chunks."""

import pickle
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import GaussianConfig, TrimConfig
from schemas.stores.features import CHUNK_IMAGES
from workers.features.arrays import ArrayRef, Segment
from workers.gaussian.fit import Fit, fit_dual
from workers.gaussian.moments import accumulate, finalize
from workers.gaussian.neighbours import choose_references
from workers.passes.by_features import (
    RowMoments,
    accumulate_segment,
    fit_row_dual,
    fit_row_primal,
    judge_row,
    measure_segment,
    merge_rows,
    read_references,
)
from workers.storage.directory import Directory
from workers.verdict.selection import margins
from workers.verdict.threshold import position_threshold

IMAGES, ROWS, COLUMNS, CHANNELS = 700, 2, 3, 4  # two chunk boundaries, at 256 and 512
ROW = 1
FIT = Fit(GaussianConfig(ridge=1e-6), "ridge")


@pytest.fixture(scope="module")
def values() -> NDArray[np.float16]:
    """Return features (images, rows, columns, channels) float16."""
    return np.random.default_rng(0).normal(3, 1, (IMAGES, ROWS, COLUMNS, CHANNELS)).astype(np.float16)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.float16]) -> ArrayRef:
    directory = Directory.at(tmp_path_factory.mktemp("features"))
    directory.zarr_group("", "w").create_array("group", data=values, chunks=(CHUNK_IMAGES, 1, COLUMNS, CHANNELS))
    return ArrayRef(directory, "", "group")


@pytest.fixture
def distances(tmp_path: Path) -> ArrayRef:
    group = Directory.at(tmp_path / "distances").zarr_group("group", "w")
    group.create_array(
        "distance", shape=(IMAGES, ROWS, COLUMNS), chunks=(100, 1, COLUMNS), dtype="float64", fill_value=-1.0
    )
    return ArrayRef(Directory.at(tmp_path / "distances"), "group", "distance")


def some(seed: int, share: float = 0.7) -> NDArray[np.bool_]:
    """Return a mask (images,) bool, read-only."""
    mask: NDArray[np.bool_] = np.random.default_rng(seed).random(IMAGES) < share
    mask.flags.writeable = False
    return mask


def segments(mask: NDArray[np.bool_], cuts: list[int]) -> list[Segment]:
    bounds = [0, *sorted(set(cuts) - {0, IMAGES}), IMAGES]
    return [Segment(start, stop, mask[start:stop]) for start, stop in pairwise(bounds)]


def stored(reference: ArrayRef) -> NDArray[Any]:
    return np.asarray(reference.open()[:])


def row_moments(samples: NDArray[np.floating]) -> RowMoments:
    return tuple(accumulate(samples[:, column : column + 1]) for column in range(samples.shape[1]))


@given(
    seed=st.integers(0, 1000), cuts=st.lists(st.sampled_from([1, 100, 255, 256, 257, 511, 512, 513, 699]), max_size=4)
)
@settings(max_examples=25, deadline=None)
def test_moments_of_segments_merged_in_order_equal_numpy_cov(
    features: ArrayRef, values: NDArray[np.float16], seed: int, cuts: list[int]
) -> None:
    mask = some(seed)
    moments = reduce(merge_rows, [accumulate_segment(features, ROW, segment) for segment in segments(mask, cuts)])
    assert len(moments) == COLUMNS
    for column, part in enumerate(moments):
        assert part.count == mask.sum()
        mean, covariance = finalize(part)
        chosen = values[mask, ROW, column].astype(np.float64)
        np.testing.assert_allclose(mean[0], chosen.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(covariance[0], np.cov(chosen, rowvar=False), rtol=1e-10, atol=1e-12)


def test_a_segment_without_chosen_images_has_the_moments_of_no_samples(features: ArrayRef) -> None:
    moments = accumulate_segment(features, ROW, Segment(200, 600, np.zeros(400, bool)))
    assert [part.count for part in moments] == [0] * COLUMNS
    assert {part.mean.shape for part in moments} == {(1, CHANNELS)}


@pytest.mark.parametrize("cuts", [[], [256, 512], [100, 300]], ids=str)
@pytest.mark.parametrize("is_fitted", [True, False])
def test_with_references_the_neighbour_distance_multiplies_that_of_the_fit_or_is_all_of_it(
    features: ArrayRef, distances: ArrayRef, values: NDArray[np.float16], cuts: list[int], is_fitted: bool
) -> None:
    mask, fitted = some(5), some(5) & some(6)
    references = read_references(features, ROW, choose_references(fitted, 40))
    gaussians = fit_row_primal(row_moments(values[fitted, ROW]), FIT, []) if is_fitted else None
    for segment in segments(mask, cuts):
        left_out = fitted[segment.start : segment.stop] if is_fitted else None
        assert measure_segment(gaussians, features, distances, ROW, segment, left_out, references) == segment.mask.sum()
    written = stored(distances)[:, ROW]
    assert np.isnan(written[~mask]).all()
    chosen = np.flatnonzero(choose_references(fitted, 40))
    for column in range(COLUMNS):
        here = values[:, ROW, column].astype(np.float64)
        apart = np.linalg.norm(here[:, np.newaxis] - here[chosen], axis=2)
        apart[chosen, np.arange(40)] = np.inf
        expected = np.sort(apart, axis=1)[:, 1]
        if gaussians is not None:
            expected *= gaussians[column].leave_one_out(values[:, ROW, column], fitted)
        np.testing.assert_allclose(written[mask, column], expected[mask], rtol=1e-9)


def test_references_are_the_features_of_the_chosen_images_in_order(
    features: ArrayRef, values: NDArray[np.float16]
) -> None:
    chosen = some(7, share=0.01)
    references = read_references(features, ROW, chosen)
    np.testing.assert_array_equal(references.values, values[chosen, ROW])
    np.testing.assert_array_equal(references.chosen, chosen)


def test_a_row_is_fitted_in_the_dual_form_across_chunks(features: ArrayRef, values: NDArray[np.float16]) -> None:
    mask = np.zeros(IMAGES, bool)
    mask[[3, 255, 256, 640]] = True  # none in the middle of the second chunk
    gaussians = fit_row_dual(features, ROW, Segment(0, IMAGES, mask), FIT)
    assert len(gaussians) == COLUMNS
    for column, fitted in enumerate(gaussians):
        expected = fit_dual(values[mask, ROW, column], FIT.config, FIT.estimator)
        np.testing.assert_array_equal(
            fitted.gaussian.mahalanobis(values[:9, ROW, column]), expected.gaussian.mahalanobis(values[:9, ROW, column])
        )


def test_a_row_is_fitted_in_the_primal_form_from_its_moments(features: ArrayRef, values: NDArray[np.float16]) -> None:
    mask = some(1)
    moments = reduce(merge_rows, [accumulate_segment(features, ROW, segment) for segment in segments(mask, [300])])
    for column, fitted in enumerate(fit_row_primal(moments, FIT, [])):
        chosen = values[mask, ROW, column].astype(np.float64)
        precision = np.linalg.inv(np.cov(chosen, rowvar=False) + 1e-6 * np.eye(CHANNELS))
        offset = values[:, ROW, column] - chosen.mean(axis=0)
        np.testing.assert_allclose(
            fitted.gaussian.mahalanobis(values[:, ROW, column]),
            np.sqrt(np.einsum("ij,jk,ik->i", offset, precision, offset)),
            rtol=1e-9,
        )


@pytest.mark.parametrize("cuts", [[], [256, 512], [100, 300], [1, 699]], ids=str)
def test_distances_are_those_of_the_chosen_images_and_nan_elsewhere(
    features: ArrayRef, distances: ArrayRef, values: NDArray[np.float16], cuts: list[int]
) -> None:
    mask = some(2)
    gaussians = fit_row_primal(row_moments(values[mask, ROW]), FIT, [])
    receipts = [measure_segment(gaussians, features, distances, ROW, segment) for segment in segments(mask, cuts)]
    assert sum(receipts) == mask.sum()
    written = stored(distances)
    for column, fitted in enumerate(gaussians):
        expected = fitted.gaussian.mahalanobis(values[mask, ROW, column])
        np.testing.assert_allclose(written[mask, ROW, column], expected, rtol=1e-12)
    assert np.isnan(written[~mask, ROW]).all()


def test_measuring_a_segment_writes_its_row_and_its_images_only(
    features: ArrayRef, distances: ArrayRef, values: NDArray[np.float16]
) -> None:
    gaussians = fit_row_primal(row_moments(values[:, ROW]), FIT, [])
    measure_segment(gaussians, features, distances, ROW, Segment(200, 300, np.ones(100, bool)))
    written = stored(distances)
    assert (written[:, 0] == -1).all()
    assert (written[:200, ROW] == -1).all()
    assert (written[300:, ROW] == -1).all()
    assert (written[200:300, ROW] >= 0).all()


def test_a_segment_without_chosen_images_is_written_as_nan(
    features: ArrayRef, distances: ArrayRef, values: NDArray[np.float16]
) -> None:
    gaussians = fit_row_primal(row_moments(values[:, ROW]), FIT, [])
    assert measure_segment(gaussians, features, distances, ROW, Segment(0, 300, np.zeros(300, bool))) == 0
    assert np.isnan(stored(distances)[:300, ROW]).all()


def test_measuring_again_replaces_what_an_earlier_pass_wrote(
    features: ArrayRef, distances: ArrayRef, values: NDArray[np.float16]
) -> None:
    everything = Segment(0, IMAGES, np.ones(IMAGES, bool))
    for fitted in (values[:50, ROW], values[50:100, ROW]):
        gaussians = fit_row_primal(row_moments(fitted), FIT, [])
        measure_segment(gaussians, features, distances, ROW, everything)
    np.testing.assert_allclose(
        stored(distances)[:, ROW, 0], gaussians[0].gaussian.mahalanobis(values[:, ROW, 0]), rtol=1e-12
    )


@pytest.mark.parametrize("is_first", [True, False])
def test_a_row_is_judged_by_the_thresholds_of_its_positions_and_the_largest_margins(
    distances: ArrayRef, is_first: bool
) -> None:
    measured = some(3)
    count = int(measured.sum())
    row = np.random.default_rng(4).permuted(np.tile(np.linspace(1, 1.5, IMAGES), (COLUMNS, 1)), axis=1).T
    row[np.flatnonzero(measured)[:9], 1] = 100 * np.arange(1, 10)  # bad at one position
    row[~measured] = np.nan
    distances.open("r+")[:, ROW] = row
    trim = TrimConfig()
    verdict = judge_row(distances, ROW, measured, trim, count // 4, is_first, [count - 10, 10])
    expected = [
        position_threshold(row[measured, column], trim, fitted=count // 4, is_first=is_first)
        for column in range(COLUMNS)
    ]
    np.testing.assert_array_equal(verdict.thresholds, expected)
    assert np.isfinite(verdict.thresholds[1])
    np.testing.assert_array_equal(verdict.margin[measured], margins(row[measured], verdict.thresholds).max(axis=1))
    assert np.isnan(verdict.margin[~measured]).all()


def test_an_array_is_passed_on_by_name(features: ArrayRef) -> None:
    copy = pickle.loads(pickle.dumps(features))
    assert copy == features
    assert copy.open().shape == (IMAGES, ROWS, COLUMNS, CHANNELS)


def test_an_array_opened_for_reading_cannot_be_written(distances: ArrayRef) -> None:
    with pytest.raises(ValueError, match="read-only"):
        distances.open()[0, 0, 0] = 1.0
