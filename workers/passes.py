"""The tasks of one pass over a product group, each for one row of positions and one segment of images.

Features are read chunk by chunk, so a task holds one chunk and the Gaussians or moments of one row, whatever N is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.config import GaussianConfig, TrimConfig
from schemas.features import CHUNK_IMAGES
from workers.compute import map_in_threads
from workers.gaussian import FittedGaussian, fit_dual, fit_primal
from workers.moments import Moments, accumulate, merge
from workers.selection import margins
from workers.smoothing import SMALLEST, smooth
from workers.storage import Directory
from workers.threshold import position_threshold

# Turns a median absolute deviation into a standard deviation, for normal data.
NORMAL_DEVIATION = 1.4826

RowGaussians = tuple[FittedGaussian, ...]


class Fit(NamedTuple):
    """How to fit: the covariance estimator, and whether fitted images will be measured without themselves."""

    config: GaussianConfig
    estimator: str
    leaves_one_out: bool = False


@dataclass(frozen=True)
class ArrayRef:
    """A Zarr array as a recipe: pickles as names, opens where it is used."""

    directory: Directory
    group: str
    name: str

    def open(self, mode: str = "r") -> zarr.Array[Any]:
        """Open the array for reading ("r") or writing ("r+")."""
        array = self.directory.zarr_group(self.group, "r" if mode == "r" else "r+")[self.name]
        assert isinstance(array, zarr.Array)
        return array


class Segment(NamedTuple):
    """Images ``start`` to ``stop`` of a group's arrays; ``mask`` (stop - start,) says which of them to use."""

    start: int
    stop: int
    mask: NDArray[np.bool_]


class RowVerdict(NamedTuple):
    """What a pass found at one row of positions: thresholds (columns,), and each image's largest margin (images,)."""

    thresholds: NDArray[np.float64]
    margin: NDArray[np.float64]


def accumulate_segment(features: ArrayRef, row: int, segment: Segment) -> Moments:
    """Return the moments of a segment's fitted images, chunk by chunk in order."""
    array = features.open()
    total = Moments.empty(array.shape[2], array.shape[3])
    for start, values in _chunks(array, row, segment):
        mask = segment.mask[start - segment.start : start - segment.start + len(values)]
        if mask.any():
            total = merge(total, _accumulate_columns(values[mask]))
    return total


def _accumulate_columns(samples: NDArray[Any]) -> Moments:
    """Return the moments of samples (images, columns, channels), the columns at once."""
    parts = map_in_threads(lambda column: accumulate(samples[:, column : column + 1]), range(samples.shape[1]))
    return Moments(
        len(samples), np.concatenate([part.mean for part in parts]), np.concatenate([part.scatter for part in parts])
    )


def fit_row_dual(features: ArrayRef, row: int, segment: Segment, fit: Fit) -> RowGaussians:
    """Fit one row of positions on the masked images of the segment, no more of them than channels."""
    array = features.open()
    chosen = [
        values[mask]
        for start, values in _chunks(array, row, segment)
        if (mask := segment.mask[start - segment.start : start - segment.start + len(values)]).any()
    ]
    samples = np.concatenate(chosen)
    return tuple(
        map_in_threads(
            lambda column: fit_dual(samples[:, column], fit.config, fit.estimator, leaves_one_out=fit.leaves_one_out),
            range(samples.shape[1]),
        )
    )


def fit_row_primal(moments: Moments, fit: Fit, fourth_moments: list[NDArray[np.float64]]) -> RowGaussians:
    """Fit one row of positions from its moments; the segments' fourth moments are empty unless they are needed."""
    fourth = sum(fourth_moments[1:], fourth_moments[0]) if fourth_moments else None

    def fit_column(column: int) -> FittedGaussian:
        here = slice(column, column + 1)
        return fit_primal(
            Moments(moments.count, moments.mean[here], moments.scatter[here]),
            fit.config,
            fit.estimator,
            fourth_moments=None if fourth is None else fourth[here],
            leaves_one_out=fit.leaves_one_out,
        )[0]

    return tuple(map_in_threads(fit_column, range(len(moments.mean))))


def accumulate_fourth(features: ArrayRef, row: int, segment: Segment, moments: Moments) -> NDArray[np.float64]:
    """Return the sum of |x - mean|^4 (columns,) over a segment's fitted images."""
    total = np.zeros(len(moments.mean))
    for start, values in _chunks(features.open(), row, segment):
        used = values[segment.mask[start - segment.start : start - segment.start + len(values)]]
        centred = used.astype(np.float64) - moments.mean
        total += (np.einsum("ijk,ijk->ij", centred, centred) ** 2).sum(axis=0)
    return total


