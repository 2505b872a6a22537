"""The tasks of one pass over a group of no more images than channels, from its inner products (`gaussian.products`).

A task has some rows of positions and all images. The products are written once for a group, by tasks of the same rows,
and read in every pass; features are read again only at a position where products are not exact enough.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.compute import map_in_threads
from workers.features.arrays import ArrayRef, OpenedFeatures, Segment, read_row
from workers.gaussian.fit import Fit, fit_dual, uses_dual
from workers.gaussian.neighbours import neighbour_distances_of_products
from workers.gaussian.products import TOLERANCE, inner_products, measure
from workers.passes.by_features import RowVerdict, judge_values

# A group of up to this many images is judged in one task, all rows of positions at once: a pass over 14 x 14 positions
# takes a tenth of a second then, and its products have 6 MB.
SMALL_GROUP = 64

# Products of several columns share a chunk up to this size, inside what object stores like.
PRODUCTS_CHUNK_BYTES = 16 * 1024**2

_ITEM_BYTES = np.dtype(np.float64).itemsize


class Band(NamedTuple):
    """Rows of positions ``start`` to ``stop``."""

    start: int
    stop: int


@dataclass(frozen=True)
class GramGroup:
    """Where a group's inner products are, and the features that they were made of.

    Attributes
    ----------
    features
        (images, rows, columns, channels).
    products
        (rows, columns, taking part, taking part) float64.
    measured
        (images,) bool: the images that take part.
    """

    features: ArrayRef
    products: ArrayRef
    measured: Mask


def uses_products(measured: int, channels: int) -> bool:
    """Tell whether the passes over this number of images go by inner products: any fit then has the dual form."""
    return uses_dual(measured, channels)


def band_rows(measured: int, rows: int, columns: int) -> int:
    """Return how many of the rows of positions one task has: of a small group as many as share a chunk of products."""
    if measured > SMALL_GROUP:
        return 1
    return max(1, min(rows, PRODUCTS_CHUNK_BYTES // (columns * measured**2 * _ITEM_BYTES)))


def products_chunk(measured: int, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Return the chunk shape of the products: one writer each, and as many columns as are not too large together."""
    band = band_rows(measured, rows, columns)
    fitting = PRODUCTS_CHUNK_BYTES // (band * measured**2 * _ITEM_BYTES)
    return band, min(columns, max(1, fitting)), measured, measured


def bands(measured: int, rows: int, columns: int) -> Iterator[Band]:
    """Yield the rows of positions of each task, in order."""
    size = band_rows(measured, rows, columns)
    for start in range(0, rows, size):
        yield Band(start, min(start + size, rows))


def multiply_rows(group: GramGroup, band: Band) -> int:
    """Write the inner products of a band; returns the number of its positions as a receipt."""
    products = group.products.open("r+")
    features, everything = OpenedFeatures.of(group.features), Segment(0, len(group.measured), group.measured)
    values = [read_row(features, row, everything) for row in range(*band)]
    for columns in _column_chunks(products):
        samples = [row[:, column] for row in values for column in range(columns.start, columns.stop)]
        block = np.stack(map_in_threads(inner_products, samples))
        products[band.start : band.stop, columns] = block.reshape(len(values), -1, *block.shape[1:])
    return (band.stop - band.start) * products.shape[1]


def measure_rows(
    group: GramGroup,
    distances: ArrayRef,
    band: Band,
    fitted: Mask,
    fit: Fit | None,
    references: Mask | None,
    receipt: int,
) -> int:
    """Write all images' distances at a band, NaN where an image does not take part; returns the images measured.

    ``fitted`` (images,) bool are the images to fit on, and ``references`` (images,) bool those whose neighbour distance
    multiplies the distance from the fit; without a fit it is the distance. ``receipt`` is that of the task that wrote
    the band's products.
    """
    assert receipt
    _store(group, distances, band, _measure(group, band, fitted, fit, references))
    return int(group.measured.sum())


