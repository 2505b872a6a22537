"""The tasks of one pass over a product group, each for one row of positions and one segment of images.

Features are read chunk by chunk, so a task holds one chunk and the Gaussians or moments of one row, whatever N is. Of
groups of few images one task can be a whole row, whose chunks it holds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.compute import map_in_threads
from workers.features.arrays import ArrayRef, Segment, read_chunks, read_distances, read_row
from workers.gaussian.fit import Fit, FittedGaussian, FittedWhitening, fit_dual, fit_primal
from workers.gaussian.moments import Accumulator, Moments, merge
from workers.gaussian.neighbours import neighbour_distances
from workers.verdict.selection import margins
from workers.verdict.smoothing import SMALLEST, smooth
from workers.verdict.threshold import position_threshold

# Turns a median absolute deviation into a standard deviation, for normal data.
NORMAL_DEVIATION = 1.4826

RowGaussians = tuple[FittedGaussian, ...]
RowWhitenings = tuple[FittedWhitening, ...]
# One Moments of one position for each column: columns may be fitted on different images.
RowMoments = tuple[Moments, ...]


class RowVerdict(NamedTuple):
    """What a pass found at one row of positions: thresholds (columns,), and each image's largest margin (images,)."""

    thresholds: Floats
    margin: Floats


def accumulate_segment(
    features: ArrayRef,
    row: int,
    segment: Segment,
    columns: Sequence[int] | None = None,
) -> RowMoments:
    """Return the moments of a segment's fitted images at one row of positions, chunk by chunk in order.

    ``columns`` are the columns to accumulate, by default all.
    """
    array = features.open()
    places = range(array.shape[2]) if columns is None else columns
    accumulators = [Accumulator(array.shape[3]) for _ in places]
    for start, values in read_chunks(features, row, segment, segment.mask):
        fitted = values[segment.mask[start - segment.start : start - segment.start + len(values)]]

        def add(pair: tuple[int, Accumulator], fitted: NDArray[Any] = fitted) -> None:
            pair[1].add(fitted[:, pair[0]])

        map_in_threads(add, zip(places, accumulators, strict=True))
    return tuple(map_in_threads(Accumulator.result, accumulators))


def merge_rows(left: RowMoments, right: RowMoments) -> RowMoments:
    """Return the moments of two disjoint sets of images together, column by column."""
    return tuple(merge(*pair) for pair in zip(left, right, strict=True))


def fit_row_dual(features: ArrayRef, row: int, segment: Segment, fit: Fit) -> RowGaussians:
    """Fit one row of positions on the masked images, at most one a channel."""
    fitted = np.moveaxis(read_row(features, row, segment), 1, 0)
    return tuple(
        map_in_threads(
            lambda part: fit_dual(part, fit.config, fit.estimator, leaves_one_out=fit.leaves_one_out), fitted
        )
    )


def fit_row_primal(moments: RowMoments, fit: Fit, fourth_moments: list[Floats]) -> RowGaussians:
    """Fit one row of positions from its moments; the segments' fourth moments are empty unless they are needed."""
    fourth = sum(fourth_moments[1:], fourth_moments[0]) if fourth_moments else None

    def fit_column(column: int) -> FittedGaussian:
        return fit_moments(moments[column], fit, None if fourth is None else fourth[column])

    return tuple(map_in_threads(fit_column, range(len(moments))))


def fit_moments(moments: Moments, fit: Fit, fourth_moment: float | None = None) -> FittedGaussian:
    """Fit one position from its moments."""
    fourth = None if fourth_moment is None else np.array([fourth_moment])
    (fitted,) = fit_primal(moments, fit.config, fit.estimator, fourth_moments=fourth, leaves_one_out=fit.leaves_one_out)
    return fitted


def accumulate_fourth(features: ArrayRef, row: int, segment: Segment, moments: RowMoments) -> Floats:
    """Return the sum of |x - mean|^4 (columns,) over a segment's fitted images."""
    total = np.zeros(len(moments))
    for start, values in read_chunks(features, row, segment, segment.mask):
        fitted = values[segment.mask[start - segment.start : start - segment.start + len(values)]]
        for column, part in enumerate(moments):
            centred = fitted[:, column].astype(np.float64) - part.mean[0]
            total[column] += (np.einsum("ij,ij->i", centred, centred) ** 2).sum()
    return total


class References(NamedTuple):
    """The features of the reference images at one row of positions."""

    chosen: Mask  # (images,)
    values: NDArray[Any]  # (references, columns, channels)


def read_references(features: ArrayRef, row: int, chosen: Mask) -> References:
    """Return the reference images ``chosen`` (images,) at one row of positions."""
    return References(chosen, read_row(features, row, Segment(0, len(chosen), chosen)))


