"""First and second moments of patch features as a reduction: accumulate, merge, finalize.

The scatter matrix is always taken about a mean, never as a difference of large sums: unshifted sums lose four
digits on real features.

Removing samples does subtract, so moments carry a bound on the Frobenius norm of the scatter's rounding error. Products
of k samples with the sum of squares t are right to k eps t, adding them to a matrix of trace T is right to eps T
(Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 3.5), in any order of summation; a trace is at
least the Frobenius norm.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats
from workers.gaussian.lapack import add_products, mirror

_EPS = float(np.finfo(np.float64).eps)

# One for the products, two for the sum of samples, whose square is subtracted in the end.
_ROUNDED = 3.0


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of samples at several positions."""

    count: int  # n
    mean: Floats  # (positions, channels)
    scatter: Floats  # (positions, channels, channels): the sum of (x - mean)(x - mean)^T
    error: float = 0.0  # a bound on the Frobenius norm of the scatter's rounding error, at the worst position

    @classmethod
    def empty(cls, positions: int, channels: int) -> "Moments":
        """Return the moments of no samples, the neutral element of `merge`."""
        return cls(0, np.zeros((positions, channels)), np.zeros((positions, channels, channels)))


class Accumulator:
    """The moments of samples at one position that come block by block: symmetric rank-k updates in place.

    Sums are taken about the mean of the first block. It is close to the mean of all samples, so shifting the scatter
    to that mean in the end loses hardly anything.
    """

    def __init__(self, channels: int) -> None:
        self._count, self._has_origin = 0, False
        self._origin, self._sum = np.zeros(channels), np.zeros(channels)
        self._products = np.zeros((channels, channels), order="F")  # below the diagonal
        self._error = 0.0

    @classmethod
    def resume(cls, moments: Moments) -> "Accumulator":
        """Continue from moments of one position; sums are taken about their mean."""
        resumed = cls(0)
        resumed._count, resumed._has_origin, resumed._error = moments.count, True, moments.error
        resumed._origin = moments.mean[0]
        resumed._sum = np.zeros_like(resumed._origin)
        # Symmetric: its transpose is itself, in Fortran order.
        resumed._products = np.array(moments.scatter[0]).T
        return resumed

    def add(self, samples: NDArray[np.floating]) -> None:
        """Add a block of samples (images, channels), any floating dtype."""
        self._update(samples, 1)

    def remove(self, samples: NDArray[np.floating]) -> None:
        """Remove a block of samples that were added before."""
        self._update(samples, -1)

    def _update(self, samples: NDArray[np.floating], sign: int) -> None:
        if not len(samples):
            return
        values = samples.astype(np.float64, order="C")
        if not self._has_origin:
            self._origin, self._has_origin = values.mean(axis=0), True
        values -= self._origin
        self._count += sign * len(values)
        self._sum += sign * values.sum(axis=0)
        before = float(self._products.trace())
        add_products(self._products, values, sign)
        after = float(self._products.trace())
        self._error += _ROUNDED * _EPS * (len(values) * abs(after - before) + max(before, after))

    def result(self) -> "Moments":
        """Return the moments of one position; nothing can be added afterwards."""
        count = max(self._count, 1)
        shift = self._sum / count
        scatter, trace = self._products, float(self._products.trace())
        add_products(scatter, (self._sum / np.sqrt(count))[np.newaxis], -1)
        mirror(scatter)
        # After `resume` the origin is a rounded mean: the sum about it is not quite 0.
        offset = _EPS * float(np.linalg.norm(self._origin) * np.linalg.norm(self._sum))
        error = self._error + _ROUNDED * _EPS * trace + 2.0 * offset
        return Moments(self._count, (self._origin + shift)[np.newaxis], scatter.T[np.newaxis], error)


def accumulate(samples: NDArray[np.floating]) -> Moments:
    """Return the moments of a block of samples (images, positions, channels), any floating dtype."""
    images, positions, channels = samples.shape
    parts = []
    for position in range(positions):
        accumulator = Accumulator(channels)
        accumulator.add(samples[:, position])
        parts.append(accumulator.result())
    if not positions:
        return Moments.empty(0, channels)
    return Moments(
        images,
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.scatter for part in parts]),
        max(part.error for part in parts),
    )


def merge(left: Moments, right: Moments) -> Moments:
    """Merge the moments of two disjoint sets of samples (Chan, Golub and LeVeque 1983)."""
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
    trace = float(np.trace(between, axis1=1, axis2=2).max(initial=0.0))
    lengths = np.linalg.norm(delta, axis=1) * (np.linalg.norm(left.mean, axis=1) + np.linalg.norm(right.mean, axis=1))
    offset = 2.0 * _EPS * left.count * right.count / count * float(lengths.max(initial=0.0))
    return Moments(count, mean, between, left.error + right.error + _ROUNDED * _EPS * trace + offset)


def fresh_error(count: int, block: int, trace: float) -> float:
    """Bound the scatter's error after accumulating ``count`` samples in blocks; ``trace`` is the whole scatter's."""
    return _ROUNDED * _EPS * (block + -(-count // block)) * trace


def finalize(moments: Moments) -> tuple[Floats, Floats]:
    """Return the mean and the covariance with 1 / (n - 1) (Eqs. 4 and 5, without the ridge).

    Raises
    ------
    ValueError
        For fewer than two samples.
    """
    if moments.count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, not {moments.count}")
    return moments.mean, moments.scatter / (moments.count - 1)
