"""Moments that are kept from one pass to the next, and brought up to date by the images whose membership changed.

A pass needs N D^2 operations at each position for the moments of N fitted images. From the moments of an earlier pass
it needs those of the images that were added and removed since. What that costs is exactness: see `DRIFT` and
`DISTANCE_ERROR`. A position whose bounds are exceeded is accumulated again, by itself, so that no result depends on
what happened elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats, Mask
from schemas.errors import DamagedArrayError, SingularCovarianceError
from schemas.stores.features import CHUNK_IMAGES
from workers.compute import map_in_threads
from workers.features.arrays import ArrayRef, Segment, read_chunks, read_stored
from workers.gaussian.fit import Fit, FittedWhitening, invert
from workers.gaussian.moments import Accumulator, Moments, fresh_error
from workers.passes.by_features import RowMoments, RowWhitenings, accumulate_segment, fit_moments

# Reading and writing the moments of a position, 16 D^2 bytes, takes as long as accumulating so many images, D^2
# operations each: at 1 GB/s and 60 GFLOP/s.
STORAGE_IMAGES = 1000

# Moments are updated as long as the bound on the scatter's rounding error is so many times that of moments accumulated
# again: it grows with what is added and removed, and weighs more where little is left, as when outliers are removed.
# The errors of distances keep that ratio, whatever the covariance's condition.
DRIFT = 4.0

# The bound on the relative error of distances up to which that is enough: where the smallest variances are smaller yet,
# as little as possible is to be lost of them. On features with variances as small as rounding allows to know, distances
# from updated moments differed from those again by a hundred thousandth of the bound.
DISTANCE_ERROR = 1e-2


class Change(NamedTuple):
    """What a pass changes in the kept moments.

    Attributes
    ----------
    before, after
        (images,) bool: the fitted images of the pass that they are of, and of this one.
    since, number
        The numbers of these passes.
    """

    before: Mask
    after: Mask
    since: int
    number: int


class _Kept(NamedTuple):
    """The moments of a position, and the number of the pass that they are of."""

    number: int
    moments: Moments


@dataclass(frozen=True)
class KeptMoments:
    """Where moments are kept.

    One chunk for each position has all that belongs together, and is replaced as a whole: a task that is repeated,
    because its worker was lost, finds either what it needs or what it has already written.

    Attributes
    ----------
    array
        (rows, columns, D^2 + D + 3) float64: number of the pass, count, error, mean, scatter.
    """

    array: ArrayRef

    def read(self, row: int, column: int) -> _Kept:
        """Return what is kept of a position, of no pass where that is damaged."""
        array = self.array.open()
        try:
            values = read_stored(array, (row, column))
        except DamagedArrayError:
            values = np.zeros(array.shape[2])
        channels = int((len(values) - 3) ** 0.5)
        number, count, error = values[:3]
        mean, scatter = values[3 : channels + 3], values[channels + 3 :].reshape(channels, channels)
        return _Kept(int(number), Moments(int(count), mean[np.newaxis], scatter[np.newaxis], float(error)))

    def write(self, row: int, number: int, moments: RowMoments) -> None:
        """Keep the moments of a row, of the pass of that number."""
        array = self.array.open("r+")
        for column, part in enumerate(moments):
            head = (number, part.count, part.error)
            array[row, column] = np.concatenate([head, part.mean[0], part.scatter[0].reshape(-1)])


def kept_values(channels: int) -> int:
    """Return how many numbers are kept for a position."""
    return channels**2 + channels + 3


def pays_to_keep(fitted: int) -> bool:
    """Tell whether any change of this number of fitted images could be an update."""
    return pays_to_update(0, fitted)


def pays_to_update(changed: int, fitted: int) -> bool:
    """Tell whether updating moments is less work than accumulating them: at most half of it, with reading and writing.

    Less would be gained than may be lost where a position has to be accumulated again.
    """
    return 2 * (changed + STORAGE_IMAGES) <= fitted


def fit_row_whitening(
    moments: RowMoments,
    fit: Fit,
    fourth_moments: list[Floats],
    row: int,
    kept: KeptMoments | None = None,
    number: int = 0,
) -> RowWhitenings:
    """Fit one row of positions from its moments, to be measured with; ``kept`` has them as pass ``number``."""
    if kept is not None:
        kept.write(row, number, moments)
    fourth = sum(fourth_moments[1:], fourth_moments[0]) if fourth_moments else None

    def fit_column(column: int) -> FittedWhitening:
        return invert(fit_moments(moments[column], fit, None if fourth is None else fourth[column]))

    return tuple(map_in_threads(fit_column, range(len(moments))))


def update_row(features: ArrayRef, kept: KeptMoments, row: int, change: Change, fit: Fit) -> RowWhitenings:
    """Fit one row of positions from the kept moments of an earlier pass, and keep those of this one.

    It reads the chunks with changed images, and all fitted ones for positions that are accumulated again. ``kept`` has
    the moments of the pass ``change.since``, or already of this one when a task is repeated. A covariance that is
    singular even then raises SingularCovarianceError.
    """
    moments = update_moments(features, kept, row, change)
    found = map_in_threads(lambda part: _fit_if_exact(part, fit), moments)
    again = [column for column, fitted in enumerate(found) if fitted is None]
    if again:
        everything = Segment(0, len(change.after), change.after)
        accumulated = accumulate_segment(features, row, everything, columns=again)
        for column, part in zip(again, accumulated, strict=True):
            moments[column], found[column] = part, invert(fit_moments(part, fit))
    kept.write(row, change.number, tuple(moments))
    return tuple(fitted for fitted in found if fitted is not None)


def update_moments(features: ArrayRef, kept: KeptMoments, row: int, change: Change) -> list[Moments]:
    """Return the moments of a row of positions, by adding and removing the images that changed, in order.

    Where moments of another pass are kept than was said, their error is infinite.
    """
    columns = []
    for column in range(features.open().shape[2]):
        number, moments = kept.read(row, column)
        if number not in (change.since, change.number):
            # What was lost there is made again.
            moments = replace(moments, error=np.inf)
        columns.append(moments if number == change.number else Accumulator.resume(moments))
    stale = [(column, part) for column, part in enumerate(columns) if isinstance(part, Accumulator)]
    for is_added, values in _changed_blocks(features, row, change):

        def update(pair: tuple[int, Accumulator], values: Any = values, is_added: bool = is_added) -> None:
            column, accumulator = pair
            (accumulator.add if is_added else accumulator.remove)(values[:, column])

        map_in_threads(update, stale)
    return map_in_threads(lambda part: part.result() if isinstance(part, Accumulator) else part, columns)


def _changed_blocks(features: ArrayRef, row: int, change: Change) -> Iterator[tuple[bool, NDArray[Any]]]:
    """Yield the features (images, columns, channels) of changed images, and whether these were added.

    Blocks have the images of several chunks: products of a few images take as long as those of many.
    """
    masks = {True: change.after & ~change.before, False: change.before & ~change.after}
    waiting: dict[bool, list[NDArray[Any]]] = {is_added: [] for is_added in masks}
    changed = masks[True] | masks[False]
    for start, values in read_chunks(features, row, Segment(0, len(changed), changed), changed):
        for is_added, mask in masks.items():
            waiting[is_added].append(values[mask[start : start + len(values)]])
            if sum(map(len, waiting[is_added])) >= CHUNK_IMAGES:
                yield is_added, np.concatenate(waiting[is_added])
                waiting[is_added] = []
    for is_added, parts in waiting.items():
        if parts:
            yield is_added, np.concatenate(parts)


def drift(moments: Moments) -> float:
    """Return how many times the error bound of moments accumulated again that of some moments of a position is."""
    again = fresh_error(moments.count, CHUNK_IMAGES, float(np.trace(moments.scatter[0])))
    return moments.error / again if again and np.isfinite(moments.error) else np.inf


def _fit_if_exact(moments: Moments, fit: Fit) -> FittedWhitening | None:
    """Fit updated moments at one position; None where they have to be accumulated again."""
    if drift(moments) > DRIFT:
        return None
    try:
        fitted = invert(fit_moments(moments, fit))
    except SingularCovarianceError:
        return None
    return fitted if fitted.relative_error(moments.error) <= DISTANCE_ERROR else None