def measure_segment(
    gaussians: RowGaussians | RowWhitenings | None,
    features: ArrayRef,
    distances: ArrayRef,
    row: int,
    segment: Segment,
    left_out: Mask | None = None,
    references: References | None = None,
) -> int:
    """Write a segment's distances at one row of positions; NaN where an image does not take part.

    Parameters
    ----------
    gaussians
        Of the row; None measures the neighbour distance alone.
    features, distances
        The arrays to read and to write.
    row
        The row of positions.
    segment
        The images, masked to those that take part.
    left_out
        (segment's images,) bool: fitted images, to be measured without themselves; None measures all as they are.
    references
        With these, the distance is multiplied by the neighbour distance.

    Returns
    -------
    int
        Images measured: the receipt that the row's verdict waits for.
    """
    result = np.full((segment.stop - segment.start, features.open().shape[2]), np.nan)
    place = None if references is None else np.where(references.chosen, np.cumsum(references.chosen) - 1, -1)
    for start, values in read_chunks(features, row, segment, segment.mask):
        here = slice(start - segment.start, start - segment.start + len(values))
        mask = segment.mask[here]
        measured = np.ones((int(mask.sum()), result.shape[1]))
        if gaussians is not None:
            measured *= _measure_columns(gaussians, values[mask], None if left_out is None else left_out[here][mask])
        if references is not None and place is not None:
            own = place[start : start + len(values)][mask]
            measured *= _neighbour_columns(references.values, values[mask], own)
        result[here][mask] = measured
    distances.open("r+")[segment.start : segment.stop, row] = result
    return int(segment.mask.sum())


def _measure_columns(gaussians: RowGaussians | RowWhitenings, samples: NDArray[Any], left_out: Mask | None) -> Floats:
    """Return the distances (images, columns) of samples (images, columns, channels), the columns at once."""

    def measure(column: int) -> Floats:
        fitted, values = gaussians[column], samples[:, column]
        return fitted.gaussian.mahalanobis(values) if left_out is None else fitted.leave_one_out(values, left_out)

    return np.stack(map_in_threads(measure, range(len(gaussians))), axis=1)


def _neighbour_columns(references: NDArray[Any], samples: NDArray[Any], own: Indices) -> Floats:
    """Return the neighbour distances (images, columns) of samples (images, columns, channels)."""

    def measure(column: int) -> Floats:
        return neighbour_distances(samples[:, column], references[:, column], own)

    return np.stack(map_in_threads(measure, range(samples.shape[1])), axis=1)


def judge_row(
    distances: ArrayRef,
    row: int,
    measured: Mask,
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
    values = read_distances(distances, Segment(0, len(measured), measured), row)
    return judge_values(values, measured, trim, fitted, is_first)


def judge_values(values: Floats, measured: Mask, trim: TrimConfig, fitted: int, is_first: bool) -> RowVerdict:
    """Find the thresholds and margins of one row of positions from its distances (taking part, columns)."""
    thresholds = np.array([position_threshold(column, trim, fitted=fitted, is_first=is_first) for column in values.T])
    margin = np.full(len(measured), np.nan)
    margin[measured] = margins(values, thresholds).max(axis=1)
    return RowVerdict(thresholds, margin)


def score_segment(distances: ArrayRef, segment: Segment, smoothing: int, receipts: list[int]) -> Floats:
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
        What the tasks returned that measured the segment, or more, at every row.
    """
    assert all(receipt >= int(segment.mask.sum()) for receipt in receipts)
    scores = np.full(segment.stop - segment.start, np.nan)
    maps = read_distances(distances, segment)
    scores[segment.mask] = np.log(smooth(maps, smoothing).max(axis=(1, 2), initial=SMALLEST))
    return scores


def score_row(distances: ArrayRef, row: int, measured: Mask, receipts: list[int]) -> Floats:
    """Return each image's largest log distance at one row of positions, in robust deviations at each position.

    Returns
    -------
    ndarray
        (images,) float64: max over the row of (log d - median) / (1.4826 MAD); NaN where an image takes no part.
    """
    assert sum(receipts) >= int(measured.sum())
    logs, median, spread = _standardisation(distances, row, measured)
    scores = np.full(len(measured), np.nan)
    scores[measured] = ((logs - median) / spread).max(axis=1)
    return scores


def row_thresholds(distances: ArrayRef, row: int, measured: Mask, score: float) -> Floats:
    """Return the distances (columns,) at which `score_row` gives a score."""
    _, median, spread = _standardisation(distances, row, measured)
    return np.asarray(np.exp(median + score * spread))


def _standardisation(distances: ArrayRef, row: int, measured: Mask) -> tuple[Floats, Floats, Floats]:
    """Return the log distances (images, columns) of a row, their medians and robust deviations (columns,)."""
    stored = read_distances(distances, Segment(0, len(measured), measured), row)
    logs = np.log(np.maximum(stored, SMALLEST))
    median = np.median(logs, axis=0)
    spread = NORMAL_DEVIATION * np.median(np.abs(logs - median), axis=0)
    return logs, median, np.maximum(spread, np.finfo(np.float64).eps)
