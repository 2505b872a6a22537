"""First and second moments of patch features as a reduction: accumulate, merge, finalize.

The scatter matrix is always taken about a mean, never as a difference of large sums: unshifted sums lose four
digits on real features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def accumulate(samples: NDArray[np.floating]) -> Moments:
    """Return the moments of a block of samples.

    Parameters
    ----------
    samples
        (images, positions, channels), any floating dtype.
    """
    images, positions, channels = samples.shape
    if not images:
        return Moments.empty(positions, channels)
    mean = np.empty((positions, channels))
    scatter = np.empty((positions, channels, channels))
    for position in range(positions):
        values = samples[:, position].astype(np.float64)
        mean[position] = values.mean(axis=0)
        centred = values - mean[position]
        scatter[position] = centred.T @ centred  # NumPy turns A^T A into a symmetric rank-k update
    return Moments(images, mean, scatter)


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
