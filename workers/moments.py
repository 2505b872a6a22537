"""First and second moments of patch features as a reduction: accumulate, merge, finalize.

The scatter matrix is always taken about a mean, never as a difference of large sums: unshifted sums lose four
digits on real features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.lapack import add_products


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of samples at several positions.

    Attributes
    ----------
    count
        Number of samples n.
    mean
        (positions, channels) float64.
    scatter
        (positions, channels, channels) float64: the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def empty(cls, positions: int, channels: int) -> "Moments":
        """Return the moments of no samples, the neutral element of `merge`."""
        return cls(0, np.zeros((positions, channels)), np.zeros((positions, channels, channels)))


class Accumulator:
    """The moments of samples at one position that come block by block: symmetric rank-k updates in place.

    Sums are taken about the mean of the first block, which differs from that of all by little, so that hardly anything
    is lost when the scatter is shifted to the latter at the end.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._origin, self._sum = np.zeros(channels), np.zeros(channels)
        self._products = np.zeros((channels, channels), order="F")  # below the diagonal

    def add(self, samples: NDArray[np.floating]) -> None:
        """Add a block of samples (images, channels), any floating dtype."""
        if not len(samples):
            return
        values = samples.astype(np.float64, order="C")
        if not self._count:
            self._origin = values.mean(axis=0)
        values -= self._origin
        self._count += len(values)
        self._sum += values.sum(axis=0)
        add_products(self._products, values)

    def result(self) -> "Moments":
        """Return the moments of one position; nothing can be added afterwards."""
        shift = self._sum / max(self._count, 1)
        scatter = self._products
        scatter -= np.outer(self._sum, shift)
        for column in range(1, len(scatter)):
            scatter[:column, column] = scatter[column, :column]
        return Moments(self._count, (self._origin + shift)[np.newaxis], scatter.T[np.newaxis])


def accumulate(samples: NDArray[np.floating]) -> Moments:
    """Return the moments of a block of samples.

    Parameters
    ----------
    samples
        (images, positions, channels), any floating dtype.
    """
    images, positions, channels = samples.shape
    parts = []
    for position in range(positions):
        accumulator = Accumulator(channels)
        accumulator.add(samples[:, position])
        parts.append(accumulator.result())
    if not positions:
        return Moments.empty(0, channels)
    return Moments(
        images, np.concatenate([part.mean for part in parts]), np.concatenate([part.scatter for part in parts])
    )


def merge(left: Moments, right: Moments) -> Moments:
    """Return the moments of two disjoint sets of samples together (Chan, Golub and LeVeque 1983)."""
    if not left.count:
        return right
    if not right.count:
        return left
    count = left.count + right.count
    delta = right.mean - left.mean
    mean = left.mean + delta * (right.count / count)
    between = delta[:, :, np.newaxis] * delta[:, np.newaxis, :]
    between *= left.count * right.count / count
    between += left.scatter
    between += right.scatter
    return Moments(count, mean, between)


def finalize(moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the covariance with 1 / (n - 1) (Eqs. 4 and 5, without the ridge).

    Returns
    -------
    mean : ndarray
        (positions, channels) float64.
    covariance : ndarray
        (positions, channels, channels) float64.

    Raises
    ------
    ValueError
        For fewer than two samples.
    """
    if moments.count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {moments.count}")
    return moments.mean, moments.scatter / (moments.count - 1)
