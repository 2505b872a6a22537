"""Updated moments equal those accumulated from scratch within a bound; beyond it, they are accumulated from scratch."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

import workers.passes.kept_moments
from schemas.config import GaussianConfig
from schemas.errors import SingularCovarianceError
from schemas.stores.features import CHUNK_IMAGES
from workers.features.arrays import ArrayRef, Segment
from workers.gaussian.fit import Fit
from workers.passes.by_features import RowMoments, RowWhitenings, accumulate_segment
from workers.passes.kept_moments import (
    DISTANCE_ERROR,
    DRIFT,
    STORAGE_IMAGES,
    Change,
    KeptMoments,
    drift,
    fit_row_whitening,
    kept_values,
    pays_to_keep,
    pays_to_update,
    update_moments,
    update_row,
)
from workers.storage.directory import Directory

IMAGES, ROWS, COLUMNS, CHANNELS = 700, 2, 3, 5
ROW = 1
FIT = Fit(GaussianConfig(ridge=1e-6), "ridge", leaves_one_out=True)

Mask = NDArray[np.bool_]
Store = Callable[..., tuple[ArrayRef, KeptMoments]]


def drawn(seed: int = 0) -> NDArray[np.float32]:
    """Return features (images, rows, columns, channels) with channels of different scales, far from zero."""
    rng = np.random.default_rng(seed)
    shape = (IMAGES, ROWS, COLUMNS, CHANNELS)
    return (rng.normal(size=shape) * np.geomspace(0.1, 5, CHANNELS) + 20).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return what writes features and makes a place for moments."""

    def write(values: NDArray[Any], name: str = "store") -> tuple[ArrayRef, KeptMoments]:
        directory = Directory.at(tmp_path / name)
        group = directory.zarr_group("", "w")
        group.create_array("features", data=values, chunks=(CHUNK_IMAGES, 1, *values.shape[2:]))
        size = kept_values(values.shape[3])
        shape = (*values.shape[1:3], size)
        group.create_array("moments", shape=shape, chunks=(1, 1, size), dtype="float64", compressors=Crc32cCodec())
        return ArrayRef(directory, "", "features"), KeptMoments(ArrayRef(directory, "", "moments"))

    return write


def everything() -> Mask:
    return np.ones(IMAGES, bool)


def without(*images: int) -> Mask:
    mask = everything()
    mask[list(images)] = False
    return mask


def begin(features: ArrayRef, kept: KeptMoments, mask: Mask, fit: Fit = FIT) -> RowWhitenings:
    """Fit some images from scratch, as the first pass, and keep their moments."""
    return fit_row_whitening(from_scratch(features, mask), fit, [], ROW, kept, 1)


def from_scratch(features: ArrayRef, mask: Mask) -> Any:
    return accumulate_segment(features, ROW, Segment(0, IMAGES, mask))


def distances(fits: RowWhitenings, values: NDArray[Any], mask: Mask) -> NDArray[np.float64]:
    return np.stack([fit.leave_one_out(values[:, ROW, column], mask) for column, fit in enumerate(fits)], axis=1)


def scatter_exactly(values: NDArray[Any], mask: Mask, column: int) -> NDArray[Any]:
    chosen = values[mask, ROW, column].astype(np.longdouble)
    chosen -= chosen.mean(axis=0)
    return np.asarray(chosen.T @ chosen)


class Recomputed(list[Any]):
    """The columns that were accumulated from scratch, one list for each row that had any."""


@pytest.fixture
def recomputed(monkeypatch: pytest.MonkeyPatch) -> Recomputed:
    found = Recomputed()

    def spy(features: ArrayRef, row: int, segment: Segment, *, columns: list[int]) -> RowMoments:
        found.append(columns)
        return accumulate_segment(features, row, segment, columns=columns)

    monkeypatch.setattr(workers.passes.kept_moments, "accumulate_segment", spy)
    return found


masks = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.sampled_from([0.05, 0.3, 0.6, 0.95, 1.0]).map(
        lambda share: np.random.default_rng(seed).random(IMAGES) < share
    )
)


