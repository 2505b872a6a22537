"""The tasks of a pass by inner products: those of a pass over features, whatever rows and columns share a task."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.config import GaussianConfig, TrimConfig
from schemas.stores.features import CHUNK_IMAGES
from workers.features.arrays import ArrayRef, Segment
from workers.gaussian.fit import Fit, fit_dual
from workers.gaussian.neighbours import choose_references, neighbour_distances
from workers.passes import by_products as gram_passes
from workers.passes.by_features import fit_row_dual, judge_row, measure_segment, read_references
from workers.passes.by_products import (
    SMALL_GROUP,
    Band,
    GramGroup,
    band_rows,
    bands,
    judge_rows,
    measure_rows,
    multiply_rows,
    products_chunk,
    uses_products,
)
from workers.storage.directory import Directory

IMAGES, ROWS, COLUMNS, CHANNELS = 300, 3, 4, 24  # a chunk boundary at 256
CONFIG = GaussianConfig()
CONSTANT = (1, 2)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def taking_part() -> Mask:
    """Return the images that take part, on both sides of the chunk boundary."""
    mask = np.zeros(IMAGES, bool)
    mask[[*range(3, 12), *range(250, 261)]] = True
    mask.flags.writeable = False
    return mask


def fitted() -> Mask:
    mask = taking_part().copy()
    mask[[4, 7, 255, 258]] = False
    mask.flags.writeable = False
    return mask


@pytest.fixture(scope="module")
def values() -> NDArray[np.float16]:
    """Return features (images, rows, columns, channels) float16; one position has no contrast at all."""
    drawn = np.random.default_rng(0).normal(3, 1, (IMAGES, ROWS, COLUMNS, CHANNELS)).astype(np.float16)
    drawn[:, *CONSTANT] = np.float16(0.1)
    return drawn


@pytest.fixture(params=[2**24, 9000, 1], ids=["together", "two columns", "apart"])
def group(
    tmp_path: Path, values: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> GramGroup:
    """Return a group whose products were written by tasks of as many positions as fit chunks of some size."""
    monkeypatch.setattr(gram_passes, "PRODUCTS_CHUNK_BYTES", request.param)
    directory, measured = Directory.at(tmp_path), taking_part()
    node, count = directory.zarr_group("", "w"), int(measured.sum())
    node.create_array("features", data=values, chunks=(CHUNK_IMAGES, 1, COLUMNS, CHANNELS))
    node.create_array(
        "products",
        shape=(ROWS, COLUMNS, count, count),
        chunks=products_chunk(count, ROWS, COLUMNS),
        dtype="float64",
    )
    node.create_array("distances", shape=(IMAGES, ROWS, COLUMNS), chunks=(100, 1, COLUMNS), dtype="float64")
    group = GramGroup(ArrayRef(directory, "", "features"), ArrayRef(directory, "", "products"), measured)
    for band in bands(count, ROWS, COLUMNS):
        assert multiply_rows(group, band) == (band.stop - band.start) * COLUMNS
    return group


def distances_of(group: GramGroup) -> ArrayRef:
    return ArrayRef(group.features.directory, "", "distances")


def expected(values: NDArray[np.float16], fit: Fit | None, references: Mask | None = None) -> Array:
    """Return the distances (images, rows, columns) by the form on features."""
    result, part = np.full((IMAGES, ROWS, COLUMNS), np.nan), taking_part()
    chosen = fitted()
    for position in np.ndindex(ROWS, COLUMNS):
        here, found = values[:, *position], np.ones(int(part.sum()))
        if fit is not None:
            one = fit_dual(here[chosen], fit.config, fit.estimator, leaves_one_out=fit.leaves_one_out)
            found *= (
                one.leave_one_out(here[part], chosen[part])
                if fit.leaves_one_out
                else one.gaussian.mahalanobis(here[part])
            )
        if references is not None:
            own = np.where(references, np.cumsum(references) - 1, -1)[part]
            found *= neighbour_distances(here[part], here[references], own)
        result[part, *position] = found
    return result


@pytest.mark.parametrize(
    ("fit", "references"),
    [
        (Fit(CONFIG, "ridge"), None),
        (Fit(CONFIG, "oas", leaves_one_out=True), None),
        (Fit(CONFIG, "relative-ridge", leaves_one_out=True), choose_references(fitted())),
        (Fit(CONFIG, "relative-ridge", leaves_one_out=True), choose_references(fitted(), 5)),
        (None, choose_references(fitted(), 5)),
    ],
)
def test_distances_are_those_of_the_form_on_features_and_nan_elsewhere(
    group: GramGroup, values: NDArray[np.float16], fit: Fit | None, references: Mask | None
) -> None:
    for band in bands(int(group.measured.sum()), ROWS, COLUMNS):
        assert measure_rows(group, distances_of(group), band, fitted(), fit, references, 1) == taking_part().sum()
    found = np.asarray(distances_of(group).open()[:])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected(values, fit, references)))
    # Where all images are the same, distances are nothing or next to nothing.
    np.testing.assert_allclose(found, expected(values, fit, references), rtol=1e-6, atol=1e-100)


@pytest.mark.parametrize("is_fitted", [True, False])
def test_with_neighbours_a_pass_by_features_finds_what_one_by_products_finds(group: GramGroup, is_fitted: bool) -> None:
    fit = Fit(CONFIG, "relative-ridge", leaves_one_out=True) if is_fitted else None
    chosen, everything = choose_references(fitted(), 6), Segment(0, IMAGES, taking_part())
    measure_rows(group, distances_of(group), Band(0, ROWS), fitted(), fit, chosen, 1)
    found = np.asarray(distances_of(group).open()[:])
    for row in range(ROWS):
        gaussians = None if fit is None else fit_row_dual(group.features, row, Segment(0, IMAGES, fitted()), fit)
        references = read_references(group.features, row, chosen)
        measure_segment(
            gaussians, group.features, distances_of(group), row, everything, fitted() if fit else None, references
        )
    np.testing.assert_allclose(np.asarray(distances_of(group).open()[:]), found, rtol=1e-6, atol=1e-100)


def test_where_products_are_not_exact_enough_the_features_are_taken(
    group: GramGroup, values: NDArray[np.float16]
) -> None:
    fit = Fit(GaussianConfig(ridge=1e-12), "ridge")
    measure_rows(group, distances_of(group), Band(0, ROWS), fitted(), fit, None, 1)
    found = np.asarray(distances_of(group).open()[:])
    np.testing.assert_array_equal(found[:, *CONSTANT], expected(values, fit)[:, *CONSTANT])
    np.testing.assert_allclose(found, expected(values, fit), rtol=1e-6)


@pytest.mark.parametrize("is_first", [True, False])
def test_rows_are_judged_as_one_by_one(group: GramGroup, is_first: bool) -> None:
    distances, trim = distances_of(group), TrimConfig(tau=0.5)
    verdict = judge_rows(group, distances, Band(0, ROWS), fitted(), Fit(CONFIG, "ridge"), trim, is_first, 1)
    count, measured = int(fitted().sum()), int(taking_part().sum())
    singly = [judge_row(distances, row, taking_part(), trim, count, is_first, [measured]) for row in range(ROWS)]
    np.testing.assert_array_equal(verdict.thresholds, [one.thresholds for one in singly])
    np.testing.assert_array_equal(verdict.margin, np.fmax.reduce([one.margin for one in singly]))
    # The first pass looks for the jump at a third of the images, where there is none.
    assert np.isfinite(verdict.thresholds).any() == (not is_first)


def test_a_task_has_one_row_of_a_large_group_and_all_rows_of_a_small_one() -> None:
    assert band_rows(SMALL_GROUP + 1, 14, 14) == 1
    assert band_rows(20, 14, 14) == 14
    assert [tuple(band) for band in bands(SMALL_GROUP, 100, 64)] == [
        (start, start + 8) for start in range(0, 96, 8)
    ] + [(96, 100)]


@pytest.mark.parametrize(("measured", "columns"), [(20, 14), (64, 14), (65, 14), (200, 14), (1792, 1)])
def test_chunks_of_products_are_of_a_size_that_stores_like(measured: int, columns: int) -> None:
    shape = products_chunk(measured, 14, 14)
    assert shape == (14 if measured <= SMALL_GROUP else 1, columns, measured, measured)


def test_products_are_for_groups_of_no_more_images_than_channels() -> None:
    assert [uses_products(measured, 100) for measured in (3, 100, 101)] == [True, True, False]