def measure_segment(
    gaussians: RowGaussians,
    features: ArrayRef,
    distances: ArrayRef,
    row: int,
    segment: Segment,
    left_out: NDArray[np.bool_] | None = None,
) -> int:
    """Write a segment's distances at one row of positions; NaN where an image does not take part.

    Parameters
    ----------
    gaussians
        Of the row.
    features, distances
        The arrays to read and to write.
    row
        The row of positions.
    segment
        The images, masked to those that take part.
    left_out
        (segment's images,) bool: fitted images, to be measured without themselves; None measures all as they are.

    Returns
    -------
    int
        Images measured: the receipt that the row's verdict waits for.
    """
    result = np.full((segment.stop - segment.start, len(gaussians)), np.nan)
    for start, values in _chunks(features.open(), row, segment):
        place = slice(start - segment.start, start - segment.start + len(values))
        mask = segment.mask[place]
        if mask.any():
            out = None if left_out is None else left_out[place][mask]
            measured = _measure_columns(gaussians, values[mask], out)
            result[place][mask] = np.stack(measured, axis=1)
    distances.open("r+")[segment.start : segment.stop, row] = result
    return int(segment.mask.sum())


def _measure_columns(
    gaussians: RowGaussians, samples: NDArray[Any], left_out: NDArray[np.bool_] | None
) -> list[NDArray[np.float64]]:
    """Return the distances (images,) of samples (images, columns, channels) at each column, the columns at once."""

    def measure(column: int) -> NDArray[np.float64]:
        fitted, values = gaussians[column], samples[:, column]
        return fitted.gaussian.mahalanobis(values) if left_out is None else fitted.leave_one_out(values, left_out)

    return map_in_threads(measure, range(len(gaussians)))


def judge_row(
    distances: ArrayRef,
    row: int,
    measured: NDArray[np.bool_],
    trim: TrimConfig,
    fitted: int,
    is_first: bool,
    receipts: list[int],
) -> RowVerdict:
    """Find the thresholds of one row of positions and each image's largest margin there.

    Parameters
    ----------
    distances
        The stored distances, written by the tasks whose receipts are awaited.
    row
        The row of positions.
    measured
        (images,) bool: the images that take part.
    trim
        The threshold's parameters.
    fitted
        How many images the Gaussians were fitted on.
    is_first
        Whether this is the first pass.
    receipts
        What `measure_segment` returned for every segment of the row.
    """
    assert sum(receipts) == int(measured.sum())
    values = np.asarray(distances.open()[:, row])[measured]
    thresholds = np.array([position_threshold(column, trim, fitted=fitted, is_first=is_first) for column in values.T])
    margin = np.full(len(measured), np.nan)
    margin[measured] = margins(values, thresholds).max(axis=1)
    return RowVerdict(thresholds, margin)


def score_segment(distances: ArrayRef, segment: Segment, smoothing: int, receipts: list[int]) -> NDArray[np.float64]:
    """Return each image's largest smoothed log distance (segment's images,); NaN where it does not take part.

    Parameters
    ----------
    distances
        The stored distances, written by the tasks whose receipts are awaited.
    segment
        The images, masked to those that take part.
    smoothing
        Side of the square of positions to average over.
    receipts
        What `measure_segment` returned for every row of the segment.
    """
    assert all(receipt == int(segment.mask.sum()) for receipt in receipts)
    scores = np.full(segment.stop - segment.start, np.nan)
    maps = np.asarray(distances.open()[segment.start : segment.stop])[segment.mask]
    scores[segment.mask] = np.log(smooth(maps, smoothing).max(axis=(1, 2), initial=SMALLEST))
    return scores


def score_row(distances: ArrayRef, row: int, measured: NDArray[np.bool_], receipts: list[int]) -> NDArray[np.float64]:
    """Return each image's largest log distance at one row of positions, in robust deviations at each position.

    Returns
    -------
    ndarray
        (images,) float64: max over the row of (log d - median) / (1.4826 MAD); NaN where an image takes no part.
    """
    assert sum(receipts) == int(measured.sum())
    logs, median, spread = _standardisation(distances, row, measured)
    scores = np.full(len(measured), np.nan)
    scores[measured] = ((logs - median) / spread).max(axis=1)
    return scores


def row_thresholds(distances: ArrayRef, row: int, measured: NDArray[np.bool_], score: float) -> NDArray[np.float64]:
    """Return the distances (columns,) at which `score_row` gives a score."""
    _, median, spread = _standardisation(distances, row, measured)
    return np.asarray(np.exp(median + score * spread))


def _standardisation(
    distances: ArrayRef, row: int, measured: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the log distances (images, columns) of a row, their medians and robust deviations (columns,)."""
    logs = np.log(np.maximum(np.asarray(distances.open()[:, row])[measured], SMALLEST))
    median = np.median(logs, axis=0)
    spread = NORMAL_DEVIATION * np.median(np.abs(logs - median), axis=0)
    return logs, median, np.maximum(spread, np.finfo(np.float64).eps)


def _chunks(array: zarr.Array[Any], row: int, segment: Segment) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first image, values (images, columns, channels)) for each chunk of a segment."""
    for start in range(segment.start, segment.stop, CHUNK_IMAGES):
        stop = min(start + CHUNK_IMAGES, segment.stop)
        yield start, np.asarray(array[start:stop, row])
