"""The tasks of one pass over a product group, each for one row of positions and one segment of images.

Features are read chunk by chunk, so a task holds one chunk and the Gaussians or moments of one row, whatever N is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.config import TrimConfig
from schemas.features import CHUNK_IMAGES
from workers.gaussian import Gaussian, fit_dual, fit_primal
from workers.moments import Moments, accumulate, merge
from workers.selection import margins
from workers.storage import Directory
from workers.threshold import position_threshold

RowGaussians = tuple[Gaussian, ...]


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
            total = merge(total, accumulate(values[mask]))
    return total


def fit_row_dual(features: ArrayRef, row: int, segment: Segment, ridge: float) -> RowGaussians:
    """Fit one row of positions on the masked images of the segment, no more of them than channels."""
    array = features.open()
    chosen = [
        values[mask]
        for start, values in _chunks(array, row, segment)
        if (mask := segment.mask[start - segment.start : start - segment.start + len(values)]).any()
    ]
    samples = np.concatenate(chosen)
    return tuple(fit_dual(samples[:, column], ridge) for column in range(samples.shape[1]))


def fit_row_primal(moments: Moments, ridge: float) -> RowGaussians:
    """Fit one row of positions from its moments."""
    return fit_primal(moments, ridge)


def measure_segment(
    gaussians: RowGaussians, features: ArrayRef, distances: ArrayRef, row: int, segment: Segment
) -> int:
    """Write a segment's distances at one row of positions; NaN where an image does not take part.

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
            used = values[mask]
            measured = [gaussian.mahalanobis(used[:, column]) for column, gaussian in enumerate(gaussians)]
            result[place][mask] = np.stack(measured, axis=1)
    distances.open("r+")[segment.start : segment.stop, row] = result
    return int(segment.mask.sum())


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


def _chunks(array: zarr.Array[Any], row: int, segment: Segment) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first image, values (images, columns, channels)) for each chunk of a segment."""
    for start in range(segment.start, segment.stop, CHUNK_IMAGES):
        stop = min(start + CHUNK_IMAGES, segment.stop)
        yield start, np.asarray(array[start:stop, row])