@given(sequence=st.lists(masks, min_size=2, max_size=6), outliers=st.sampled_from([0.0, 1e2, 1e5]))
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_fitted_images_gives_what_fitting_the_last_from_scratch_gives(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[Mask], outliers: float
) -> None:
    values = drawn()
    values[::50, ROW, 0] += np.float32(outliers)
    directory = Directory.at(tmp_path_factory.mktemp("store"))
    group, size = directory.zarr_group("", "w"), kept_values(CHANNELS)
    group.create_array("features", data=values, chunks=(CHUNK_IMAGES, 1, COLUMNS, CHANNELS))
    group.create_array("moments", shape=(ROWS, COLUMNS, size), chunks=(1, 1, size), dtype="float64")
    features, kept = ArrayRef(directory, "", "features"), KeptMoments(ArrayRef(directory, "", "moments"))
    begin(features, kept, sequence[0])
    for number, (before, after) in enumerate(pairwise(sequence), start=2):
        change = Change(before, after, number - 1, number)
        for column, moments in enumerate(update_moments(features, kept, ROW, change)):
            assert moments.count == after.sum()
            error = moments.scatter[0] - scatter_exactly(values, after, column)
            assert np.linalg.norm(error.astype(np.float64)) <= moments.error
        fits = update_row(features, kept, ROW, change, FIT)
        exact = from_scratch(features, after)
        for column, (fit, other) in enumerate(zip(fits, fit_row_whitening(exact, FIT, [], ROW), strict=True)):
            here = values[:, ROW, column]
            change_of_distances = np.abs(fit.gaussian.mahalanobis(here) / other.gaussian.mahalanobis(here) - 1)
            bound = fit.relative_error(kept.read(ROW, column).moments.error) + other.relative_error(exact[column].error)
            assert change_of_distances.max() <= bound
            if not outliers or column:
                assert change_of_distances.max() <= 1e-9


def test_a_large_outlier_that_is_removed_recomputes_its_position_and_no_other(
    store: Store, recomputed: Recomputed
) -> None:
    values = drawn()
    values[[3, 600], ROW, 1] += 1e7
    features, kept = store(values)
    begin(features, kept, everything())
    after = without(3, 9, 600)
    change = Change(everything(), after, 1, 2)
    found = [drift(part) for part in update_moments(features, kept, ROW, change)]
    assert found[1] > DRIFT > max(found[0], found[2])
    fits = update_row(features, kept, ROW, change, FIT)
    assert recomputed == [[1]]
    expected = fit_row_whitening(from_scratch(features, after), FIT, [], ROW)
    np.testing.assert_array_equal(fits[1].gaussian.whitening, expected[1].gaussian.whitening)
    np.testing.assert_allclose(distances(fits, values, after), distances(expected, values, after), rtol=1e-9)
    # What is kept is exact again.
    assert drift(kept.read(ROW, 1).moments) < 1.5


def test_drift_adds_up_over_passes_until_the_position_is_accumulated_from_scratch(
    store: Store, recomputed: Recomputed
) -> None:
    features, kept = store(drawn())
    before, history = np.arange(IMAGES) % 3 > 0, []
    begin(features, kept, before)
    for number in range(2, 60):
        after = np.roll(before, 1)
        update_row(features, kept, ROW, Change(before, after, number - 1, number), FIT)
        before = after
        if recomputed:
            break
        history.append([kept.read(ROW, column).moments.error for column in range(COLUMNS)])
    (drifted, *_) = recomputed[0]
    errors = [errors[drifted] for errors in history]
    assert errors == sorted(errors)
    assert kept.read(ROW, drifted).moments.error < errors[0]


def test_a_nearly_singular_remainder_is_accumulated_from_scratch(store: Store, recomputed: Recomputed) -> None:
    values = drawn()
    values[100:, ROW, 2, 0] = values[100:, ROW, 2, 1]  # two channels are one where the first images are missing
    features, kept = store(values)
    fit = Fit(GaussianConfig(ridge=1e-12), "ridge")
    begin(features, kept, everything(), fit)
    after = everything()
    after[:100] = False
    change = Change(everything(), after, 1, 2)
    moments = update_moments(features, kept, ROW, change)
    assert max(map(drift, moments)) <= DRIFT
    found = [one.relative_error(part.error) for one, part in zip(_fits(moments, fit), moments, strict=True)]
    assert found[2] > DISTANCE_ERROR > max(found[:2])
    fits = update_row(features, kept, ROW, change, fit)
    assert recomputed == [[2]]
    expected = fit_row_whitening(from_scratch(features, after), fit, [], ROW)
    np.testing.assert_array_equal(fits[2].gaussian.whitening, expected[2].gaussian.whitening)


def _fits(moments: list[Any], fit: Fit) -> RowWhitenings:
    return fit_row_whitening(tuple(moments), fit, [], ROW)


def test_an_error_of_the_scatter_changes_distances_no_more_than_the_bound_says(store: Store) -> None:
    values = drawn()
    features, _ = store(values)
    moments = from_scratch(features, everything())
    (exact, *_) = _fits(moments, FIT)
    rng = np.random.default_rng(4)
    expected = exact.gaussian.mahalanobis(values[:, ROW, 0])
    for size in (1e-8, 1e-4):
        noise = rng.normal(size=(CHANNELS, CHANNELS))
        noise = (noise + noise.T) * size / np.linalg.norm(noise + noise.T)
        disturbed = moments[0].__class__(moments[0].count, moments[0].mean, moments[0].scatter + noise)
        (other,) = _fits([disturbed], FIT)
        change = np.abs(other.gaussian.mahalanobis(values[:, ROW, 0]) / expected - 1)
        assert 0 < change.max() <= exact.relative_error(size)