def judge_rows(
    group: GramGroup,
    distances: ArrayRef,
    band: Band,
    fitted: Mask,
    fit: Fit,
    trim: TrimConfig,
    is_first: bool,
    receipt: int,
) -> RowVerdict:
    """Write all images' distances at a band, and find its thresholds (rows, columns) and each image's largest margin.

    The arguments are those of `measure_rows` and of `by_features.judge_row`.
    """
    assert receipt
    values = _measure(group, band, fitted, fit, None)
    _store(group, distances, band, values)
    count = int(fitted.sum())
    verdicts = [judge_values(row, group.measured, trim, count, is_first) for row in np.moveaxis(values, 1, 0)]
    margin = np.fmax.reduce([verdict.margin for verdict in verdicts])
    return RowVerdict(np.stack([verdict.thresholds for verdict in verdicts]), margin)


@dataclass(frozen=True)
class _Position:
    """One position's products (taking part, taking part), and how to get its features (taking part, channels)."""

    products: Floats
    features: Callable[[], NDArray[Any]]
    channels: int

    def measure(self, fitted: Indices, fit: Fit | None, references: Indices | None) -> Floats:
        """Return all distances (taking part,): from the fit, to the neighbours, or their product."""
        if references is None:
            assert fit is not None
            return self._measure(fitted, fit)
        distances = neighbour_distances_of_products(self.products, references, np.arange(len(self.products)))
        return distances if fit is None else distances * self._measure(fitted, fit)

    def _measure(self, fitted: Indices, fit: Fit) -> Floats:
        found = measure(self.products, self.channels, fitted, np.arange(len(self.products)), fit)
        if found.error <= TOLERANCE:
            return found.distances
        samples = self.features()
        one = fit_dual(samples[fitted], fit.config, fit.estimator, leaves_one_out=fit.leaves_one_out)
        if not fit.leaves_one_out:
            return one.gaussian.mahalanobis(samples)
        is_fitted = np.zeros(len(samples), bool)
        is_fitted[fitted] = True
        return one.leave_one_out(samples, is_fitted)


def _measure(group: GramGroup, band: Band, fitted: Mask, fit: Fit | None, references: Mask | None) -> Floats:
    """Return the distances (taking part, rows, columns) at a band."""
    products, rows = group.products.open(), np.flatnonzero(fitted[group.measured])
    near = None if references is None else np.flatnonzero(references[group.measured])
    parts = []
    for columns in _column_chunks(products):
        positions = _positions(group, band, columns, np.asarray(products[band.start : band.stop, columns]))
        found = map_in_threads(lambda position: position.measure(rows, fit, near), positions)
        parts.append(np.stack(found, axis=1).reshape(len(found[0]), band.stop - band.start, -1))
    return np.concatenate(parts, axis=2)


def _positions(group: GramGroup, band: Band, columns: slice, products: Floats) -> list[_Position]:
    """Return the positions of a chunk of products (rows, columns, taking part, taking part)."""
    everything = Segment(0, len(group.measured), group.measured)
    channels = int(group.features.open().shape[3])
    # Few positions need their features, but those that do, such as a border without any contrast, share rows.
    row_features = lru_cache(maxsize=1)(partial(read_row, group.features, segment=everything))

    def features_at(row: int, column: int) -> NDArray[Any]:
        values: NDArray[Any] = row_features(row)[:, column]
        return values

    return [
        _Position(products[row, column], partial(features_at, band.start + row, columns.start + column), channels)
        for row in range(products.shape[0])
        for column in range(products.shape[1])
    ]


def _store(group: GramGroup, distances: ArrayRef, band: Band, measured: Floats) -> None:
    """Write the distances (taking part, rows, columns) of a band."""
    values = np.full((len(group.measured), *measured.shape[1:]), np.nan)
    values[group.measured] = measured
    distances.open("r+")[:, band.start : band.stop] = values


def _column_chunks(products: zarr.Array[Any]) -> Iterator[slice]:
    """Yield the columns of each chunk, in order."""
    size, columns = products.chunks[1], products.shape[1]
    for start in range(0, columns, size):
        yield slice(start, min(start + size, columns))