def test_a_covariance_that_stays_singular_is_reported_as_such(store: Store) -> None:
    values = drawn()
    values[50:, :, :, 1] = values[50:, :, :, 0] * 2
    values[:50, ROW] *= 1e4
    features, kept = store(values)
    fit = Fit(GaussianConfig(ridge=1e-300), "ridge")
    begin(features, kept, everything(), fit)
    after = everything()
    after[:50] = False
    with pytest.raises(SingularCovarianceError, match="ridge"):
        update_row(features, kept, ROW, Change(everything(), after, 1, 2), fit)


def test_a_task_that_is_repeated_finds_the_same(store: Store) -> None:
    features, kept = store(drawn())
    begin(features, kept, everything())
    change = Change(everything(), without(1, 300, 650), 1, 2)
    first = update_row(features, kept, ROW, change, FIT)
    # The worker was lost after it had written two of the columns.
    one, two = (kept.read(ROW, column).moments for column in range(2))
    begin(features, kept, everything())
    kept.write(ROW, 2, (one, two))
    for again in (update_row(features, kept, ROW, change, FIT) for _ in range(2)):
        for fit, expected in zip(again, first, strict=True):
            np.testing.assert_array_equal(fit.gaussian.whitening, expected.gaussian.whitening)
            np.testing.assert_array_equal(fit.gaussian.mean, expected.gaussian.mean)
    assert [kept.read(ROW, column).number for column in range(COLUMNS)] == [2] * COLUMNS


def test_moments_of_another_pass_are_not_used(store: Store, recomputed: Recomputed) -> None:
    features, kept = store(drawn())
    begin(features, kept, everything())
    after = without(1)
    fits = update_row(features, kept, ROW, Change(without(5), after, 3, 4), FIT)
    assert recomputed == [[0, 1, 2]]
    for fit, expected in zip(fits, fit_row_whitening(from_scratch(features, after), FIT, [], ROW), strict=True):
        np.testing.assert_array_equal(fit.gaussian.whitening, expected.gaussian.whitening)


@pytest.mark.parametrize("content", [b"", bytes(100), None], ids=["empty", "zeros", "altered"])
def test_damaged_moments_are_not_used(store: Store, recomputed: Recomputed, content: bytes | None) -> None:
    features, kept = store(drawn())
    begin(features, kept, everything())
    chunk = Path(kept.array.directory.url) / f"moments/c/{ROW}/1/0"
    chunk.write_bytes(chunk.read_bytes()[::-1] if content is None else content)
    after = without(1, 300)
    fits = update_row(features, kept, ROW, Change(everything(), after, 1, 2), FIT)
    assert recomputed == [[1]]
    np.testing.assert_array_equal(
        fits[1].gaussian.whitening, fit_row_whitening(from_scratch(features, after), FIT, [], ROW)[1].gaussian.whitening
    )


def test_chunks_without_a_changed_image_are_not_read(store: Store) -> None:
    values = drawn()
    features, kept = store(values)
    begin(features, kept, everything())
    features.open("r+")[CHUNK_IMAGES : 2 * CHUNK_IMAGES, ROW] = np.nan
    after = without(0, 255, 512)
    fits = update_row(features, kept, ROW, Change(everything(), after, 1, 2), FIT)
    expected = fit_row_whitening(from_scratch(store(values, "whole")[0], after), FIT, [], ROW)
    np.testing.assert_allclose(distances(fits, values, after), distances(expected, values, after), rtol=1e-9)


def test_an_update_without_changes_keeps_the_moments(store: Store) -> None:
    features, kept = store(drawn())
    begin(features, kept, everything())
    before = kept.read(ROW, 0).moments
    update_row(features, kept, ROW, Change(everything(), everything(), 1, 2), FIT)
    np.testing.assert_array_equal(kept.read(ROW, 0).moments.scatter, before.scatter)
    np.testing.assert_array_equal(kept.read(ROW, 0).moments.mean, before.mean)


@pytest.mark.parametrize(
    ("changed", "fitted", "pays"),
    [
        (0, 2 * STORAGE_IMAGES, True),
        (0, 2 * STORAGE_IMAGES - 1, False),
        (1, 2 * STORAGE_IMAGES, False),
        (9000, 20_000, True),
        (9001, 20_000, False),
    ],
)
def test_an_update_is_at_most_half_the_work_of_accumulating_from_scratch(changed: int, fitted: int, pays: bool) -> None:
    assert pays_to_update(changed, fitted) is pays
    assert pays_to_keep(fitted) or not pays
